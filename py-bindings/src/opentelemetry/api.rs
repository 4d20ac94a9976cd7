//! What we use of `opentelemetry-api`, looked up once when
//! `omnitrace.opentelemetry` is imported.

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString};

use crate::cpython::{context_get, context_reset, context_set};

use super::tracer::Tracer;

/// The API's objects.
pub(crate) struct Api {
    pub(super) block_tracer: Py<Tracer>,
    /// `opentelemetry.context`.
    context_module: Py<PyAny>,
    /// The `ContextVar` behind it; none where `OTEL_PYTHON_CONTEXT` has put something
    /// else there.
    variable: Option<Py<PyAny>>,
    /// The class `Context`.
    context_class: Py<PyAny>,
    /// Where a context holds its span.
    span_key: Py<PyString>,
    pub(super) span_context: Py<PyAny>,
    pub(super) trace_flags: Py<PyAny>,
    pub(super) trace_state: Py<PyAny>,
    pub(super) non_recording_span: Py<PyAny>,
    pub(super) invalid_span: Py<PyAny>,
    pub(super) link: Py<PyAny>,
    pub(super) status: Py<PyAny>,
    /// UNSET, OK, ERROR.
    pub(super) status_codes: [Py<PyAny>; 3],
    /// INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER.
    pub(super) kinds: [Py<PyAny>; 5],
}

static API: PyOnceLock<Api> = PyOnceLock::new();

/// The API, once [`connect`] has been called.
#[inline]
pub(crate) fn api(py: Python<'_>) -> Option<&Api> {
    API.get(py)
}

/// The same for a class that exists only then.
#[inline]
pub(super) fn connected(py: Python<'_>) -> PyResult<&Api> {
    API.get(py).ok_or_else(|| {
        PyImportError::new_err("import omnitrace.opentelemetry before using its classes")
    })
}

/// Looks the API up. `block_tracer` is the tracer of `omnitrace.span` blocks: from now on OpenTelemetry's context has the current span.
#[pyfunction]
#[pyo3(name = "_connect_opentelemetry")]
pub(crate) fn connect(py: Python<'_>, block_tracer: Py<Tracer>) -> PyResult<()> {
    API.get_or_try_init(py, || Api::find(py, block_tracer))
        .map(|_| ())
}

impl Api {
    fn find(py: Python<'_>, block_tracer: Py<Tracer>) -> PyResult<Self> {
        let trace = py.import("opentelemetry.trace")?;
        let context = py.import("opentelemetry.context")?;
        let default = py
            .import("opentelemetry.context.contextvars_context")?
            .getattr("ContextVarsRuntimeContext")?;
        let runtime = context.getattr("_RUNTIME_CONTEXT")?;
        let variable = if runtime.get_type().is(&default) {
            Some(runtime.getattr("_current_context")?.unbind())
        } else {
            None
        };
        let get = |name: &str| trace.getattr(name).map(Bound::unbind);
        let member = |class: &str, name: &str| {
            let class = trace.getattr(class)?;
            class.getattr(name).map(Bound::unbind)
        };
        let code = |name| member("StatusCode", name);
        let kind = |name| member("SpanKind", name);
        Ok(Self {
            block_tracer,
            variable,
            context_class: context.getattr("Context")?.unbind(),
            context_module: context.into_any().unbind(),
            span_key: py
                .import("opentelemetry.trace.propagation")?
                .getattr("_SPAN_KEY")?
                .cast_into::<PyString>()?
                .unbind(),
            span_context: get("SpanContext")?,
            trace_flags: get("TraceFlags")?,
            trace_state: get("TraceState")?,
            non_recording_span: get("NonRecordingSpan")?,
            invalid_span: get("INVALID_SPAN")?,
            link: get("Link")?,
            status: get("Status")?,
            status_codes: [code("UNSET")?, code("OK")?, code("ERROR")?],
            kinds: [
                kind("INTERNAL")?,
                kind("SERVER")?,
                kind("CLIENT")?,
                kind("PRODUCER")?,
                kind("CONSUMER")?,
            ],
        })
    }

    /// The current context; none if whoever keeps it fails.
    #[inline]
    pub(crate) fn current<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        match &self.variable {
            Some(variable) => context_get(variable.bind(py)),
            None => self
                .context_module
                .bind(py)
                .call_method0("get_current")
                .ok(),
        }
    }

    /// Makes a context the current one; the token is for [`Self::detach`].
    #[inline]
    pub(crate) fn attach<'py>(&self, context: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = context.py();
        match &self.variable {
            Some(variable) => context_set(variable.bind(py), context),
            None => self
                .context_module
                .bind(py)
                .call_method1("attach", (context,)),
        }
    }

    /// Puts back what was current before.
    #[inline]
    pub(crate) fn detach(&self, token: &Bound<'_, PyAny>) {
        let py = token.py();
        match &self.variable {
            Some(variable) => context_reset(variable.bind(py), token),
            None => {
                // It logs what goes wrong.
                let _ = self
                    .context_module
                    .bind(py)
                    .call_method1("detach", (token,));
            }
        }
    }

    /// The span that a context holds.
    #[inline]
    pub(crate) fn span_in<'py>(&self, context: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
        let key = self.span_key.bind(context.py());
        match context.cast::<PyDict>() {
            Ok(dict) if dict.is_empty() => None,
            Ok(dict) => dict.get_item(key).ok().flatten(),
            Err(_) => context.call_method1("get", (key,)).ok(),
        }
        .filter(|span| !span.is_none())
    }

    /// The current context with another span in it.
    pub(crate) fn context_with<'py>(
        &self,
        span: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = span.py();
        let context = self.context_class.bind(py).call0()?;
        // A context forbids its users what makes it one.
        let dict = context.cast::<PyDict>()?;
        if let Some(current) = self.current(py)
            && let Ok(current) = current.cast::<PyDict>()
            && !current.is_empty()
        {
            dict.update(current.as_mapping())?;
        }
        dict.set_item(self.span_key.bind(py), span)?;
        Ok(context)
    }
}
