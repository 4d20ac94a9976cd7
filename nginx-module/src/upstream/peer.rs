//! The tries of one upstream exchange, recorded while they happen.

use std::ffi::c_void;
use std::ptr;

use nginx_sys::{
    NGX_PEER_FAILED, ngx_event_free_peer_pt, ngx_event_get_peer_pt, ngx_event_notify_peer_pt,
    ngx_http_request_t, ngx_http_upstream_t, ngx_int_t, ngx_palloc, ngx_peer_connection_t,
    ngx_uint_t,
};
#[cfg(any(ngx_feature = "ssl", ngx_feature = "compat"))]
use nginx_sys::{ngx_event_save_peer_session_pt, ngx_event_set_peer_session_pt};
use ngx::core::Status;
use omnitrace::id::SpanId;
use omnitrace::{KeyRef, ValueRef};

use crate::actions::Try;
use crate::clock;
use crate::conf::location::{LocationConfig, Trace};
use crate::context::{Announced, Hop, RequestContext, named_by_header};
use crate::guard::guard;
use crate::recorder::{Attributes, Finished, Recorder};
use crate::request::{Request, bytes};
use crate::upstream::{outcome, states};

/// Stands in front of a balancer: nginx asks it for peers, and it asks the balancer.
#[repr(C)]
pub(crate) struct TracedPeer {
    request: *mut ngx_http_request_t,
    upstream: *mut ngx_http_upstream_t,
    /// What nginx would have called, and with what.
    data: *mut c_void,
    get: ngx_event_get_peer_pt,
    free: ngx_event_free_peer_pt,
    notify: ngx_event_notify_peer_pt,
    #[cfg(any(ngx_feature = "ssl", ngx_feature = "compat"))]
    set_session: ngx_event_set_peer_session_pt,
    #[cfg(any(ngx_feature = "ssl", ngx_feature = "compat"))]
    save_session: ngx_event_save_peer_session_pt,

    kind: Try,
    /// Number of the current try.
    number: u16,
    /// Tries of this exchange so far.
    tries: u16,
    /// When the try started that has not ended, in nanoseconds since 1970.
    open: Option<u64>,
    /// The span id that the request as written names.
    written: Option<SpanId>,
}

/// Puts a [`TracedPeer`] in front of the balancer that was prepared for a request.
pub(crate) fn trace(request: Request<'_>) {
    let conf = LocationConfig::of(request);
    let Some(context) = RequestContext::of(request).filter(|context| context.sampled.get()) else {
        return;
    };
    if Recorder::get().is_none() || matches!(conf.trace(), Trace::Off) {
        return;
    }
    let upstream = request.upstream;
    // SAFETY: the pool is live; nginx's allocations suit any type of at most a pointer's alignment.
    let traced = unsafe { ngx_palloc(request.pool, size_of::<TracedPeer>()) }.cast::<TracedPeer>();
    if traced.is_null() {
        return;
    }
    // SAFETY: the request has the upstream that its peers were just prepared for.
    let peer = unsafe { &mut (*upstream).peer };
    let value = TracedPeer {
        request: request.as_ptr(),
        upstream,
        data: peer.data,
        get: peer.get,
        free: peer.free,
        notify: peer.notify,
        #[cfg(any(ngx_feature = "ssl", ngx_feature = "compat"))]
        set_session: peer.set_session,
        #[cfg(any(ngx_feature = "ssl", ngx_feature = "compat"))]
        save_session: peer.save_session,
        kind: context.upstream_role(request, conf),
        number: 0,
        tries: 0,
        open: None,
        written: None,
    };
    // SAFETY: fresh memory of the right size.
    unsafe { traced.write(value) };
    context.peers.borrow_mut().push(traced);

    peer.data = traced.cast();
    peer.get = Some(get);
    peer.free = Some(free);
    peer.notify = peer.notify.and(Some(notify));
    #[cfg(any(ngx_feature = "ssl", ngx_feature = "compat"))]
    {
        peer.set_session = peer.set_session.and(Some(set_session));
        peer.save_session = peer.save_session.and(Some(save_session));
    }
}

const _: () = assert!(align_of::<TracedPeer>() <= nginx_sys::NGX_ALIGNMENT);

impl TracedPeer {
    /// A try starts: the balancer has chosen.
    fn start(&mut self, peer: &ngx_peer_connection_t, time: u64) {
        // SAFETY: nginx asks for peers of live requests only.
        let Some(request) = (unsafe { Request::from_ptr(self.request) }) else {
            return;
        };
        let Some(context) = RequestContext::of(request) else {
            return;
        };
        let Some(recorder) = Recorder::get() else {
            return;
        };
        self.finish_at(peer, time, false);
        self.take_number(context, recorder, request);
        self.open = Some(time);
        self.tries = self.tries.saturating_add(1);
        states::cover(context, request, time);
        // Of most requests a try is recorded when it is over.
        if recorder.known(context).is_none() {
            self.say(context, recorder);
        }
    }

