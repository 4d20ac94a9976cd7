//! The span that a new span hangs under, and span contexts from and to Python.

use std::sync::Arc;

use omnitrace::SpanContext;
use omnitrace::id::{SpanId, TraceId};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::attributes::text;

use super::api::{Api, api};
use super::mistakes::Mistake;
use super::span::Span;
use super::unsampled::Unsampled;

/// A context of which a span is made.
pub(crate) struct Parent {
    pub(crate) context: SpanContext,
    /// It came with a call from another process.
    pub(crate) remote: bool,
    pub(crate) trace_state: Option<TraceState>,
}

/// W3C `tracestate` that is not empty; spans of a trace share it.
#[derive(Clone)]
pub(crate) struct TraceState(Arc<(Py<PyAny>, Box<str>)>);

impl TraceState {
    /// The header's value.
    pub(crate) fn header(&self) -> &str {
        &self.0.1
    }

    /// Of a `TraceState`, unless it is empty.
    pub(crate) fn read(object: &Bound<'_, PyAny>) -> Option<Self> {
        if object.is_none() || !object.is_truthy().unwrap_or(false) {
            return None;
        }
        let header = object.call_method0("to_header").ok()?;
        let header = header.cast::<PyString>().ok()?.to_string_lossy().into();
        Some(Self(Arc::new((object.clone().unbind(), header))))
    }
}

/// The current span as a parent.
#[inline]
pub(crate) fn current(py: Python<'_>) -> Option<Parent> {
    let api = api(py)?;
    in_context(api, &api.current(py)?)
}

/// The span of a context as a parent; none where it has none or an invalid one.
#[inline]
pub(crate) fn in_context(api: &Api, context: &Bound<'_, PyAny>) -> Option<Parent> {
    of(&api.span_in(context)?)
}

/// Any span of the API as a parent.
#[inline]
fn of(span: &Bound<'_, PyAny>) -> Option<Parent> {
    if let Ok(span) = span.cast_exact::<Span>() {
        return Some(span.get().as_parent());
    }
    if let Ok(span) = span.cast_exact::<Unsampled>() {
        return Some(span.get().as_parent());
    }
    of_foreign(span)
}

#[cold]
fn of_foreign(span: &Bound<'_, PyAny>) -> Option<Parent> {
    let context = span.call_method0("get_span_context");
    let read = context.and_then(|context| read(&context));
    read.unwrap_or_else(|error| {
        let kind = text(span.get_type().as_any()).into_owned();
        let what = format!("the current span, a {kind}, has no span context ({error}): no parent");
        Mistake::Context.say(span.py(), &what);
        None
    })
}

/// A `SpanContext`; none where it is `None` or invalid.
pub(crate) fn read(context: &Bound<'_, PyAny>) -> PyResult<Option<Parent>> {
    if context.is_none() {
        return Ok(None);
    }
    let trace_id: u128 = context.getattr("trace_id")?.extract()?;
    let span_id: u64 = context.getattr("span_id")?.extract()?;
    let flags: i64 = context.getattr("trace_flags")?.extract()?;
    let (Some(trace_id), Some(span_id)) = (TraceId::new(trace_id), SpanId::new(span_id)) else {
        return Ok(None);
    };
    Ok(Some(Parent {
        context: SpanContext {
            trace_id,
            span_id,
            flags: flags as u8,
        },
        remote: context.getattr("is_remote")?.is_truthy()?,
        trace_state: TraceState::read(&context.getattr("trace_state")?),
    }))
}

/// OpenTelemetry's `SpanContext`.
pub(crate) fn to_python<'py>(
    py: Python<'py>,
    api: &Api,
    context: &SpanContext,
    remote: bool,
    trace_state: Option<&TraceState>,
) -> PyResult<Bound<'py, PyAny>> {
    let given = PyDict::new(py);
    given.set_item("trace_id", context.trace_id.value())?;
    given.set_item("span_id", context.span_id.value())?;
    given.set_item("is_remote", remote)?;
    let flags = api.trace_flags.bind(py).call1((context.flags,))?;
    given.set_item("trace_flags", flags)?;
    let trace_state = match trace_state {
        Some(trace_state) => trace_state.0.0.bind(py).clone(),
        None => api.trace_state.bind(py).call0()?,
    };
    given.set_item("trace_state", trace_state)?;
    api.span_context.bind(py).call((), Some(&given))
}
