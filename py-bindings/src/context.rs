//! The context of a span, and the variable that holds the current one.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use crate::cpython::context_get;
use crate::span::Span;

/// The context of one span.
#[pyclass(frozen, eq, hash, from_py_object, module = "omnitrace")]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SpanContext(pub(crate) omnitrace::SpanContext);

#[pymethods]
impl SpanContext {
    #[getter]
    fn trace_id(&self) -> String {
        self.0.trace_id.to_string()
    }

    #[getter]
    fn span_id(&self) -> String {
        self.0.span_id.to_string()
    }

    #[getter]
    fn sampled(&self) -> bool {
        self.0.is_sampled()
    }

    #[getter]
    fn traceparent(&self) -> String {
        self.0.traceparent()
    }

    fn __repr__(&self) -> String {
        format!("SpanContext('{}')", self.0.traceparent())
    }
}

/// `contextvars.ContextVar` with the current [`Span`] or the context of one.
pub(crate) static CURRENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

pub(crate) fn create_context_variable(py: Python<'_>) -> PyResult<()> {
    let default = PyDict::new(py);
    default.set_item("default", py.None())?;
    let class = py.import("contextvars")?.getattr("ContextVar")?;
    let variable = class.call(("omnitrace_current_span",), Some(&default))?;
    CURRENT.get_or_init(py, || variable.unbind());
    Ok(())
}

/// The context of the innermost open span.
pub(crate) fn current(py: Python<'_>) -> Option<SpanContext> {
    let value = context_get(CURRENT.get(py)?.bind(py))?;
    context_of(&value)
}

/// The context that a value of the variable stands for.
pub(crate) fn context_of(value: &Bound<'_, PyAny>) -> Option<SpanContext> {
    if let Ok(span) = value.cast_exact::<Span>() {
        return span.get().first_context();
    }
    value.cast::<SpanContext>().ok().map(|c| *c.get())
}
