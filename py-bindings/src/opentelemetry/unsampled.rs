//! The span of a trace that is not recorded: nothing but its context.

use std::sync::OnceLock;

use omnitrace::SpanContext;
use pyo3::prelude::*;

use super::api::connected;
use super::parent::{self, Parent, TraceState};

/// A span that is not recorded, a `opentelemetry.trace.NonRecordingSpan`.
#[pyclass(
    frozen,
    weakref,
    module = "omnitrace.opentelemetry",
    name = "NonRecordingSpan"
)]
pub(crate) struct Unsampled {
    context: SpanContext,
    trace_state: Option<TraceState>,
    /// Its context as Python sees it.
    seen: OnceLock<Py<PyAny>>,
}

impl Unsampled {
    pub(crate) fn new(context: SpanContext, trace_state: Option<TraceState>) -> Self {
        Self {
            context,
            trace_state,
            seen: OnceLock::new(),
        }
    }

    pub(crate) fn as_parent(&self) -> Parent {
        Parent {
            context: self.context,
            remote: false,
            trace_state: self.trace_state.clone(),
        }
    }
}

#[pymethods]
impl Unsampled {
    fn get_span_context<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if let Some(seen) = self.seen.get() {
            return Ok(seen.bind(py).clone());
        }
        let state = self.trace_state.as_ref();
        let context = parent::to_python(py, connected(py)?, &self.context, false, state)?;
        // Another thread may have been faster: its object is as good.
        Ok(self.seen.get_or_init(|| context.unbind()).bind(py).clone())
    }

    fn is_recording(&self) -> bool {
        false
    }

    #[pyo3(signature = (end_time=None))]
    fn end(&self, end_time: Option<&Bound<'_, PyAny>>) {
        let _ = end_time;
    }

    fn set_attribute(&self, key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) {
        let _ = (key, value);
    }

    fn set_attributes(&self, attributes: &Bound<'_, PyAny>) {
        let _ = attributes;
    }

    #[pyo3(signature = (name, attributes=None, timestamp=None))]
    fn add_event(
        &self,
        name: &Bound<'_, PyAny>,
        attributes: Option<&Bound<'_, PyAny>>,
        timestamp: Option<&Bound<'_, PyAny>>,
    ) {
        let _ = (name, attributes, timestamp);
    }

    #[pyo3(signature = (context, attributes=None))]
    fn add_link(&self, context: &Bound<'_, PyAny>, attributes: Option<&Bound<'_, PyAny>>) {
        let _ = (context, attributes);
    }

    fn update_name(&self, name: &Bound<'_, PyAny>) {
        let _ = name;
    }

    #[pyo3(signature = (status, description=None))]
    fn set_status(&self, status: &Bound<'_, PyAny>, description: Option<&Bound<'_, PyAny>>) {
        let _ = (status, description);
    }

    #[pyo3(signature = (exception, attributes=None, timestamp=None, escaped=false))]
    fn record_exception(
        &self,
        exception: &Bound<'_, PyAny>,
        attributes: Option<&Bound<'_, PyAny>>,
        timestamp: Option<&Bound<'_, PyAny>>,
        escaped: bool,
    ) {
        let _ = (exception, attributes, timestamp, escaped);
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        exc_type: &Bound<'_, PyAny>,
        exc_val: &Bound<'_, PyAny>,
        exc_tb: &Bound<'_, PyAny>,
    ) {
        let _ = (exc_type, exc_val, exc_tb);
    }

    fn __repr__(&self) -> String {
        format!("NonRecordingSpan('{}')", self.context.traceparent())
    }
}
