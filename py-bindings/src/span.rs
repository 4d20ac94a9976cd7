//! `omnitrace.span`: a span around a block or a function.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use omnitrace::event::{FreeSpan, Parent};
use omnitrace::id::{SpanId, TraceId};
use omnitrace::span::StatusRef;
use omnitrace::value::set_attribute;
use omnitrace::{Attribute, clock};
use pyo3::exceptions::{PyGeneratorExit, PyStopIteration};
use pyo3::prelude::*;

use crate::attributes::{Pair, entries, pair, text, value, with_attributes};
use crate::context::{CURRENT, SpanContext, context_of};
use crate::cpython::{context_get, context_reset, context_set};
use crate::process::{count_late_span, forks, is_off, with_recorder};

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

#[derive(Default)]
struct State {
    /// Set before a block: what every block of this object has.
    attributes: Vec<Attribute>,
    /// The block that was opened last.
    last: Option<Open>,
    /// The same object may be entered again, on other threads too.
    others: Vec<Open>,
}

struct Open {
    start: u64,
    context: omnitrace::SpanContext,
    above: Option<omnitrace::SpanContext>,
    /// Set while the block was open.
    attributes: Vec<Attribute>,
    place: Place,
    /// The process that records it, as [`forks`] tells it; none does where recording
    /// is off.
    owner: Option<u64>,
}

/// Where the context variable stands.
enum Place {
    /// It is ours; the token puts back what was there.
    Here(Py<PyAny>),
    /// A suspended generator has taken it away, this value.
    Away(Py<PyAny>),
}

impl State {
    fn open(&mut self, open: Open) {
        self.others.extend(self.last.replace(open));
    }

    /// Takes out the block whose context the variable holds, else the last one.
    fn close(&mut self, variable: &Bound<'_, PyAny>) -> Option<Open> {
        if !self.others.is_empty() {
            // Reading it runs no Python code.
            let here = context_get(variable).and_then(|v| context_of(&v));
            let is_here = |open: &Open| here.is_some_and(|here| open.context == here.0);
            if !self.last.as_ref().is_some_and(is_here)
                && let Some(at) = self.others.iter().rposition(is_here)
            {
                return Some(self.others.remove(at));
            }
        }
        let last = self.last.take();
        self.last = self.others.pop();
        last
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
        let Some(variable) = CURRENT.get(py) else {
            return Ok(());
        };
        let variable = variable.bind(py);
        if is_off() {
            return self.pass_through(variable);
        }
        let above = match self.parent {
            Some(parent) => Some(parent.0),
            None => context_get(variable)
                .and_then(|v| context_of(&v))
                .map(|c| c.0),
        };
        let (trace_id, flags) = match (&above, &self.request_id) {
            (Some(context), _) => (context.trace_id, context.flags),
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
        let token = if self.first.set(&context) {
            context_set(variable, object)?
        } else {
            let value = Bound::new(py, SpanContext(context))?;
            context_set(variable, value.as_any())?
        };
        self.state().open(Open {
            start: clock::now(),
            context,
            above,
            attributes: Vec::new(),
            place: Place::Here(token.unbind()),
            owner: Some(forks()),
        });
        Ok(())
    }

    /// Where nothing of ours is recorded, nothing of ours goes to others; what a
    /// caller sent still does.
    fn pass_through(&self, variable: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Some(parent) = self.parent {
            let value = Bound::new(variable.py(), parent)?;
            let token = context_set(variable, value.as_any())?;
            self.state().open(Open {
                start: 0,
                context: parent.0,
                above: None,
                attributes: Vec::new(),
                place: Place::Here(token.unbind()),
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
        let Some(variable) = CURRENT.get(py) else {
            return;
        };
        let variable = variable.bind(py);
        let (open, before) = {
            let mut state = self.state();
            (state.close(variable), !state.attributes.is_empty())
        };
        let Some(open) = open else { return };
        match open.place {
            Place::Here(token) => context_reset(variable, &token.into_bound(py)),
            Place::Away(inside) => drop(inside.into_bound(py)),
        }
        // The parent of a forked process closes the span that both have open.
        if is_off() || open.owner != Some(forks()) {
            return;
        }
        if !open.context.is_sampled() {
            with_recorder(|recorder| {
                recorder.leave_out();
                Some(())
            });
            return;
        }
        let name = text(self.name.bind(py));
        let request_id = self.request_id.as_ref().map(|id| text(id.bind(py)));
        let parent = match (open.above, &request_id) {
            (Some(context), _) => Parent::Span(context),
            (None, Some(id)) => Parent::Request(id),
            (None, None) => Parent::Root(open.context.trace_id),
        };
        let span = FreeSpan::new(&name, open.start, end, open.context.span_id, parent);
        // A generator that nobody wants to read to its end has not failed.
        let failed = !kind.is_none() && !error.is_instance_of::<PyGeneratorExit>();
        let given = self.attributes.as_ref().map(|a| a.bind(py));
        let recorded = if failed || before || !open.attributes.is_empty() {
            let failure = failed.then(|| (type_name(kind), text(error)));
            self.record_merged(&span, given, open.attributes, failure)
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
        span: &FreeSpan<'_>,
        given: Option<&Bound<'_, PyAny>>,
        set: Vec<Attribute>,
        failure: Option<(String, Cow<'_, str>)>,
    ) -> Option<bool> {
        let mut attributes = given.map(entries).unwrap_or_default();
        let before = self.state().attributes.clone();
        for Attribute { key, value } in before.into_iter().chain(set) {
            set_attribute(&mut attributes, &key, value);
        }
        let mut status = StatusRef::Unset;
        if let Some((name, message)) = &failure {
            set_attribute(&mut attributes, ERROR_TYPE, name.as_str().into());
            status = StatusRef::Error(message);
        }
        let attributes: Vec<Pair<'_>> = attributes.iter().map(pair).collect();
        with_recorder(|recorder| {
            Some(recorder.span(&FreeSpan {
                attributes: &attributes,
                status,
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
        let Some(variable) = CURRENT.get(py).map(|v| v.bind(py)) else {
            return;
        };
        let Some(inside) = context_get(variable) else {
            return;
        };
        let place = match &mut self.state().last {
            Some(open) => std::mem::replace(&mut open.place, Place::Away(inside.unbind())),
            None => return,
        };
        if let Place::Here(token) = place {
            context_reset(variable, token.bind(py));
        }
    }

    /// Before the generator goes on: what it does is inside the span again.
    fn _return(&self, py: Python<'_>) {
        let Some(variable) = CURRENT.get(py) else {
            return;
        };
        let inside = match &self.state().last {
            Some(Open {
                place: Place::Away(inside),
                ..
            }) => inside.clone_ref(py),
            _ => return,
        };
        if let Ok(token) = context_set(variable.bind(py), inside.bind(py))
            && let Some(open) = &mut self.state().last
        {
            open.place = Place::Here(token.unbind());
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