    /// Records that the current try has started.
    pub(crate) fn say(&self, context: &RequestContext, recorder: &Recorder) {
        // SAFETY: nginx's tries are of live requests; the upstream lives as long as the request.
        let (request, peer) = unsafe {
            let peer = ptr::addr_of!((*self.upstream).peer).as_ref();
            (Request::from_ptr(self.request), peer)
        };
        if let (Some(time), Some(request), Some(peer)) = (self.open, request, peer) {
            let mut attributes = Attributes::default();
            self.describe(&mut attributes, request, peer);
            recorder.action(
                context,
                self.kind.start(),
                time,
                self.number,
                attributes.as_slice(),
            );
        }
    }

    /// What is known of the current try when it starts.
    fn describe<'r>(
        &self,
        attributes: &mut Attributes<'r>,
        request: Request<'r>,
        peer: &ngx_peer_connection_t,
    ) {
        // SAFETY: nginx gives each peer a name, which lives as long as the try.
        let name = unsafe { peer.name.as_ref().map(|name| bytes(*name)) }.unwrap_or_default();
        attributes.text(key!("http.request.method"), request.method());
        outcome::describe_address(attributes, request.text(name));
        if self.tries > 1 {
            let resent = self.tries - 1;
            attributes.integer(key!("http.request.resend_count"), resent.into());
        }
    }

    /// The first try is the one that the request's header announces; each further one gets its
    /// own number, and its id in the request as written.
    fn take_number(&mut self, context: &RequestContext, recorder: &Recorder, request: Request<'_>) {
        if self.tries == 0 {
            let hop = context.hop(request);
            if let Some(Announced { kind, number, span }) = hop.announced {
                context.set_hop(Hop {
                    announced: None,
                    ..hop
                });
                (self.kind, self.number) = (kind, number);
                self.written = Some(span);
                return;
            }
            // A clone of its parent (slices, a cache's update) still names the parent's try.
            self.written = named_by_header(request, recorder)
                .context
                .filter(|named| named.trace_id == context.trace_id)
                .filter(|named| context.remote_span() != Some(named.span_id))
                .map(|named| named.span_id);
        }
        self.number = context.number(self.kind);
        if let Some(written) = self.written {
            let span = context.try_span(recorder, self.kind, self.number);
            let (old, new) = (written.to_string(), span.to_string());
            // SAFETY: the request's buffers belong to this exchange, and nginx is not writing now.
            if unsafe { replace(self.upstream, old.as_bytes(), new.as_bytes()) } {
                self.written = Some(span);
            }
        }
    }

    /// The current try ends.
    fn finish_at(&mut self, peer: &ngx_peer_connection_t, time: u64, failed: bool) {
        let Some(start) = self.open.take() else {
            return;
        };
        // SAFETY: nginx ends tries of live requests only.
        let Some(request) = (unsafe { Request::from_ptr(self.request) }) else {
            return;
        };
        let Some(context) = RequestContext::of(request) else {
            return;
        };
        let Some(recorder) = Recorder::get() else {
            return;
        };
        let mut attributes = Attributes::default();
        // SAFETY: the upstream lives as long as the request.
        let upstream = unsafe { &*self.upstream };
        let known = recorder.known(context);
        if known.is_some() {
            self.describe(&mut attributes, request, peer);
        }
        outcome::describe(&mut attributes, request, upstream, peer, failed);
        self.finish(context, recorder, [start, time], attributes.as_slice());
    }

    /// Records that a try is over; one that is recorded at once has all its attributes here.
    fn finish(
        &self,
        context: &RequestContext,
        recorder: &Recorder,
        [start, end]: [u64; 2],
        attributes: &[(KeyRef<'_>, ValueRef<'_>)],
    ) {
        let Some(known) = recorder.known(context) else {
            return recorder.action(context, self.kind.finish(), end, self.number, attributes);
        };
        let call = Finished {
            occurrence: self.number,
            start,
            end,
            attributes,
        };
        recorder.call(known, context, self.kind, call);
    }

    /// The balancer had no server that it may ask.
    fn finish_without_peer(&mut self, peer: &ngx_peer_connection_t, time: u64) {
        let Some(start) = self.open.take() else {
            return;
        };
        // SAFETY: nginx asks for peers of live requests only.
        let Some(request) = (unsafe { Request::from_ptr(self.request) }) else {
            return;
        };
        if let (Some(context), Some(recorder)) = (RequestContext::of(request), Recorder::get()) {
            let mut attributes = Attributes::default();
            if recorder.known(context).is_some() {
                self.describe(&mut attributes, request, peer);
            }
            attributes.text(key!("error.type"), "no_live_upstreams");
            self.finish(context, recorder, [start, time], attributes.as_slice());
        }
    }

    /// The request is over: no try goes on.
    pub(crate) fn close(&mut self, time: u64) {
        // SAFETY: the upstream lives as long as the request.
        let peer = unsafe { ptr::addr_of!((*self.upstream).peer).as_ref() };
        if let Some(peer) = peer {
            self.finish_at(peer, time, true);
        }
    }
}

