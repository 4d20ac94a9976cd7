//! `omnitrace.span`: a span around a block or a function.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use omnitrace::event::{FreeSpan, Parent};
use omnitrace::id::{SpanId, TraceId};
use omnitrace::span::SpanKind;
use omnitrace::{Attribute, Value, ValueRef, clock};
use pyo3::exceptions::{PyGeneratorExit, PyStopIteration};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::attributes::{entries, held, text};
use crate::context::{CURRENT, SpanContext, current, variable_value};
use crate::process::{count_late_span, forks, is_off, with_recorder};

/// Attribute that names the exception which ended a span.
const ERROR_TYPE: &str = "error.type";

/// A span around a block (`with`, `async with`) or each call of a function.
#[pyclass(frozen, module = "omnitrace")]
#[allow(non_camel_case_types)]
pub(crate) struct span {
    name: String,
    request_id: Option<String>,
    parent: Option<SpanContext>,
    arguments: Py<PyTuple>,
    /// Never locked while Python code may run.
    state: Mutex<State>,
}

struct State {
    /// What every block of this object starts with.
    attributes: Vec<Attribute>,
    /// The same object may be entered again, on other threads too.
    open: Vec<Open>,
}

struct Open {
    start: u64,
    context: omnitrace::SpanContext,
    above: Option<omnitrace::SpanContext>,
    /// Set while the block was open.
    attributes: Vec<Attribute>,
    place: Place,
    /// The process that records it, as [`forks`] tells it; none does where
    /// recording is off.
    owner: Option<u64>,
}

/// Where the context variable stands.
enum Place {
    /// It is ours; the token puts back what was there.
    Here(Py<PyAny>),
    /// A suspended generator has taken it away, this value.
    Away(Py<PyAny>),
}

