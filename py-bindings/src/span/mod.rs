//! `omnitrace.span`: a span around a block or a function.

mod calls;
mod open;

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use omnitrace::event::{FreeSpan, Parent as Above};
use omnitrace::id::{SpanId, TraceId};
use omnitrace::span::StatusRef;
use omnitrace::value::set_attribute;
use omnitrace::{Attribute, clock};
use pyo3::exceptions::{PyGeneratorExit, PyStopIteration};
use pyo3::prelude::*;

use crate::attributes::{Pair, entries, pair, text, value, with_attributes};
use crate::context::{SpanContext, Variable, current};
use crate::opentelemetry::api::api;
use crate::opentelemetry::parent::TraceState;
use crate::opentelemetry::{Said, Seen};
use crate::process::{count_late_span, count_unsampled_span, forks, is_off, with_recorder};

use open::{Open, Place, State};

pub(crate) use calls::install;

/// Attribute that names the exception which ended a span.
const ERROR_TYPE: &str = "error.type";

/// A span around a block (`with`, `async with`) or each call of a function.
///
/// It holds what it was made of; nothing of that is read before its block ends.
#[pyclass(frozen, module = "omnitrace")]
pub(crate) struct Span {
    name: Py<PyAny>,
    request_id: Option<Py<PyAny>>,
    attributes: Option<Py<PyAny>>,
    parent: Option<SpanContext>,
    /// The context of its first block. The variable holds the span itself for that
    /// one, and a [`SpanContext`] for later ones: a task that was begun within a
    /// block may outlive it.
    first: First,
    /// Never locked while Python code may run.
    state: Mutex<State>,
}

/// A context that is set once, and read without a lock.
#[derive(Default)]
struct First {
    trace_id: [AtomicU64; 2],
    flags: AtomicU8,
    /// 0 until the rest is there.
    span_id: AtomicU64,
    taken: AtomicBool,
}

impl First {
    /// False: it was set before.
    fn set(&self, context: &omnitrace::SpanContext) -> bool {
        if self.taken.swap(true, Ordering::Relaxed) {
            return false;
        }
        let trace_id = context.trace_id.value();
        self.trace_id[0].store((trace_id >> 64) as u64, Ordering::Relaxed);
        self.trace_id[1].store(trace_id as u64, Ordering::Relaxed);
        self.flags.store(context.flags, Ordering::Relaxed);
        self.span_id
            .store(context.span_id.value(), Ordering::Release);
        true
    }

    fn get(&self) -> Option<omnitrace::SpanContext> {
        let span_id = SpanId::new(self.span_id.load(Ordering::Acquire))?;
        let [high, low] = &self.trace_id;
        let high = u128::from(high.load(Ordering::Relaxed));
        Some(omnitrace::SpanContext {
            trace_id: TraceId::new(high << 64 | u128::from(low.load(Ordering::Relaxed)))?,
            span_id,
            flags: self.flags.load(Ordering::Relaxed),
        })
    }
}

