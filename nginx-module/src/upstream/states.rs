//! Tries that could not be watched, from nginx's own notes at the end of the request.
//!
//! nginx notes each try's peer, status and times in milliseconds, but not when it
//! started. Only tries of an upstream that is chosen by a variable and has no block
//! are read from there.

use nginx_sys::{
    ngx_current_msec, ngx_http_request_t, ngx_http_upstream_state_t, ngx_msec_t, ngx_str_t,
};

use crate::actions::Try;
use crate::clock::NANOS_PER_MILLI;
use crate::conf::location::LocationConfig;
use crate::context::RequestContext;
use crate::recorder::{Attributes, Finished, Recorder};
use crate::request::{Request, bytes};
use crate::upstream::outcome;

/// A try that is recorded while it happens, and its place in nginx's notes.
pub(crate) struct Covered {
    request: *mut ngx_http_request_t,
    index: usize,
    start: u64,
}

/// Notes that the try which nginx has just entered is recorded.
pub(super) fn cover(context: &RequestContext, request: Request<'_>, start: u64) {
    let index = notes(request).len().saturating_sub(1);
    context.covered.borrow_mut().push(Covered {
        request: request.as_ptr(),
        index,
        start,
    });
}

/// Records the tries of all requests of a context that nobody watched.
pub(crate) fn record_rest(context: &RequestContext, recorder: &Recorder, now: u64) {
    for hop in context.hops() {
        // SAFETY: subrequests live as long as the client's request, which is being logged.
        let Some(request) = (unsafe { Request::from_ptr(hop.request) }) else {
            continue;
        };
        let mut rest = unwatched(context, request, now);
        // The header that went out names the announced try: the last, which got furthest.
        let mut announced = hop.announced;
        while let Some(note) = rest.pop() {
            let announced = announced.take().map(|first| (first.kind, first.number));
            let (kind, number) = announced.unwrap_or_else(|| {
                let kind = context.upstream_role(request, LocationConfig::of(request));
                (kind, context.number(kind))
            });
            record(context, recorder, request, note, kind, number);
        }
    }
}

/// One of nginx's notes with its times put on our clock.
struct Note<'r> {
    state: &'r ngx_http_upstream_state_t,
    peer: &'r str,
    start: u64,
    end: u64,
}

/// The notes that no recorded try covers, in their order.
fn unwatched<'r>(context: &RequestContext, request: Request<'r>, now: u64) -> Vec<Note<'r>> {
    let notes = notes(request);
    let covered = context.covered.borrow();
    let covers = |index: usize| {
        covered
            .iter()
            .find(|c| c.request == request.as_ptr() && c.index == index)
    };
    // Backwards from the one time that is known: the start of the last try.
    let mut latest = now;
    let mut last_start = last_start(request, now);
    let mut rest = Vec::new();
    for (index, state) in notes.iter().enumerate().rev() {
        if let Some(covered) = covers(index) {
            (latest, last_start) = (covered.start, None);
            continue;
        }
        // SAFETY: a note's peer, where there is one, is a name in the request's pool.
        let Some(peer) = (unsafe { state.peer.as_ref() }) else {
            continue;
        };
        let length = if state.response_time == ngx_msec_t::MAX {
            0
        } else {
            state.response_time
        };
        let length = length as u64 * NANOS_PER_MILLI;
        let start = last_start.take().unwrap_or(latest.saturating_sub(length));
        let start = start.clamp(context.arrived, latest.max(context.arrived));
        let end = (start + length).min(latest).max(start);
        // SAFETY: as above.
        let peer = request.text(unsafe { bytes::<'r>(*(peer as *const ngx_str_t)) });
        rest.push(Note {
            state,
            peer,
            start,
            end,
        });
        latest = start;
    }
    rest.reverse();
    rest
}

fn record<'r>(
    context: &RequestContext,
    recorder: &Recorder,
    request: Request<'r>,
    note: Note<'r>,
    kind: Try,
    number: u16,
) {
    // Omni Proxy knows it to the microsecond.
    let said = context.omni.as_ref().and_then(|omni| omni.started(kind));
    let said = said.filter(|_| number == 0);
    let start = said.unwrap_or(note.start);
    let end = note.end.max(start);
    let mut attributes = Attributes::default();
    attributes.text(key!("http.request.method"), request.method());
    outcome::describe_address(&mut attributes, note.peer);
    let at_start = attributes.as_slice().len();

    let state = note.state;
    // Without an answer the status is nginx's own word to the client.
    let (status, error) = match state.status {
        status if state.header_time != ngx_msec_t::MAX => (status as i64, None),
        504 => (0, Some("timeout")),
        _ => (0, Some("upstream_error")),
    };
    outcome::describe_status(&mut attributes, request, status, error);
    outcome::describe_times(&mut attributes, state.connect_time, state.header_time);
    attributes.integer(key!("omnitrace.upstream.bytes_sent"), state.bytes_sent);
    attributes.integer(
        key!("omnitrace.upstream.bytes_received"),
        state.bytes_received,
    );
    let attributes = attributes.as_slice();
    let Some(known) = recorder.known(context) else {
        let (first, last) = attributes.split_at(at_start);
        recorder.action(context, kind.start(), start, number, first);
        return recorder.action(context, kind.finish(), end, number, last);
    };
    let call = Finished {
        occurrence: number,
        start,
        end,
        attributes,
    };
    recorder.call(known, context, kind, call);
}

/// Whether a request had any.
pub(crate) fn went_upstream(request: Request<'_>) -> bool {
    !notes(request).is_empty()
}

fn notes<'r>(request: Request<'r>) -> &'r [ngx_http_upstream_state_t] {
    // SAFETY: nginx's array of these, in the request's pool.
    unsafe {
        request
            .upstream_states
            .as_ref()
            .map(|notes| notes.as_slice())
    }
    .unwrap_or_default()
}

/// When the last try started: nginx has it on the clock that counts from boot.
fn last_start(request: Request<'_>, now: u64) -> Option<u64> {
    // SAFETY: the upstream, where there is one, lives as long as the request.
    let start = unsafe { request.upstream.as_ref() }?.start_time;
    // SAFETY: only nginx's own thread, this one, moves it.
    let passed = unsafe { ngx_current_msec }.wrapping_sub(start);
    Some(now.saturating_sub(passed as u64 * NANOS_PER_MILLI))
}
