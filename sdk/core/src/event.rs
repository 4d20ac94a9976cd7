//! What callers record: actions, context bindings and finished free spans.

use std::sync::Arc;

use crate::context::SpanContext;
use crate::id::{SpanId, TraceId};
use crate::key::KeyRef;
use crate::span::{Dropped, Link, ScopeId, Source, SpanEvent, SpanKind, StatusRef};
use crate::value::ValueRef;
use crate::vocabulary::{ActionId, KnownPhase};

/// Attributes as the caller holds them.
pub type Attributes<'a> = &'a [(KeyRef<'a>, ValueRef<'a>)];

/// One moment of one request, as the caller hands it over.
#[derive(Debug, Clone, Copy)]
pub struct Action<'a> {
    /// Its name; one outside the vocabulary becomes an event on its role's span.
    pub name: &'a str,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Request id in any form that [`crate::id::canonical_request_id`] knows.
    pub request_id: &'a str,
    /// Which try of the phase it belongs to, from 0.
    pub occurrence: u16,
    /// The trace context that came with the request, if it is at hand.
    pub context: Option<SpanContext>,
    /// What else is known.
    pub attributes: Attributes<'a>,
}

/// A phase that is over, by a caller that has seen all of its role's part in the request: one
/// record in place of its actions.
#[derive(Debug, Clone, Copy)]
pub struct FinishedPhase<'a> {
    /// Which one.
    pub phase: KnownPhase,
    /// Which try of it, from 0.
    pub occurrence: u16,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970, or what `start` is where that is later.
    pub end: u64,
    /// Request id in any form that [`crate::id::canonical_request_id`] knows.
    pub request_id: &'a str,
    /// The trace context that came with the request, if one did.
    pub context: Option<SpanContext>,
    /// The phase that covers the role, as the request has it.
    pub entry: KnownPhase,
    /// When that started, in nanoseconds since 1970.
    pub entered: u64,
    /// What else is known. The last value of a key counts.
    pub attributes: Attributes<'a>,
}

/// A finished span that belongs to no phase, as the caller hands it over.
#[derive(Debug, Clone, Copy)]
pub struct FreeSpan<'a> {
    /// Span name.
    pub name: &'a str,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970.
    pub end: u64,
    /// Its own id.
    pub span_id: SpanId,
    /// Where it hangs.
    pub parent: Parent<'a>,
    /// The parent is in another process.
    pub parent_is_remote: bool,
    /// W3C `tracestate`; may be empty.
    pub trace_state: &'a str,
    /// Its kind.
    pub kind: SpanKind,
    /// Its status.
    pub status: StatusRef<'a>,
    /// What else is known.
    pub attributes: Attributes<'a>,
    /// Events by time.
    pub events: &'a [SpanEvent],
    /// Links.
    pub links: &'a [Link],
    /// What the caller's limits have kept out.
    pub dropped: Dropped,
    /// The library that made it: a number of [`crate::Recorder::scope`].
    pub scope: ScopeId,
}

impl<'a> FreeSpan<'a> {
    /// A span of nothing but its name, times and place.
    #[inline]
    pub fn new(name: &'a str, start: u64, end: u64, span_id: SpanId, parent: Parent<'a>) -> Self {
        Self {
            name,
            start,
            end,
            span_id,
            parent,
            parent_is_remote: false,
            trace_state: "",
            kind: SpanKind::Internal,
            status: StatusRef::Unset,
            attributes: &[],
            events: &[],
            links: &[],
            dropped: Dropped::default(),
            scope: ScopeId::default(),
        }
    }

    /// Whether it is recorded, as far as its parent has a say.
    #[inline(always)]
    pub(crate) fn is_sampled(&self) -> bool {
        !matches!(&self.parent, Parent::Span(context) if !context.is_sampled())
    }

    /// Whether it has nothing that few spans have.
    #[inline(always)]
    pub(crate) fn is_simple(&self) -> bool {
        self.events.is_empty() && self.links.is_empty() && self.dropped == Dropped::default()
    }
}

/// Where a free span hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent<'a> {
    /// Under another span.
    Span(SpanContext),
    /// Under this request's SERVER span in this process.
    Request(&'a str),
    /// Nowhere: it is the root of this trace.
    Root(TraceId),
}

/// An action's name: of the vocabulary, or the caller's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionName<'a> {
    /// In the vocabulary.
    Known(ActionId),
    /// Outside it.
    Custom(&'a str),
}

/// An action on its way through the assembler.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// What happened.
    pub action: ActionName<'a>,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Request id in any known form.
    pub request_id: &'a str,
    /// Which try of the phase it belongs to, from 0.
    pub occurrence: u16,
    /// The trace context that came with the request.
    pub context: Option<SpanContext>,
    /// What else is known.
    pub attributes: Attributes<'a>,
    /// Who recorded it.
    pub source: &'a Arc<Source>,
    /// It happened in another process of the node; only its time is needed here.
    pub carried: bool,
}
