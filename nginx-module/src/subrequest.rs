//! Subrequests that nginx answers itself: from a file, a cache, a `return` or another module.
//!
//! One that goes to an upstream is shown by its tries. nginx logs none of them, but tells whoever
//! made one that it is over: so does it tell us, and we tell whoever made it.

use std::ffi::c_void;

use nginx_sys::{ngx_http_post_subrequest_t, ngx_http_request_t, ngx_int_t, ngx_palloc};

use crate::actions;
use crate::clock;
use crate::context::{Hop, RequestContext};
use crate::finish;
use crate::guard::guard;
use crate::recorder::{Attributes, Recorder};
use crate::request::{OutOfMemory, Request, bytes};
use crate::upstream::states;

/// In the request's pool, in front of what is to be told.
struct Watch {
    ours: ngx_http_post_subrequest_t,
    /// Of the module that made the subrequest; NULL if it does not care.
    theirs: *mut ngx_http_post_subrequest_t,
}

/// A subrequest comes to its location, perhaps not for the first time.
pub(crate) fn enter(context: &RequestContext<'_>, request: Request<'_>) {
    let mut hop = context.hop(request);
    // Omni Proxy's go to its prefill nodes.
    if hop.entered == 0 && context.omni.is_none() && context.sampled.get() {
        hop.entered = clock::now();
        // Without memory it lasts until the request is over.
        let _ = watch(request);
    }
    context.set_hop(hop);
}

fn watch(request: Request<'_>) -> Result<(), OutOfMemory> {
    // SAFETY: the pool lives as long as the request, and aligns pointers; the request is live.
    unsafe {
        let place = ngx_palloc(request.pool, size_of::<Watch>()).cast::<Watch>();
        if place.is_null() {
            return Err(OutOfMemory);
        }
        place.write(Watch {
            ours: ngx_http_post_subrequest_t {
                handler: Some(over),
                data: place.cast(),
            },
            theirs: request.post_subrequest,
        });
        (*request.as_ptr()).post_subrequest = &raw mut (*place).ours;
    }
    Ok(())
}

/// nginx is done with a subrequest. It may say so again, after an error's page.
unsafe extern "C" fn over(
    request: *mut ngx_http_request_t,
    watch: *mut c_void,
    rc: ngx_int_t,
) -> ngx_int_t {
    guard("the end of a subrequest", (), || {
        // SAFETY: nginx calls with a live request.
        if let Some(request) = unsafe { Request::from_ptr(request) }
            && let Some(context) = RequestContext::of(request)
        {
            let hop = context.hop(request);
            let over = clock::now();
            context.set_hop(Hop { over, ..hop });
        }
    });
    // SAFETY: `watch` put it there; what it holds of another module lives as long as the request.
    unsafe {
        let theirs = (*watch.cast::<Watch>()).theirs.as_ref();
        match theirs.and_then(|theirs| Some((theirs.handler?, theirs.data))) {
            Some((handler, data)) => handler(request, data, rc),
            None => rc,
        }
    }
}

/// Records those of a request that went to no upstream.
pub(crate) fn record(context: &RequestContext<'_>, recorder: &Recorder, now: u64) {
    let mut number = 0;
    for hop in context.hops().filter(|hop| hop.entered > 0) {
        // SAFETY: subrequests live as long as the client's request, which is being logged.
        let Some(request) = (unsafe { Request::from_ptr(hop.request) }) else {
            continue;
        };
        if states::went_upstream(request) {
            continue;
        }
        let mut attributes = Attributes::default();
        describe(&mut attributes, request);
        let end = if hop.over == 0 { now } else { hop.over };
        let end = end.max(hop.entered);
        let (start, attributes) = (hop.entered, attributes.as_slice());
        recorder.action(context, actions::START_SUBREQUEST, start, number, &[]);
        recorder.action(context, actions::FINISH_SUBREQUEST, end, number, attributes);
        number = number.saturating_add(1);
    }
}

fn describe<'r>(attributes: &mut Attributes<'r>, request: Request<'r>) {
    attributes.text(key!("http.request.method"), request.method());
    // SAFETY: it is in the request's buffers or its pool.
    let path = unsafe { bytes(request.uri) };
    attributes.text(key!("url.path"), request.text(path));
    attributes.text(key!("http.route"), request.text(request.location()));
    attributes.text(
        key!("omnitrace.cache.status"),
        finish::cache_status(request),
    );
    finish::describe_status(attributes, request);
}