/// Replaces every occurrence of `old` in the head of the request as it goes upstream by `new` of
/// the same length: each format names the span. A protocol that does not write headers as text
/// has none.
///
/// # Safety
/// The upstream is live, and nothing reads its request's buffers meanwhile.
unsafe fn replace(upstream: *mut ngx_http_upstream_t, old: &[u8], new: &[u8]) -> bool {
    // SAFETY: by contract; nginx makes the first buffer for the head, from `start` to `last`.
    let head = unsafe {
        let Some(link) = (*upstream).request_bufs.as_ref() else {
            return false;
        };
        let Some(buffer) = link.buf.as_ref() else {
            return false;
        };
        if buffer.temporary() == 0 || buffer.start.is_null() || buffer.last < buffer.start {
            return false;
        }
        let length = buffer.last.offset_from(buffer.start) as usize;
        std::slice::from_raw_parts_mut(buffer.start, length)
    };
    let mut rest = head;
    let mut found = false;
    while let Some(at) = rest.windows(old.len()).position(|window| window == old) {
        let (name, after) = rest[at..].split_at_mut(old.len());
        name.copy_from_slice(new);
        rest = after;
        found = true;
    }
    found
}

unsafe extern "C" fn get(peer: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    let traced = data.cast::<TracedPeer>();
    let time = clock::now();
    // SAFETY: nginx hands back what `trace` put there; this is the call it would have made.
    let rc = unsafe {
        match (*traced).get {
            Some(get) => get(peer, (*traced).data),
            None => return Status::NGX_ERROR.0,
        }
    };
    if rc != Status::NGX_ERROR.0 {
        // SAFETY: as above; nothing else uses the two meanwhile.
        guard("the start of an upstream try", (), || unsafe {
            (*traced).start(&*peer, time);
            if rc == Status::NGX_BUSY.0 {
                (*traced).finish_without_peer(&*peer, time);
            }
        });
    }
    rc
}

unsafe extern "C" fn free(peer: *mut ngx_peer_connection_t, data: *mut c_void, state: ngx_uint_t) {
    let traced = data.cast::<TracedPeer>();
    let failed = state & NGX_PEER_FAILED as ngx_uint_t != 0;
    // Before the balancer: it may put the connection away.
    guard("the end of an upstream try", (), || {
        // SAFETY: nginx hands back what `trace` put there.
        unsafe { (*traced).finish_at(&*peer, clock::now(), failed) };
    });
    // SAFETY: as above; this is the call that nginx would have made.
    unsafe {
        if let Some(free) = (*traced).free {
            free(peer, (*traced).data, state);
        }
    }
}

unsafe extern "C" fn notify(peer: *mut ngx_peer_connection_t, data: *mut c_void, kind: ngx_uint_t) {
    let traced = data.cast::<TracedPeer>();
    // SAFETY: as in `free`.
    unsafe {
        if let Some(notify) = (*traced).notify {
            notify(peer, (*traced).data, kind);
        }
    }
}

#[cfg(any(ngx_feature = "ssl", ngx_feature = "compat"))]
unsafe extern "C" fn set_session(peer: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    let traced = data.cast::<TracedPeer>();
    // SAFETY: as in `free`.
    unsafe {
        (*traced)
            .set_session
            .map_or(Status::NGX_OK.0, |set| set(peer, (*traced).data))
    }
}

#[cfg(any(ngx_feature = "ssl", ngx_feature = "compat"))]
unsafe extern "C" fn save_session(peer: *mut ngx_peer_connection_t, data: *mut c_void) {
    let traced = data.cast::<TracedPeer>();
    // SAFETY: as in `free`.
    unsafe {
        if let Some(save) = (*traced).save_session {
            save(peer, (*traced).data);
        }
    }
}
