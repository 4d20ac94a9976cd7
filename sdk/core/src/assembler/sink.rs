//! Where spans go, and how they get there: as they stand, so that who only writes
//! them down copies nothing.

use std::sync::Arc;

use crate::id::{SpanId, TraceId};
use crate::span::{Dropped, PhaseOrigin, Source, Span, SpanEvent, SpanKind, Status};
use crate::value::{Attribute, Value, ValueRef};
use crate::vocabulary::PhaseId;

use super::{LooseEvent, Output};

/// Takes what comes out of the assembler.
pub trait Sink {
    /// A finished span.
    fn span(&mut self, span: PhaseSpan<'_>);
    /// An event that became part of no span.
    fn loose(&mut self, event: LooseEvent);
    /// A span was not made because the trace is not sampled.
    fn unsampled(&mut self);
    /// A phase was left out because it ends before it starts.
    fn contradictory(&mut self, phase: PhaseId);
    /// The spans that it still holds, in the order in which they came. What
    /// [`Scope::Whole`](super::Scope::Whole) alone knows is added to them when their
    /// request is closed.
    fn held(&mut self) -> &mut [Span] {
        &mut []
    }
}

/// A finished span of a phase, borrowed from the assembler.
#[derive(Debug, Clone)]
pub struct PhaseSpan<'a> {
    /// The trace.
    pub trace_id: TraceId,
    /// Its id.
    pub span_id: SpanId,
    /// Its parent; none for a root.
    pub parent_span_id: Option<SpanId>,
    /// W3C trace flags.
    pub flags: u8,
    /// Its name.
    pub name: &'a Arc<str>,
    /// Its kind.
    pub kind: SpanKind,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970, never before `start`.
    pub end: u64,
    /// Its status.
    pub status: Status,
    /// Attributes, each key once.
    pub attributes: &'a [(&'a Arc<str>, PhaseValue<'a>)],
    /// Events by time.
    pub events: &'a [&'a SpanEvent],
    /// What there was no room for.
    pub dropped: Dropped,
    /// Who recorded it.
    pub source: &'a Arc<Source>,
    /// The phase behind it.
    pub origin: PhaseOrigin,
}

/// The value of an attribute of a phase's span.
#[derive(Debug, Clone, Copy)]
pub enum PhaseValue<'a> {
    /// As it was recorded.
    Recorded(&'a Value),
    /// Text of the assembler's.
    Text(&'a Arc<str>),
    /// A count of the assembler's.
    I64(i64),
    /// Seconds that the assembler has measured.
    F64(f64),
    /// A mark of the assembler's.
    Bool(bool),
}

impl<'a> PhaseValue<'a> {
    /// The same value, borrowed.
    pub fn as_ref(&self) -> ValueRef<'a> {
        match *self {
            Self::Recorded(value) => value.as_ref(),
            Self::Text(text) => ValueRef::Str(text),
            Self::I64(n) => ValueRef::I64(n),
            Self::F64(n) => ValueRef::F64(n),
            Self::Bool(b) => ValueRef::Bool(b),
        }
    }

    /// The same value, owned.
    pub fn to_value(&self) -> Value {
        match *self {
            Self::Recorded(value) => value.clone(),
            Self::Text(text) => Value::Str(Arc::clone(text)),
            Self::I64(n) => Value::I64(n),
            Self::F64(n) => Value::F64(n),
            Self::Bool(b) => Value::Bool(b),
        }
    }
}

impl PhaseSpan<'_> {
    /// A SERVER span's parent is the caller; any other's is in this process.
    pub(crate) fn parent_is_remote(&self) -> bool {
        self.kind == SpanKind::Server
    }

    /// The same span, owned.
    pub fn into_span(self) -> Span {
        let attribute = |(key, value): &(&Arc<str>, PhaseValue<'_>)| Attribute {
            key: Arc::clone(key),
            value: value.to_value(),
        };
        Span {
            trace_id: self.trace_id,
            span_id: self.span_id,
            parent_span_id: self.parent_span_id,
            parent_is_remote: self.parent_is_remote(),
            flags: self.flags,
            trace_state: Box::default(),
            name: Arc::clone(self.name),
            kind: self.kind,
            start: self.start,
            end: self.end,
            status: self.status,
            attributes: self.attributes.iter().map(attribute).collect(),
            events: self.events.iter().copied().cloned().collect(),
            links: Vec::new(),
            dropped: self.dropped,
            scope: None,
            source: Arc::clone(self.source),
            origin: Some(self.origin),
        }
    }
}

impl Sink for Output {
    fn span(&mut self, span: PhaseSpan<'_>) {
        self.spans.push(span.into_span());
    }

    fn loose(&mut self, event: LooseEvent) {
        self.loose.push(event);
    }

    fn unsampled(&mut self) {
        self.unsampled += 1;
    }

    fn contradictory(&mut self, phase: PhaseId) {
        self.contradictory.push(phase);
    }

    fn held(&mut self) -> &mut [Span] {
        &mut self.spans
    }
}
