//! The preaccess phase: a request's headers tell the upstream of its trace.
//!
//! The location is certain by then, and what nginx answers in the rewrite phase never gets here:
//! it has no upstream to be told. The handler runs again after each internal redirect and for each
//! subrequest.

use nginx_sys::{ngx_http_request_t, ngx_int_t};
use ngx::core::Status;
use omnitrace::SpanContext;
use omnitrace::propagation::Propagated;
use smallvec::SmallVec;

use crate::conf::location::{LocationConfig, Trace};
use crate::context::{Announced, Hop, RequestContext};
use crate::guard::guard;
use crate::headers::{self, HeaderName, TTFT_TRACEPARENT};
use crate::omni_proxy;
use crate::recorder::Recorder;
use crate::request::{OutOfMemory, Request};

/// Handler of the preaccess phase.
pub(crate) unsafe extern "C" fn handler(request: *mut ngx_http_request_t) -> ngx_int_t {
    guard("the preaccess phase", (), || {
        // SAFETY: nginx calls phase handlers with a live request.
        if let Some(request) = unsafe { Request::from_ptr(request) } {
            prepare(request);
        }
    });
    Status::NGX_DECLINED.0
}

fn prepare(request: Request<'_>) {
    let conf = LocationConfig::of(request);
    // Without a handler of its own the location has files, and no upstream.
    if matches!(conf.trace(), Trace::Off)
        || !conf.context().inject
        || request.content_handler.is_none()
    {
        return;
    }
    let (Some(recorder), Some(context)) = (Recorder::get(), RequestContext::of(request)) else {
        return;
    };
    let mut hop = context.hop(request);
    // Without memory the upstream gets the old header: a gap in the trace, no more.
    let _ = announce(request, recorder, context, conf, &mut hop);
    context.set_hop(hop);
}

/// Writes the headers that announce this request's first try to the upstream.
fn announce(
    request: Request<'_>,
    recorder: &Recorder,
    context: &RequestContext,
    conf: &LocationConfig,
    hop: &mut Hop,
) -> Result<(), OutOfMemory> {
    let kind = context.upstream_role(request, conf);
    if hop
        .announced
        .is_some_and(|announced| announced.kind == kind)
    {
        return Ok(());
    }
    if !hop.owns_headers {
        headers::unshare(request)?;
        hop.owns_headers = true;
    }
    if let Some(other) = hop.announced.take() {
        context.give_back(other.kind, other.number);
    }
    let parent = match context.remote {
        // There will be no span here to be a parent.
        Some(remote) if !context.sampled.get() => remote.span_id,
        _ => {
            let number = context.number(kind);
            let span = context.try_span(recorder, kind, number);
            hop.announced = Some(Announced { kind, number, span });
            span
        }
    };
    let announced = Propagated {
        context: Some(SpanContext {
            trace_id: context.trace_id,
            span_id: parent,
            flags: context.flags(),
        }),
        debug: context.debug,
        ..Propagated::default()
    };
    let mut written = SmallVec::<[_; 4]>::new();
    recorder.propagators().inject(&announced, |name, value| {
        written.push((name, request.copy(value.as_bytes())));
    });
    for &name in recorder.propagators().fields() {
        // What the caller passes on goes on, but for the state of a trace that is not continued
        // here (W3C Trace Context, section 3.3).
        let passes = name == "baggage" || name == "tracestate" && context.remote.is_some();
        let Some(header) = HeaderName::of_context(name).filter(|_| !passes) else {
            continue;
        };
        match written.iter().position(|(known, _)| *known == name) {
            Some(at) => {
                let value = written.swap_remove(at).1?;
                headers::set(request, header, value)?;
                // Omni Proxy's copy of the context that it has made up.
                if name == "traceparent" && request.is_main() && has_made_up_copy(request, context)
                {
                    headers::set(request, &TTFT_TRACEPARENT, value)?;
                }
            }
            // Another spelling of the caller's own span.
            None => headers::remove(request, header)?,
        }
    }
    Ok(())
}

/// Whether the copy that Omni Proxy has put beside the context is of one that it has made up,
/// before this module saw the request or after.
fn has_made_up_copy(request: Request<'_>, context: &RequestContext) -> bool {
    let copy = || {
        SpanContext::parse(
            headers::find(request, &TTFT_TRACEPARENT)
                .next()?
                .value
                .as_bytes(),
        )
    };
    let omni = context.omni.as_ref();
    omni.is_some_and(|omni| omni.had_made_context || copy().is_some_and(omni_proxy::has_made))
}
