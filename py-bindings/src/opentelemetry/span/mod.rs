//! The span of the OpenTelemetry face.

mod calls;
mod exceptions;
mod moments;
mod view;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use omnitrace::event::{FreeSpan, Parent as Place};
use omnitrace::id::SpanId;
use omnitrace::span::{Dropped, Link, SpanEvent, SpanKind, Status};
use omnitrace::{Recorder, SpanContext};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::attributes::text;
use crate::cpython::utf8;
use crate::process::{count_late_span, count_unsampled_span, forks, with_recorder};

use super::mistakes::Mistake;
use super::packed::Packed;
use super::parent::{Parent, TraceState};
use super::tracer::Tracer;

pub(crate) use calls::{add_methods, time as start_time};
pub(crate) use exceptions::is_failure;

/// A span that is recorded, an `opentelemetry.trace.Span`.
#[pyclass(
    frozen,
    weakref,
    dict,
    module = "omnitrace.opentelemetry",
    name = "Span"
)]
pub(crate) struct Span {
    tracer: Py<Tracer>,
    context: SpanContext,
    parent: Option<Above>,
    trace_state: Option<TraceState>,
    kind: SpanKind,
    /// Nanoseconds since 1970.
    start: u64,
    /// Who records it when it ends.
    owner: Owner,
    /// What an exception does that leaves a `with` block of the span itself.
    on_exception: OnException,
    /// Its context as Python sees it.
    seen: OnceLock<Py<PyAny>>,
    /// Never locked while Python code may run.
    state: Mutex<State>,
}

/// What a span hangs under, in its own trace.
#[derive(Clone, Copy)]
pub(crate) struct Above {
    span_id: SpanId,
    flags: u8,
    /// It is in another process.
    remote: bool,
}

impl From<&Parent> for Above {
    #[inline]
    fn from(parent: &Parent) -> Self {
        Self {
            span_id: parent.context.span_id,
            flags: parent.context.flags,
            remote: parent.remote,
        }
    }
}

/// Who records a span.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Owner {
    /// Its `end`, in the process that [`forks`] tells.
    Process(u64),
    /// The `omnitrace.span` block that it shows to OpenTelemetry.
    Block,
}

/// What an exception does to a span whose block it leaves.
#[derive(Clone, Copy)]
pub(crate) struct OnException {
    pub(crate) record: bool,
    pub(crate) set_status: bool,
}

/// What a span is made of.
pub(crate) struct New {
    pub(crate) tracer: Py<Tracer>,
    pub(crate) context: SpanContext,
    pub(crate) parent: Option<Above>,
    pub(crate) trace_state: Option<TraceState>,
    pub(crate) kind: SpanKind,
    pub(crate) start: u64,
    pub(crate) owner: Owner,
    pub(crate) on_exception: OnException,
    /// See [`clean_name`].
    pub(crate) name: Py<PyAny>,
    pub(crate) attributes: Packed,
}

struct State {
    /// Exactly a string, and UTF-8.
    name: Py<PyAny>,
    attributes: Packed,
    status: Status,
    /// Nanoseconds since 1970; none while it is open.
    end: Option<u64>,
    more: Option<Box<More>>,
}

/// What few spans have.
#[derive(Default)]
struct More {
    events: Vec<SpanEvent>,
    dropped_events: u32,
    links: Vec<Link>,
    dropped_links: u32,
    /// The block's span has another name now.
    renamed: bool,
}

/// What OpenTelemetry code has said of an `omnitrace.span` block.
#[derive(Default)]
pub(crate) struct Said {
    pub(crate) name: Option<Py<PyAny>>,
    pub(crate) attributes: Packed,
    pub(crate) status: Status,
    pub(crate) events: Vec<SpanEvent>,
    pub(crate) links: Vec<Link>,
    pub(crate) dropped: Dropped,
}

/// A name that is exactly a string, and UTF-8.
#[inline]
pub(crate) fn clean_name(name: &Bound<'_, PyAny>) -> Py<PyAny> {
    match utf8(name.as_borrowed()) {
        Some(_) => name.clone().unbind(),
        None => PyString::new(name.py(), &text(name)).into_any().unbind(),
    }
}

