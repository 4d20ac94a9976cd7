//! The context of a span, and the variable that holds the current one.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use crate::cpython::{context_get, context_reset, context_set};
use crate::opentelemetry::api::api;
use crate::opentelemetry::parent::{self, Parent};
use crate::process::with_recorder;
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

impl From<SpanContext> for Parent {
    fn from(context: SpanContext) -> Self {
        Self {
            context: context.0,
            remote: false,
            trace_state: None,
        }
    }
}

/// The SERVER span that a request has on this node in a role.
#[pyfunction]
#[pyo3(name = "_request_span")]
pub(crate) fn request_span(request_id: &str, role: &str) -> Option<SpanContext> {
    with_recorder(|recorder| {
        let (_, link) = recorder.link_to(request_id, role);
        Some(SpanContext(omnitrace::SpanContext {
            trace_id: link.trace_id,
            span_id: link.span_id,
            flags: recorder.trace_of(request_id).1,
        }))
    })
}

/// `contextvars.ContextVar` with the current [`Span`] or the context of one.
static CURRENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

pub(crate) fn create_context_variable(py: Python<'_>) -> PyResult<()> {
    let default = PyDict::new(py);
    default.set_item("default", py.None())?;
    let class = py.import("contextvars")?.getattr("ContextVar")?;
    let variable = class.call(("omnitrace_current_span",), Some(&default))?;
    CURRENT.get_or_init(py, || variable.unbind());
    Ok(())
}

/// What holds the current span.
#[derive(Clone, Copy)]
pub(crate) enum Variable {
    /// [`CURRENT`].
    Ours,
    /// OpenTelemetry's context, once `omnitrace.opentelemetry` is imported: there is
    /// one current span for both.
    OpenTelemetry,
}

impl Variable {
    /// Its value now.
    #[inline]
    pub(crate) fn get<'py>(self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        match self {
            Self::Ours => context_get(CURRENT.get(py)?.bind(py)),
            Self::OpenTelemetry => api(py)?.current(py),
        }
    }

    /// Sets it; the token is for [`Self::reset`]. None if there is no variable.
    #[inline]
    pub(crate) fn set<'py>(self, value: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = value.py();
        match self {
            Self::Ours => CURRENT.get(py).map(|v| context_set(v.bind(py), value)),
            Self::OpenTelemetry => api(py).map(|api| api.attach(value)),
        }
        .transpose()
    }

    /// Puts back what was there before.
    #[inline]
    pub(crate) fn reset(self, token: &Bound<'_, PyAny>) {
        let py = token.py();
        match self {
            Self::Ours => {
                if let Some(variable) = CURRENT.get(py) {
                    context_reset(variable.bind(py), token);
                }
            }
            Self::OpenTelemetry => {
                if let Some(api) = api(py) {
                    api.detach(token);
                }
            }
        }
    }
}

/// The innermost open span.
#[inline]
pub(crate) fn current(py: Python<'_>) -> Option<Parent> {
    if let Some(parent) = parent::current(py) {
        return Some(parent);
    }
    let value = Variable::Ours.get(py)?;
    let context = match value.cast_exact::<Span>() {
        Ok(span) => span.get().first_context()?,
        Err(_) => *value.cast::<SpanContext>().ok()?.get(),
    };
    Some(context.into())
}
