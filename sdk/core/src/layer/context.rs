//! The way of a trace into a service and out of it.

use tracing::{Dispatch, Span};

use crate::carry::Passing;
use crate::context::SpanContext;

use super::Layer;
use super::open::OpenSpan;

/// Why a span has not got another parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SetParentError {
    /// It is recorded by no layer of ours: there is none, or it is filtered out.
    #[error(
        "the span is not recorded: is `omnitrace::layer()` in the subscriber, and does its filter let the span through?"
    )]
    NotRecorded,
    /// Its children, or another process, know it where it is.
    #[error("the span has been passed on already: set its parent before it has children")]
    TooLate,
}

/// Has `f` look at a span of ours, with its layer.
fn with<T>(span: &Span, f: impl FnOnce(&Layer, &OpenSpan) -> T) -> Option<T> {
    let found = span.with_subscriber(|(id, dispatch)| {
        let layer = dispatch.downcast_ref::<Layer>()?;
        layer.spans.get(id).map(|span| f(layer, span))
    });
    found.flatten()
}

/// Hangs a span under its caller's, by the headers that came with a request; `get` has
/// the value of a header by its lower-case name, and none for one that came twice. What
/// is read is up to `OTEL_PROPAGATORS`. To be called before the span has children. The
/// caller's context; None: no caller has said anything valid, or the span is not
/// recorded.
///
/// ```
/// # use std::collections::HashMap;
/// # let headers: HashMap<&str, String> = HashMap::new();
/// let span = tracing::info_span!("GET /cart", otel.kind = "server");
/// omnitrace::layer::extract(&span, |name| headers.get(name).map(String::as_str));
/// ```
pub fn extract<'a>(span: &Span, get: impl Fn(&str) -> Option<&'a str>) -> Option<SpanContext> {
    let found = with(span, |layer, span| {
        let recorder = layer.process.recorder()?;
        let propagated = recorder.propagators().extract(get);
        let caller = propagated.decided(recorder.sampler());
        let passing = Some(Passing::of(&propagated)).filter(|passing| !passing.is_nothing());
        hang_under(span, caller, passing).then_some(caller)?
    });
    found.flatten()
}

/// Writes the headers that a span's callee is to get, those that `OTEL_PROPAGATORS`
/// names; none if the span is not recorded.
///
/// ```
/// # use std::collections::HashMap;
/// let span = tracing::info_span!("POST /pay", otel.kind = "client");
/// let mut headers = HashMap::new();
/// omnitrace::layer::inject(&span, |name, value| {
///     headers.insert(name, value.to_owned());
/// });
/// ```
pub fn inject(span: &Span, set: impl FnMut(&'static str, &str)) {
    with(span, |layer, span| {
        let (context, passing) = (span.context(), span.passing().unwrap_or_default());
        if let Some(recorder) = layer.process.recorder() {
            recorder.propagators().inject(&passing.with(context), set);
        }
    });
}

/// Hangs a span under one of another process, however its context came. To be called
/// before the span has children.
///
/// ```
/// # use omnitrace::SpanContext;
/// # let message = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let span = tracing::info_span!("receive", otel.kind = "consumer");
/// if let Some(sender) = SpanContext::parse(message.as_bytes()) {
///     // An error means that the span is filtered out: nothing is missing then.
///     let _ = omnitrace::layer::set_parent(&span, sender);
/// }
/// ```
pub fn set_parent(span: &Span, parent: SpanContext) -> Result<(), SetParentError> {
    match with(span, |_, span| hang_under(span, Some(parent), None)) {
        Some(true) => Ok(()),
        Some(false) => Err(SetParentError::TooLate),
        None => Err(SetParentError::NotRecorded),
    }
}

/// False: it is too late.
fn hang_under(span: &OpenSpan, parent: Option<SpanContext>, passing: Option<Passing>) -> bool {
    let Some(own) = span.own_context() else {
        return false;
    };
    let mut recording = span.lock();
    if let Some(parent) = parent {
        let span_id = own.span_id;
        if !span.set_context(&mut recording, &SpanContext { span_id, ..parent }) {
            return false;
        }
        recording.parent = Some(parent.span_id);
        recording.parent_is_remote = true;
    }
    span.set_passing(&mut recording, passing);
    true
}

/// The context of a span, as its callees are to get it. None: it is not recorded.
///
/// ```
/// let span = tracing::info_span!("POST /pay", otel.kind = "client");
/// if let Some(context) = omnitrace::layer::context_of(&span) {
///     let header = ("traceparent", context.traceparent());
/// #   drop(header);
/// }
/// ```
pub fn context_of(span: &Span) -> Option<SpanContext> {
    with(span, |_, span| span.context()).flatten()
}

/// The context of the innermost span that this thread is in and that is recorded.
///
/// ```
/// tracing::info_span!("handle").in_scope(|| {
///     let traceparent = omnitrace::layer::current().map(|context| context.traceparent());
/// #   assert_eq!(traceparent, None);
/// });
/// ```
pub fn current() -> Option<SpanContext> {
    tracing::dispatcher::get_default(|dispatch: &Dispatch| {
        dispatch.downcast_ref::<Layer>()?.current()?.context()
    })
}
