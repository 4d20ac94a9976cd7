//! Tokens of a streamed answer, seen on their way to the client.
//!
//! The filters stand before gzip and chunking, so the body's bytes are those of the
//! upstream, as they arrive.

use std::cell::UnsafeCell;

use nginx_sys::{
    ngx_chain_t, ngx_http_output_body_filter_pt, ngx_http_output_header_filter_pt,
    ngx_http_request_t, ngx_http_top_body_filter, ngx_http_top_header_filter, ngx_int_t,
};
use ngx::core::Status;
use omnitrace::ValueRef;
use omnitrace::sse::Scanner;

use crate::actions;
use crate::clock;
use crate::conf::location::{LocationConfig, TokenSearch};
use crate::context::RequestContext;
use crate::guard::guard;
use crate::headers::{self, CONTENT_TYPE};
use crate::recorder::{Attributes, Recorder};
use crate::request::{Request, bytes};

/// The search for tokens in one answer.
#[derive(Default)]
pub(crate) enum Tokens {
    /// Not this answer, or its head is not there yet.
    #[default]
    Ignored,
    /// Under way.
    Searched(Box<Search>),
}

/// What was found so far.
#[derive(Default)]
pub(crate) struct Search {
    scanner: Scanner,
    /// Nanoseconds since 1970.
    first: u64,
    /// Nanoseconds since 1970.
    last: u64,
}

impl Tokens {
    /// What the answer's tokens say about the request, which arrived at `arrived`.
    pub(crate) fn describe(&self, attributes: &mut Attributes<'_>, arrived: u64) {
        let Self::Searched(search) = self else { return };
        let count = search.scanner.tokens();
        attributes.integer("omnitrace.tokens.count", count as i64);
        if count > 0 {
            let last = seconds(arrived, search.last);
            attributes.push("omnitrace.latency.last_token", ValueRef::F64(last));
        }
        if count > 1 {
            let mean = seconds(search.first, search.last) / (count - 1) as f64;
            attributes.push("gen_ai.server.time_per_output_token", ValueRef::F64(mean));
        }
        let usage = search.scanner.usage();
        for (key, tokens) in [
            ("gen_ai.usage.input_tokens", usage.input),
            ("gen_ai.usage.output_tokens", usage.output),
        ] {
            if let Some(tokens) = tokens {
                attributes.integer(key, tokens as i64);
            }
        }
    }
}

fn seconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e9
}

impl Search {
    /// Looks at the next bytes and records the first tokens.
    fn feed(&mut self, context: &RequestContext, recorder: &Recorder, bytes: &[u8]) {
        let before = self.scanner.tokens();
        if self.scanner.feed(bytes) == 0 {
            return;
        }
        let now = clock::now();
        self.last = now;
        if before == 0 {
            self.first = now;
        }
        let new = before as usize..self.scanner.tokens() as usize;
        for (_, action) in actions::TOKENS
            .iter()
            .enumerate()
            .filter(|(at, _)| new.contains(at))
        {
            recorder.action(context, action, now, 0, &[]);
        }
    }
}

/// The filters that come after ours. nginx builds its chains anew with each configuration, in the
/// process that will fork the workers.
struct NextFilters {
    header: UnsafeCell<ngx_http_output_header_filter_pt>,
    body: UnsafeCell<ngx_http_output_body_filter_pt>,
}

// SAFETY: only nginx's own thread touches it.
unsafe impl Sync for NextFilters {}

static NEXT: NextFilters = NextFilters {
    header: UnsafeCell::new(None),
    body: UnsafeCell::new(None),
};

/// Puts our filters before those that are there.
pub(crate) fn insert_filters() {
    // SAFETY: called while nginx reads its configuration, on its only thread.
    unsafe {
        *NEXT.header.get() = ngx_http_top_header_filter;
        ngx_http_top_header_filter = Some(header_filter);
        *NEXT.body.get() = ngx_http_top_body_filter;
        ngx_http_top_body_filter = Some(body_filter);
    }
}