impl Span {
    pub(crate) fn new(
        name: Py<PyAny>,
        request_id: Option<Py<PyAny>>,
        attributes: Option<Py<PyAny>>,
        parent: Option<SpanContext>,
    ) -> Self {
        Self {
            name,
            request_id,
            attributes,
            parent,
            first: First::default(),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the context variable means where it holds this object.
    pub(crate) fn first_context(&self) -> Option<SpanContext> {
        self.first.get().map(SpanContext)
    }

    /// Opens a block; `object` is this span.
    #[inline]
    pub(crate) fn enter(&self, object: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = object.py();
        if is_off() {
            return self.pass_through(py);
        }
        let above = match self.parent {
            Some(parent) => Some(parent.into()),
            None => current(py),
        };
        let (trace_id, flags) = match (&above, &self.request_id) {
            (Some(above), _) => (above.context.trace_id, above.context.flags),
            (None, Some(id)) => {
                let id = text(id.bind(py));
                with_recorder(|recorder| Some(recorder.trace_of(&id))).unwrap_or_else(of_its_own)
            }
            (None, None) => of_its_own(),
        };
        let context = omnitrace::SpanContext {
            trace_id,
            span_id: SpanId::random(),
            flags,
        };
        let start = clock::now();
        let (variable, seen, value) = match api(py) {
            Some(api) => {
                let name = self.name.bind(py);
                let (seen, value) = Seen::new(api, name, context, above.as_ref(), start)?;
                (Variable::OpenTelemetry, Some(seen), value)
            }
            None if self.first.set(&context) => (Variable::Ours, None, object.clone()),
            None => {
                let value = Bound::new(py, SpanContext(context))?;
                (Variable::Ours, None, value.into_any())
            }
        };
        let Some(token) = variable.set(&value)? else {
            return Ok(());
        };
        self.state().open(Open {
            start,
            context,
            above,
            attributes: Vec::new(),
            place: Place::Here(variable, token.unbind()),
            seen,
            owner: Some(forks()),
        });
        Ok(())
    }

    /// Where nothing of ours is recorded, nothing of ours goes to others; what a
    /// caller sent still does.
    fn pass_through(&self, py: Python<'_>) -> PyResult<()> {
        let Some(parent) = self.parent else {
            return Ok(());
        };
        let (variable, value) = match api(py) {
            Some(api) => (Variable::OpenTelemetry, Seen::passed(api, py, parent.0)?),
            None => (Variable::Ours, Bound::new(py, parent)?.into_any()),
        };
        if let Some(token) = variable.set(&value)? {
            self.state().open(Open {
                start: 0,
                context: parent.0,
                above: None,
                attributes: Vec::new(),
                place: Place::Here(variable, token.unbind()),
                seen: None,
                owner: None,
            });
        }
        Ok(())
    }

    /// Closes a block with the type and value of the exception that leaves it.
    #[inline]
    pub(crate) fn exit(&self, kind: &Bound<'_, PyAny>, error: &Bound<'_, PyAny>) {
        let end = clock::now();
        let py = kind.py();
        let (open, before) = {
            let mut state = self.state();
            let open = state.close(|| current(py).map(|parent| parent.context));
            (open, !state.attributes.is_empty())
        };
        let Some(open) = open else { return };
        match open.place {
            Place::Here(variable, token) => variable.reset(&token.into_bound(py)),
            Place::Away(_, inside) => drop(inside.into_bound(py)),
        }
        // The parent of a forked process closes the span that both have open.
        if is_off() || open.owner != Some(forks()) {
            return;
        }
        if !open.context.is_sampled() {
            count_unsampled_span();
            return;
        }
        let name = text(self.name.bind(py));
        let request_id = self.request_id.as_ref().map(|id| text(id.bind(py)));
        let parent = match (&open.above, &request_id) {
            (Some(above), _) => Above::Span(above.context),
            (None, Some(id)) => Above::Request(id),
            (None, None) => Above::Root(open.context.trace_id),
        };
        let state = open.above.as_ref().and_then(|a| a.trace_state.as_ref());
        let span = FreeSpan {
            parent_is_remote: open.above.as_ref().is_some_and(|above| above.remote),
            trace_state: state.map_or("", TraceState::header),
            ..FreeSpan::new(&name, open.start, end, open.context.span_id, parent)
        };
        let said = open.seen.and_then(|seen| seen.close(py, end));
        // A generator that nobody wants to read to its end has not failed.
        let failed = !kind.is_none() && !error.is_instance_of::<PyGeneratorExit>();
        let given = self.attributes.as_ref().map(|a| a.bind(py));
        let more = !open.attributes.is_empty() || said.is_some() || before;
        let recorded = if failed || more {
            let failure = failed.then(|| (type_name(kind), text(error)));
            self.record_merged(py, &span, given, open.attributes, said, failure)
        } else {
            with_attributes(given, |attributes| {
                with_recorder(|recorder| Some(recorder.span(&FreeSpan { attributes, ..span })))
            })
        };
        if recorded.is_none() {
            count_late_span();
        }
    }

    /// The same with attributes of more than one origin: the later ones win.
    #[cold]
    fn record_merged(
        &self,
        py: Python<'_>,
        span: &FreeSpan<'_>,
        given: Option<&Bound<'_, PyAny>>,
        set: Vec<Attribute>,
        said: Option<Said>,
        failure: Option<(String, Cow<'_, str>)>,
    ) -> Option<bool> {
        let mut attributes = given.map(entries).unwrap_or_default();
        let before = self.state().attributes.clone();
        let said = said.unwrap_or_default();
        let later = set.into_iter().chain(said.attributes.to_vec());
        for Attribute { key, value } in before.into_iter().chain(later) {
            set_attribute(&mut attributes, &key, value);
        }
        let mut status = said.status.as_ref();
        if let Some((name, message)) = &failure {
            set_attribute(&mut attributes, ERROR_TYPE, name.as_str().into());
            // What has been said to be fine stays so.
            if status != StatusRef::Ok {
                status = StatusRef::Error(message);
            }
        }
        let attributes: Vec<Pair<'_>> = attributes.iter().map(pair).collect();
        let renamed = said.name.as_ref().map(|name| text(name.bind(py)));
        with_recorder(|recorder| {
            Some(recorder.span(&FreeSpan {
                name: renamed.as_deref().unwrap_or(span.name),
                attributes: &attributes,
                status,
                events: &said.events,
                links: &said.links,
                dropped: said.dropped,
                ..*span
            }))
        })
    }
}

/// A new trace, and its W3C flags.
fn of_its_own() -> (TraceId, u8) {
    let trace_id = TraceId::random();
    let flags = with_recorder(|recorder| Some(recorder.sampler().flags(None, trace_id)));
    (trace_id, flags.unwrap_or(omnitrace::SpanContext::SAMPLED))
}

/// The qualified name of an exception's class.
fn type_name(kind: &Bound<'_, PyAny>) -> String {
    let name = kind.getattr("__qualname__");
    name.map_or("error".into(), |n| text(&n).into_owned())
}

#[pymethods]
impl Span {
    /// Its own context, while it is open.
    #[getter]
    fn context(&self) -> Option<SpanContext> {
        let state = self.state();
        state.last.as_ref().map(|open| SpanContext(open.context))
    }

    fn set_attribute(&self, key: &Bound<'_, PyAny>, object: &Bound<'_, PyAny>) {
        if object.is_none() {
            return;
        }
        let (key, value) = (text(key), value(object));
        let mut state = self.state();
        let state = &mut *state;
        let attributes = match &mut state.last {
            Some(open) => &mut open.attributes,
            None => &mut state.attributes,
        };
        set_attribute(attributes, &key, value);
    }

    /// Before a generator hands an item out: its reader is not inside the span.
    fn _leave(&self, py: Python<'_>) {
        let variable = match &self.state().last {
            Some(Open {
                place: Place::Here(variable, _),
                ..
            }) => *variable,
            _ => return,
        };
        let Some(inside) = variable.get(py) else {
            return;
        };
        let place = match &mut self.state().last {
            Some(open) => {
                std::mem::replace(&mut open.place, Place::Away(variable, inside.unbind()))
            }
            None => return,
        };
        if let Place::Here(variable, token) = place {
            variable.reset(token.bind(py));
        }
    }

    /// Before the generator goes on: what it does is inside the span again.
    fn _return(&self, py: Python<'_>) {
        let (variable, inside) = match &self.state().last {
            Some(Open {
                place: Place::Away(variable, inside),
                ..
            }) => (*variable, inside.clone_ref(py)),
            _ => return,
        };
        if let Ok(Some(token)) = variable.set(inside.bind(py))
            && let Some(open) = &mut self.state().last
        {
            open.place = Place::Here(variable, token.unbind());
        }
    }

    fn __aenter__(slf: Bound<'_, Self>) -> PyResult<Ready> {
        slf.get().enter(slf.as_any())?;
        Ok(Ready {
            value: Some(slf.into_any().unbind()),
        })
    }

    fn __aexit__(
        &self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> Ready {
        self.exit(kind, error);
        Ready {
            value: Some(py.None()),
        }
    }

    /// As a decorator: each call of `function` gets a span of its own.
    fn __call__<'py>(&self, function: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = function.py();
        let decorate = py.import("omnitrace._decorate")?.getattr("decorate")?;
        let (name, parent) = (&self.name, self.parent);
        decorate.call1((function, (name, &self.request_id, &self.attributes, parent)))
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
