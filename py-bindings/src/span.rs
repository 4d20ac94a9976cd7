//! `omnitrace.span`: a span around a block or a function.

use std::sync::atomic::{AtomicU64, Ordering};

use omnitrace::event::{FreeSpan, Parent};
use omnitrace::id::{SpanId, TraceId};
use omnitrace::span::SpanKind;
use omnitrace::{Attribute, Value, ValueRef, clock};
use pyo3::exceptions::PyStopIteration;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

use crate::attributes::{entries, held, text};
use crate::carrier::SpanContext;
use crate::process::{count_late_span, with_recorder};

/// `contextvars.ContextVar` with the current span's context.
static CURRENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

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
    let value = CURRENT.get(py)?.bind(py).call_method0("get").ok()?;
    value.cast::<SpanContext>().ok().map(|c| *c.get())
}

/// A span around a block (`with`, `async with`) or each call of a function.
#[pyclass(module = "omnitrace")]
#[allow(non_camel_case_types)]
pub(crate) struct span {
    name: String,
    request_id: Option<String>,
    parent: Option<SpanContext>,
    attributes: Vec<Attribute>,
    arguments: Py<PyTuple>,
    open: Option<Open>,
}

struct Open {
    start: u64,
    context: omnitrace::SpanContext,
    above: Option<omnitrace::SpanContext>,
    token: Py<PyAny>,
}

#[pymethods]
impl span {
    #[new]
    #[pyo3(signature = (name, request_id=None, attributes=None, *, parent=None))]
    fn new(
        py: Python<'_>,
        name: &Bound<'_, PyAny>,
        request_id: Option<&Bound<'_, PyAny>>,
        attributes: Option<&Bound<'_, PyAny>>,
        parent: Option<SpanContext>,
    ) -> PyResult<Self> {
        let arguments =
            (name.clone(), request_id.cloned(), attributes.cloned(), parent).into_pyobject(py)?;
        Ok(Self {
            name: text(name).into_owned(),
            request_id: request_id.filter(|id| !id.is_none()).map(|id| text(id).into_owned()),
            parent,
            attributes: entries(attributes)
                .into_iter()
                .map(|(key, value)| Attribute::new(key, value.as_ref().to_value()))
                .collect(),
            arguments: arguments.unbind(),
            open: None,
        })
    }

    /// Its own context, while it is open.
    #[getter]
    fn context(&self) -> Option<SpanContext> {
        self.open.as_ref().map(|open| SpanContext(open.context))
    }

    fn set_attribute(&mut self, key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) {
        let value = held(value).as_ref().to_value();
        omnitrace::value::set_attribute(&mut self.attributes, &text(key), value);
    }

    fn __enter__<'py>(slf: Bound<'py, Self>) -> PyResult<Bound<'py, Self>> {
        let py = slf.py();
        let mut this = slf.borrow_mut();
        let above = this.parent.or_else(|| current(py)).map(|c| c.0);
        let (trace_id, flags) = match (&above, &this.request_id) {
            (Some(context), _) => (context.trace_id, context.flags),
            (None, Some(id)) => with_recorder(|r| r.trace_of(id))
                .unwrap_or_else(|| (random_trace_id(), omnitrace::SpanContext::SAMPLED)),
            (None, None) => (random_trace_id(), omnitrace::SpanContext::SAMPLED),
        };
        let context = omnitrace::SpanContext { trace_id, span_id: random_span_id(), flags };
        let token = match CURRENT.get(py) {
            Some(variable) => variable.call_method1(py, "set", (SpanContext(context),))?,
            None => py.None(),
        };
        this.open = Some(Open { start: clock::now(), context, above, token });
        drop(this);
        Ok(slf)
    }

    fn __exit__(
        &mut self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> bool {
        let Some(open) = self.open.take() else { return false };
        let end = clock::now();
        if let Some(variable) = CURRENT.get(py) {
            // Closed in another context than it was opened in: then there is
            // nothing to put back.
            let _ = variable.call_method1(py, "reset", (open.token,));
        }
        let mut message = None;
        if !kind.is_none() {
            let name = kind.getattr("__qualname__").map_or("error".into(), |n| text(&n).into_owned());
            self.attributes.push(Attribute::new("error.type", name.as_str()));
            message = Some(text(error).into_owned());
        }
        let attributes: Vec<(&str, ValueRef<'_>)> =
            self.attributes.iter().map(|a| (&*a.key, Value::as_ref(&a.value))).collect();
        let parent = match (open.above, &self.request_id) {
            (Some(context), _) => Parent::Span(context),
            (None, Some(id)) => Parent::Request(id),
            (None, None) => Parent::Root(open.context.trace_id),
        };
        let recorded = with_recorder(|recorder| {
            recorder.span(&FreeSpan {
                name: &self.name,
                start: open.start,
                end,
                span_id: open.context.span_id,
                parent,
                kind: SpanKind::Internal,
                error: message.as_deref(),
                attributes: &attributes,
            })
        });
        if recorded.is_none() {
            count_late_span();
        }
        false
    }

    fn __aenter__(slf: Bound<'_, Self>) -> PyResult<Ready> {
        Ok(Ready { value: Some(Self::__enter__(slf)?.into_any().unbind()) })
    }

    fn __aexit__(
        &mut self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        error: &Bound<'_, PyAny>,
        traceback: &Bound<'_, PyAny>,
    ) -> Ready {
        self.__exit__(py, kind, error, traceback);
        Ready { value: Some(py.None()) }
    }

    /// As a decorator: each call of `function` gets a span of its own.
    fn __call__<'py>(&self, function: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = function.py();
        let decorate = py.import("omnitrace._decorate")?.getattr("decorate")?;
        decorate.call1((function, &self.arguments))
    }
}

/// An awaitable that is done at once.
#[pyclass]
struct Ready {
    value: Option<Py<PyAny>>,
}

#[pymethods]
impl Ready {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&mut self) -> PyResult<()> {
        Err(PyStopIteration::new_err((self.value.take(),)))
    }
}

/// Distinct over processes: the standard library seeds each hasher anew from the
/// system's random source; the counter and the clock keep one seed's ids apart
/// in forked children too.
fn random_u64() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    RandomState::new().hash_one((count, clock::now(), std::process::id()))
}

fn random_span_id() -> SpanId {
    std::iter::repeat_with(random_u64).find_map(SpanId::new).unwrap_or_else(random_span_id)
}

fn random_trace_id() -> TraceId {
    std::iter::repeat_with(|| u128::from(random_u64()) << 64 | u128::from(random_u64()))
        .find_map(TraceId::new)
        .unwrap_or_else(random_trace_id)
}
