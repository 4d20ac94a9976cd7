//! The rewrite phase: a request is taken into its trace.
//!
//! The handler runs again after each internal redirect and for each subrequest, always with the
//! configuration of the location at hand.

use nginx_sys::{ngx_http_request_t, ngx_int_t};
use ngx::core::Status;

use crate::conf::location::{LocationConfig, Trace};
use crate::context::RequestContext;
use crate::guard::guard;
use crate::recorder::Recorder;
use crate::request::Request;
use crate::subrequest;

/// Handler of the rewrite phase.
pub(crate) unsafe extern "C" fn handler(request: *mut ngx_http_request_t) -> ngx_int_t {
    guard("the rewrite phase", (), || {
        // SAFETY: nginx calls phase handlers with a live request.
        if let Some(request) = unsafe { Request::from_ptr(request) } {
            enter(request);
        }
    });
    Status::NGX_DECLINED.0
}

fn enter(request: Request<'_>) {
    let conf = LocationConfig::of(request);
    if matches!(conf.trace(), Trace::Off) || Recorder::get().is_none() {
        return;
    }
    if let Some(context) = RequestContext::of_or_new(request, conf)
        && !request.is_main()
    {
        subrequest::enter(context, request);
    }
}