impl Span {
    #[inline]
    pub(crate) fn new(new: New) -> Self {
        Self {
            tracer: new.tracer,
            context: new.context,
            parent: new.parent,
            trace_state: new.trace_state,
            kind: new.kind,
            start: new.start,
            owner: new.owner,
            on_exception: new.on_exception,
            seen: OnceLock::new(),
            state: Mutex::new(State {
                name: new.name,
                attributes: new.attributes,
                status: Status::Unset,
                end: None,
                more: None,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(crate) fn as_parent(&self) -> Parent {
        Parent {
            context: self.context,
            remote: false,
            trace_state: self.trace_state.clone(),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state().end.is_none() && (self.owner == Owner::Block || self.is_of_this_process())
    }

    fn is_of_this_process(&self) -> bool {
        self.owner == Owner::Process(forks())
    }

    /// Changes it, unless it has ended.
    #[inline]
    fn change(&self, py: Python<'_>, what: &str, change: impl FnOnce(&mut State)) {
        {
            let mut state = self.state();
            if state.end.is_none() {
                change(&mut state);
                return;
            }
        }
        let what = format!("{what} of a span that has ended has no effect");
        Mistake::ChangeEnded.say(py, &what);
    }

    /// Ends it; `end` is nanoseconds since 1970.
    #[inline]
    pub(crate) fn finish(slf: &Bound<'_, Self>, end: u64) {
        let (py, span) = (slf.py(), slf.get());
        let provider = span.tracer.get().provider();
        // The parent of a forked process ends the span that both have open; a block
        // records itself.
        let records =
            span.is_of_this_process() && span.context.is_sampled() && !provider.has_ended();
        let mut ended = None;
        if records {
            with_recorder(|recorder| {
                let mut state = span.state();
                ended = Some(state.end(end));
                if ended == Some(true) {
                    span.record(py, recorder, &state);
                }
                Some(())
            });
        }
        let was_open = ended.unwrap_or_else(|| span.end_unrecorded(end));
        if !was_open {
            Mistake::EndTwice.say(py, "a span has been ended twice; the first end counts");
        } else if provider.has_processor() && span.is_of_this_process() {
            provider.on_end(slf);
        }
    }

    /// Ends it where nothing is recorded.
    #[cold]
    fn end_unrecorded(&self, end: u64) -> bool {
        let was_open = self.state().end(end);
        if was_open && self.is_of_this_process() {
            if self.context.is_sampled() {
                count_late_span();
            } else {
                count_unsampled_span();
            }
        }
        was_open
    }

    /// No Python code runs here: the state is locked.
    #[inline]
    fn record(&self, py: Python<'_>, recorder: &Recorder, state: &State) {
        let place = match &self.parent {
            // Its own decision is the one that counts.
            Some(above) => Place::Span(SpanContext {
                span_id: above.span_id,
                ..self.context
            }),
            None => Place::Root(self.context.trace_id),
        };
        let more = state.more.as_deref();
        let span = FreeSpan {
            name: utf8(state.name.bind_borrowed(py)).unwrap_or_default(),
            start: self.start,
            end: state.end.unwrap_or(self.start),
            span_id: self.context.span_id,
            parent: place,
            parent_is_remote: self.parent.is_some_and(|above| above.remote),
            trace_state: self.trace_state.as_ref().map_or("", TraceState::header),
            kind: self.kind,
            status: state.status.as_ref(),
            attributes: &[],
            events: more.map_or(&[], |more| &more.events),
            links: more.map_or(&[], |more| &more.links),
            dropped: state.dropped(),
            scope: self.tracer.get().scope_in(recorder),
        };
        // A full queue counts it.
        recorder.span_with_packed(&span, &state.attributes.kept);
    }

    /// What has been said of a block's span, if anything; it ends with its block.
    pub(crate) fn close(&self, py: Python<'_>, end: u64) -> Option<Said> {
        let mut state = self.state();
        state.end = state.end.or(Some(end));
        let dropped = state.dropped();
        let untouched =
            state.attributes.is_empty() && state.status == Status::Unset && state.more.is_none();
        if untouched {
            return None;
        }
        let more = state.more.take().map(|more| *more).unwrap_or_default();
        Some(Said {
            name: more.renamed.then(|| state.name.clone_ref(py)),
            attributes: std::mem::take(&mut state.attributes),
            status: state.status.clone(),
            events: more.events,
            links: more.links,
            dropped,
        })
    }
}

impl State {
    /// False: it has ended before.
    fn end(&mut self, end: u64) -> bool {
        let was_open = self.end.is_none();
        self.end.get_or_insert(end);
        was_open
    }

    fn dropped(&self) -> Dropped {
        let more = self.more.as_deref();
        Dropped {
            attributes: self.attributes.dropped,
            events: more.map_or(0, |more| more.dropped_events),
            links: more.map_or(0, |more| more.dropped_links),
        }
    }

    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }
}