impl span {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out the block that the caller is in.
    fn close(&self, py: Python<'_>) -> Option<Open> {
        if self.state().open.len() < 2 {
            return self.state().open.pop();
        }
        let here = current(py).map(|c| c.0);
        let mut state = self.state();
        let at = state
            .open
            .iter()
            .rposition(|open| Some(open.context) == here);
        match at {
            Some(at) => Some(state.open.remove(at)),
            None => state.open.pop(),
        }
    }
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
        let arguments = (
            name.clone(),
            request_id.cloned(),
            attributes.cloned(),
            parent,
        )
            .into_pyobject(py)?;
        let attributes = entries(attributes)
            .into_iter()
            .map(|(key, value)| Attribute::new(key, value.as_ref().to_value()))
            .collect();
        Ok(Self {
            name: text(name).into_owned(),
            request_id: request_id
                .filter(|id| !id.is_none())
                .map(|id| text(id).into_owned()),
            parent,
            arguments: arguments.unbind(),
            state: Mutex::new(State {
                attributes,
                open: Vec::new(),
            }),
        })
    }

    /// Its own context, while it is open.
    #[getter]
    fn context(&self) -> Option<SpanContext> {
        self.state()
            .open
            .last()
            .map(|open| SpanContext(open.context))
    }

    fn set_attribute(&self, key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) {
        if value.is_none() {
            return;
        }
        let (key, value) = (text(key), held(value).as_ref().to_value());
        let mut state = self.state();
        let state = &mut *state;
        let attributes = match state.open.last_mut() {
            Some(open) => &mut open.attributes,
            None => &mut state.attributes,
        };
        omnitrace::value::set_attribute(attributes, &key, value);
    }

    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        let py = slf.py();
        let this = slf.get();
        let above = this.parent.or_else(|| current(py)).map(|c| c.0);
        let owner = (!is_off()).then(forks);
        let context = if owner.is_none() {
            // Nothing of ours is recorded, so nothing of ours goes to others.
            above
        } else {
            let (trace_id, flags) = match (&above, &this.request_id) {
                (Some(context), _) => (context.trace_id, context.flags),
                (None, Some(id)) => with_recorder(|r| r.trace_of(id))
                    .unwrap_or_else(|| (random_trace_id(), omnitrace::SpanContext::SAMPLED)),
                (None, None) => (random_trace_id(), omnitrace::SpanContext::SAMPLED),
            };
            Some(omnitrace::SpanContext {
                trace_id,
                span_id: random_span_id(),
                flags,
            })
        };
        if let Some(context) = context
            && let Some(variable) = CURRENT.get(py)
        {
            let token = variable.call_method1(py, "set", (SpanContext(context),))?;
            this.state().open.push(Open {
                start: clock::now(),
                context,
                above,
                attributes: Vec::new(),
                place: Place::Here(token),
                owner,
            });
        }
        Ok(slf)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> bool {
        let end = clock::now();
        let Some(open) = self.close(py) else {
            return false;
        };
        if let (Some(variable), Place::Here(token)) = (CURRENT.get(py), open.place) {
            // Closed in another context than it was opened in: then there is
            // nothing to put back.
            let _ = variable.call_method1(py, "reset", (token,));
        }
        // The parent of a forked process closes the span that both have open.
        if is_off() || open.owner != Some(forks()) {
            return false;
        }
        // A generator that nobody wants to read to its end has not failed.
        let failed = !kind.is_none() && !error.is_instance_of::<PyGeneratorExit>();
        let failure = failed.then(|| {
            let name = kind
                .getattr("__qualname__")
                .map_or("error".into(), |n| text(&n).into_owned());
            (name, text(error).into_owned())
        });
        let parent = match (open.above, &self.request_id) {
            (Some(context), _) => Parent::Span(context),
            (None, Some(id)) => Parent::Request(id),
            (None, None) => Parent::Root(open.context.trace_id),
        };
        let recorded = with_recorder(|recorder| {
            let state = self.state();
            let later = |key: &str| {
                open.attributes.iter().any(|a| &*a.key == key) || failed && key == ERROR_TYPE
            };
            let first = state.attributes.iter().filter(|a| !later(&a.key));
            let second = open
                .attributes
                .iter()
                .filter(|a| !failed || &*a.key != ERROR_TYPE);
            let mut attributes: Vec<(&str, ValueRef<'_>)> = first
                .chain(second)
                .map(|a| (&*a.key, Value::as_ref(&a.value)))
                .collect();
            attributes.extend(
                failure
                    .iter()
                    .map(|(name, _)| (ERROR_TYPE, ValueRef::Str(name))),
            );
            recorder.span(&FreeSpan {
                name: &self.name,
                start: open.start,
                end,
                span_id: open.context.span_id,
                parent,
                kind: SpanKind::Internal,
                error: failure.as_ref().map(|(_, message)| message.as_str()),
                attributes: &attributes,
            })
        });
        if recorded.is_none() {
            count_late_span();
        }
        false
    }

    /// Before a generator hands an item out: its reader is not inside the span.
    fn _leave(&self, py: Python<'_>) {
        let (Some(variable), Some(inside)) = (CURRENT.get(py), variable_value(py)) else {
            return;
        };
        let place = match self.state().open.last_mut() {
            Some(open) => std::mem::replace(&mut open.place, Place::Away(inside)),
            None => return,
        };
        if let Place::Here(token) = place {
            // As in `__exit__`.
            let _ = variable.call_method1(py, "reset", (token,));
        }
    }

    /// Before the generator goes on: what it does is inside the span again.
    fn _return(&self, py: Python<'_>) {
        let Some(variable) = CURRENT.get(py) else {
            return;
        };
        let inside = match self.state().open.last() {
            Some(Open {
                place: Place::Away(inside),
                ..
            }) => inside.clone_ref(py),
            _ => return,
        };
        if let Ok(token) = variable.call_method1(py, "set", (inside,))
            && let Some(open) = self.state().open.last_mut()
        {
            open.place = Place::Here(token);
        }
    }

    fn __aenter__(slf: Bound<'_, Self>) -> PyResult<Ready> {
        Ok(Ready {
            value: Some(Self::__enter__(slf)?.into_any().unbind()),
        })
    }

    fn __aexit__(
        &self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        error: &Bound<'_, PyAny>,
        traceback: &Bound<'_, PyAny>,
    ) -> Ready {
        self.__exit__(py, kind, error, traceback);
        Ready {
            value: Some(py.None()),
        }
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
    std::iter::repeat_with(random_u64)
        .find_map(SpanId::new)
        .unwrap_or_else(random_span_id)
}

fn random_trace_id() -> TraceId {
    std::iter::repeat_with(|| u128::from(random_u64()) << 64 | u128::from(random_u64()))
        .find_map(TraceId::new)
        .unwrap_or_else(random_trace_id)
}
