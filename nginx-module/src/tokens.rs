//! Tokens of a streamed answer, seen on their way to the client.
//!
//! The filters stand before gzip and chunking, so the body's bytes are those of the
//! upstream, as they arrive.

use std::cell::UnsafeCell;

use nginx_sys::{
    NGX_HTTP_WRITE_BUFFERED, ngx_chain_t, ngx_http_output_body_filter_pt,
    ngx_http_output_header_filter_pt, ngx_http_request_t, ngx_http_top_body_filter,
    ngx_http_top_header_filter, ngx_int_t,
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
pub(crate) enum Tokens<'r> {
    /// Not this answer, or its head is not there yet.
    #[default]
    Ignored,
    /// The upstream has compressed the answer, in this coding.
    Unreadable(&'r str),
    /// Under way.
    Searched(Box<Search>),
}

/// What was found so far. Times are in nanoseconds since 1970.
pub(crate) struct Search {
    scanner: Scanner,
    is_stream: bool,
    /// The answer's head was there.
    head: u64,
    first: u64,
    last: u64,
    /// Longest time from one token to the next, in nanoseconds.
    longest_gap: u64,
    /// nginx has kept tokens back.
    delayed: bool,
}

impl Tokens<'_> {
    /// What the answer's tokens say about the request, which arrived at `arrived`.
    pub(crate) fn describe<'a>(&'a self, attributes: &mut Attributes<'a>, arrived: u64) {
        match self {
            Self::Ignored => {}
            Self::Unreadable(coding) => {
                attributes.text(key!("omnitrace.tokens.unreadable"), coding);
            }
            Self::Searched(search) => search.describe(attributes, arrived),
        }
    }
}

fn seconds(from: u64, to: u64) -> ValueRef<'static> {
    ValueRef::F64(to.saturating_sub(from) as f64 / 1e9)
}

impl Search {
    fn new(is_stream: bool) -> Self {
        Self {
            scanner: if is_stream {
                Scanner::new()
            } else {
                Scanner::document()
            },
            is_stream,
            head: clock::now(),
            first: 0,
            last: 0,
            longest_gap: 0,
            delayed: false,
        }
    }

    fn describe(&self, attributes: &mut Attributes<'_>, arrived: u64) {
        let head = seconds(arrived, self.head);
        attributes.push(key!("omnitrace.latency.first_byte"), head);
        let count = self.scanner.tokens();
        if self.is_stream {
            attributes.integer(key!("omnitrace.tokens.count"), count as i64);
        }
        if count > 0 {
            let last = seconds(arrived, self.last);
            attributes.push(key!("omnitrace.latency.last_token"), last);
        }
        if count > 1 {
            let mean = self.last.saturating_sub(self.first) as f64 / 1e9 / (count - 1) as f64;
            attributes.push(
                key!("gen_ai.server.time_per_output_token"),
                ValueRef::F64(mean),
            );
            attributes.push(
                key!("omnitrace.tokens.longest_gap"),
                seconds(0, self.longest_gap),
            );
        }
        if self.delayed {
            attributes.push(key!("omnitrace.tokens.delayed"), ValueRef::Bool(true));
        }
        if self.is_stream && self.scanner.has_error() {
            attributes.push(key!("omnitrace.tokens.error"), ValueRef::Bool(true));
        }
        let usage = self.scanner.usage();
        for (key, tokens) in [
            (key!("gen_ai.usage.input_tokens"), usage.input),
            (key!("gen_ai.usage.output_tokens"), usage.output),
        ] {
            if let Some(tokens) = tokens {
                attributes.integer(key, tokens as i64);
            }
        }
    }

    /// Looks at the next bytes and records the first tokens; how many there are in them.
    fn feed(&mut self, context: &RequestContext, recorder: &Recorder, bytes: &[u8]) -> u64 {
        let before = self.scanner.tokens();
        let found = self.scanner.feed(bytes);
        if found == 0 {
            return 0;
        }
        let now = clock::now();
        if before == 0 {
            self.first = now;
        } else {
            self.longest_gap = self.longest_gap.max(now.saturating_sub(self.last));
        }
        self.last = now;
        let first = usize::try_from(before).unwrap_or(usize::MAX);
        for action in actions::TOKENS.iter().skip(first).take(found as usize) {
            recorder.action(context, action, now, 0, &[]);
        }
        found
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
    let found = guard("the body filter", 0, || {
        // SAFETY: nginx calls filters with a live request.
        unsafe { Request::from_ptr(request) }.map_or(0, |request| search(request, chain))
    });
    // SAFETY: the filter that nginx would have called.
    let rc = unsafe { (*NEXT.body.get()).map_or(Status::NGX_OK.0, |next| next(request, chain)) };
    if found > 0 {
        guard("the body filter", (), || {
            // SAFETY: as above: a filter does not end the request.
            if let Some(request) = unsafe { Request::from_ptr(request) } {
                note_delay(request, found);
            }
        });
    }
    rc
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
    let is_document = is_of_type(content_type, b"application/json");
    let wanted = match LocationConfig::of(request).tokens() {
        TokenSearch::Off => false,
        TokenSearch::On => true,
        // nginx's own answers say nothing of tokens.
        TokenSearch::Auto => {
            (!request.upstream.is_null() || context.omni.is_some())
                && (is_document || is_of_type(content_type, b"text/event-stream"))
        }
    };
    if !wanted {
        return;
    }
    let coding = coding.filter(|coding| !coding.is_empty() && *coding != b"identity");
    *context.tokens.borrow_mut() = match coding {
        // What the upstream has compressed cannot be read in passing.
        Some(coding) => Tokens::Unreadable(request.text(coding)),
        None => Tokens::Searched(Box::new(Search::new(!is_document))),
    };
}

/// Whether a head's content type is this one, with parameters or without.
fn is_of_type(content_type: &[u8], wanted: &[u8]) -> bool {
    let Some((head, rest)) = content_type.split_at_checked(wanted.len()) else {
        return false;
    };
    head.eq_ignore_ascii_case(wanted) && matches!(rest.first(), None | Some(b';' | b' '))
}

/// Marks an answer whose tokens do not go on as they come: nginx collects what the upstream sends
/// (`proxy_buffering`), or has not been able to send it.
fn note_delay(request: Request<'_>, found: u64) {
    let Some(context) = RequestContext::of(request) else {
        return;
    };
    // SAFETY: a request has its connection, and its upstream lives as long as it.
    let (unsent, collects) = unsafe {
        let unsent = (*request.connection).buffered() & NGX_HTTP_WRITE_BUFFERED != 0;
        let upstream = request.upstream.as_ref();
        (unsent, upstream.is_some_and(|u| u.buffering() != 0))
    };
    if (unsent || collects && found > 1)
        && let Tokens::Searched(search) = &mut *context.tokens.borrow_mut()
    {
        search.delayed = true;
    }
}

/// Looks into a piece of an answer's body; how many tokens there are in it.
fn search(request: Request<'_>, chain: *mut ngx_chain_t) -> u64 {
    if !request.is_main() {
        return 0;
    }
    let (Some(context), Some(recorder)) = (RequestContext::of(request), Recorder::get()) else {
        return 0;
    };
    let mut tokens = context.tokens.borrow_mut();
    let Tokens::Searched(search) = &mut *tokens else {
        return 0;
    };
    let mut found = 0;
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
            found += search.feed(context, recorder, piece);
        }
        // SAFETY: as above.
        link = unsafe { here.next.as_ref() };
    }
    found
}
