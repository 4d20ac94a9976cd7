//! Subrequests that nginx answers itself: from a file, a cache, a `return` or another module.
//!
//! One that goes to an upstream is shown by its tries. nginx logs none of them, but tells whoever
//! made one that it is over: so does it tell us, and we tell whoever made it.

use std::cell::Cell;
use std::ffi::c_void;

use nginx_sys::{ngx_http_post_subrequest_t, ngx_http_request_t, ngx_int_t, ngx_palloc};

use crate::actions;
use crate::clock;
use crate::context::RequestContext;
use crate::finish;
use crate::guard::guard;
use crate::recorder::{Attributes, Recorder};
use crate::request::{Request, bytes};
use crate::upstream::states;

/// In the subrequest's pool, in front of what is to be told.
pub(crate) struct Watch {
    ours: ngx_http_post_subrequest_t,
    /// Of the module that made the subrequest; NULL if it does not care.
    theirs: *mut ngx_http_post_subrequest_t,
    /// When it came to its location, in nanoseconds since 1970.
    entered: u64,
    /// When it was over, likewise; 0 until then.
    over: Cell<u64>,
}

/// A subrequest comes to its location, perhaps not for the first time.
pub(crate) fn enter(context: &RequestContext<'_>, request: Request<'_>) {
    let mut hop = context.hop(request);
    // Omni Proxy's go to its prefill nodes.
    if hop.watch.is_null() && context.omni.is_none() && context.sampled.get() {
        hop.watch = watch(request);
    }
    context.set_hop(hop);
}

/// NULL without memory.
fn watch(request: Request<'_>) -> *const Watch {
    // SAFETY: the pool lives as long as the request, and aligns pointers; the request is live.
    unsafe {
        let place = ngx_palloc(request.pool, size_of::<Watch>()).cast::<Watch>();
        if place.is_null() {
            return place;
        }
        place.write(Watch {
            ours: ngx_http_post_subrequest_t {
                handler: Some(over),
                data: place.cast(),
            },
            theirs: request.post_subrequest,
            entered: clock::now(),
            over: Cell::new(0),
        });
        (*request.as_ptr()).post_subrequest = &raw mut (*place).ours;
        place
    }
}

/// nginx is done with a subrequest. It may say so again, after an error's page.
unsafe extern "C" fn over(
    request: *mut ngx_http_request_t,
    watch: *mut c_void,
    rc: ngx_int_t,
) -> ngx_int_t {
    // SAFETY: `watch` put it there; what it holds of another module lives as long as the request.
    unsafe {
        let watch = &*watch.cast::<Watch>();
        guard("the end of a subrequest", (), || {
            watch.over.set(clock::now())
        });
        match watch
            .theirs
            .as_ref()
            .and_then(|theirs| Some((theirs.handler?, theirs.data)))
        {
            Some((handler, data)) => handler(request, data, rc),
            None => rc,
        }
    }
}

/// Records those of a request that went to no upstream.
pub(crate) fn record(context: &RequestContext<'_>, recorder: &Recorder, now: u64) {
    let mut number = 0;
    for hop in context.hops() {
        // SAFETY: subrequests live as long as the client's request, which is being logged.
        let found = unsafe { (hop.watch.as_ref(), Request::from_ptr(hop.request)) };
        let (Some(watch), Some(request)) = found else {
            continue;
        };
        if states::went_upstream(request) {
            continue;
        }
        let mut attributes = Attributes::default();
        describe(&mut attributes, request);
        let (start, attributes) = (watch.entered, attributes.as_slice());
        let end = match watch.over.get() {
            0 => now.max(start),
            over => over.max(start),
        };
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