unsafe extern "C" fn header_filter(request: *mut ngx_http_request_t) -> ngx_int_t {
    guard("the header filter", (), || {
        // SAFETY: nginx calls filters with a live request.
        if let Some(request) = unsafe { Request::from_ptr(request) } {
            start_search(request);
        }
    });
    // SAFETY: the filter that nginx would have called.
    unsafe { (*NEXT.header.get()).map_or(Status::NGX_OK.0, |next| next(request)) }
}

unsafe extern "C" fn body_filter(
    request: *mut ngx_http_request_t,
    chain: *mut ngx_chain_t,
) -> ngx_int_t {
    guard("the body filter", (), || {
        // SAFETY: nginx calls filters with a live request.
        if let Some(request) = unsafe { Request::from_ptr(request) } {
            search(request, chain);
        }
    });
    // SAFETY: the filter that nginx would have called.
    unsafe { (*NEXT.body.get()).map_or(Status::NGX_OK.0, |next| next(request, chain)) }
}

/// Decides by an answer's head whether to look into its body.
fn start_search(request: Request<'_>) {
    if !request.is_main() {
        return;
    }
    let Some(context) = RequestContext::of(request).filter(|context| context.sampled.get()) else {
        return;
    };
    // SAFETY: the head is complete and in the request's pool.
    let (content_type, coding) = unsafe {
        let head = &request.headers_out;
        (
            bytes(head.content_type),
            head.content_encoding.as_ref().map(|h| bytes(h.value)),
        )
    };
    // Omni Proxy passes the upstream's head on as it is.
    let content_type = match content_type {
        [] => headers::answered(request, &CONTENT_TYPE).unwrap_or_default(),
        known => known,
    };
    let wanted = match LocationConfig::of(request).tokens() {
        TokenSearch::Off => false,
        TokenSearch::On => true,
        TokenSearch::Auto => is_event_stream(content_type),
    };
    // What the upstream has compressed cannot be read in passing.
    if wanted && coding.is_none_or(|coding| coding.is_empty() || coding == b"identity") {
        *context.tokens.borrow_mut() = Tokens::Searched(Box::default());
    }
}

fn is_event_stream(content_type: &[u8]) -> bool {
    const EVENT_STREAM: &[u8] = b"text/event-stream";
    let Some(head) = content_type.get(..EVENT_STREAM.len()) else {
        return false;
    };
    let rest = &content_type[EVENT_STREAM.len()..];
    head.eq_ignore_ascii_case(EVENT_STREAM) && matches!(rest.first(), None | Some(b';' | b' '))
}

/// Looks into a piece of an answer's body.
fn search(request: Request<'_>, chain: *mut ngx_chain_t) {
    if !request.is_main() {
        return;
    }
    let Some(context) = RequestContext::of(request) else {
        return;
    };
    let Some(recorder) = Recorder::get() else {
        return;
    };
    let mut tokens = context.tokens.borrow_mut();
    let Tokens::Searched(search) = &mut *tokens else {
        return;
    };
    // SAFETY: nginx ends its chain of buffers with NULL.
    let mut link = unsafe { chain.as_ref() };
    while let Some(here) = link {
        // SAFETY: each link has a buffer.
        let buffer = unsafe { &*here.buf };
        let in_memory = buffer.memory() | buffer.temporary() | buffer.mmap() != 0;
        if in_memory && buffer.pos < buffer.last {
            // SAFETY: a buffer in memory has its bytes from `pos` to `last`.
            let piece = unsafe {
                let length = buffer.last.offset_from(buffer.pos) as usize;
                std::slice::from_raw_parts(buffer.pos, length)
            };
            search.feed(context, recorder, piece);
        }
        // SAFETY: as above.
        link = unsafe { here.next.as_ref() };
    }
}
