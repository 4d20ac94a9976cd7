//! The finished span, as Delivery sends it and the writers write it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::context::SpanContext;
use crate::id::{SpanId, TraceId};
use crate::value::Attribute;
use crate::vocabulary::{ActionId, PhaseId};

/// OpenTelemetry span kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpanKind {
    /// Work inside the process.
    #[default]
    Internal,
    /// The receiving side of a call.
    Server,
    /// The sending side of a call.
    Client,
    /// The sending side of a message.
    Producer,
    /// The receiving side of a message.
    Consumer,
}

impl SpanKind {
    const NAMES: [(Self, &str); 5] = [
        (Self::Internal, "internal"),
        (Self::Server, "server"),
        (Self::Client, "client"),
        (Self::Producer, "producer"),
        (Self::Consumer, "consumer"),
    ];

    /// Jaeger's lower-case name of the kind.
    pub fn name(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(kind, _)| *kind == self)
            .map_or("internal", |(_, name)| name)
    }

    /// The kind with this lower-case name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(_, n)| *n == name)
            .map(|(kind, _)| *kind)
    }
}

/// OpenTelemetry span status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Status {
    /// Nothing said.
    #[default]
    Unset,
    /// Said to be fine.
    Ok,
    /// Failed, with a description that may be empty.
    Error(Arc<str>),
}

/// OpenTelemetry span status, as the caller holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StatusRef<'a> {
    /// Nothing said.
    #[default]
    Unset,
    /// Said to be fine.
    Ok,
    /// Failed, with a description that may be empty.
    Error(&'a str),
}

impl Status {
    /// The same status, borrowed.
    pub fn as_ref(&self) -> StatusRef<'_> {
        match self {
            Self::Unset => StatusRef::Unset,
            Self::Ok => StatusRef::Ok,
            Self::Error(text) => StatusRef::Error(text),
        }
    }
}

impl StatusRef<'_> {
    /// The same status, owned.
    pub fn to_status(self) -> Status {
        match self {
            Self::Unset => Status::Unset,
            Self::Ok => Status::Ok,
            Self::Error(text) => Status::Error(text.into()),
        }
    }
}

/// A moment within a span.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SpanEvent {
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Event name.
    pub name: Arc<str>,
    /// Event attributes.
    pub attributes: Vec<Attribute>,
    /// Attributes left out because of a limit.
    pub dropped_attributes: u32,
}

/// A span that this one points to without being its child.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// Trace of the other span.
    pub trace_id: TraceId,
    /// The other span.
    pub span_id: SpanId,
    /// W3C `tracestate` of the other span.
    pub trace_state: Box<str>,
    /// What is known of the link.
    pub attributes: Vec<Attribute>,
    /// Attributes left out because of a limit.
    pub dropped_attributes: u32,
}

impl Link {
    /// A link without attributes.
    pub fn new(trace_id: TraceId, span_id: SpanId) -> Self {
        Self {
            trace_id,
            span_id,
            trace_state: "".into(),
            attributes: Vec::new(),
            dropped_attributes: 0,
        }
    }
}

/// What limits have kept out of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Dropped {
    /// Attributes.
    pub attributes: u32,
    /// Events.
    pub events: u32,
    /// Links.
    pub links: u32,
}

/// The library that made a span (OpenTelemetry's instrumentation scope).
#[derive(Debug, Clone, PartialEq)]
pub struct InstrumentationScope {
    /// Its name.
    pub name: Arc<str>,
    /// Its version; may be empty.
    pub version: Arc<str>,
    /// URL of the schema that its attributes follow; may be empty.
    pub schema_url: Arc<str>,
    /// What else is known of it.
    pub attributes: Vec<Attribute>,
}

impl InstrumentationScope {
    /// Our own: of phases, and of free spans that name no other.
    pub fn omnitrace() -> Self {
        Self {
            name: "omnitrace".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            schema_url: "".into(),
            attributes: Vec::new(),
        }
    }
}

/// A scope's number in its process; 0 is omnitrace's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScopeId(pub(crate) u16);

impl ScopeId {
    /// As an integer, for whoever keeps it beside its recorder's
    /// [`number`](crate::Recorder::number).
    #[inline]
    pub fn number(self) -> u16 {
        self.0
    }

    /// The id with this [`ScopeId::number`].
    #[inline]
    pub fn from_number(number: u16) -> Self {
        Self(number)
    }
}

/// Where a span or event was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// `proxy`, `prefill`, `decode`, or what ROLE said.
    pub role: Arc<str>,
    /// The node's address or name.
    pub node: Arc<str>,
}

/// Where a span is in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The trace.
    pub trace_id: TraceId,
    /// The parent; none for a root.
    pub parent: Option<SpanId>,
    /// W3C trace flags.
    pub flags: u8,
}

/// An action of the vocabulary with its time, as a phase's end or start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The action.
    pub action: ActionId,
    /// Nanoseconds since 1970.
    pub time: u64,
}

/// How a phase's span came about; enough to write its legacy lines again.
#[derive(Debug, Clone, PartialEq)]
pub struct PhaseOrigin {
    /// Canonical request id.
    pub request_id: Arc<str>,
    /// The phase.
    pub phase: PhaseId,
    /// Which try of this phase, from 0.
    pub occurrence: u16,
    /// The context that came with the request.
    pub context: Option<SpanContext>,
    /// The action by which the request entered the role, where the span's id
    /// depends on its time.
    pub entered: Option<Moment>,
    /// The action that started it, unless it was never seen.
    pub start: Option<Moment>,
    /// The action that ended it, unless it was never seen.
    pub end: Option<Moment>,
    /// All actions of its side of the request, where `start` and `end` alone do not
    /// bound it.
    pub seen: Vec<Moment>,
    /// How many of the span's first attributes came with the actions; the rest
    /// is derived.
    pub recorded_attributes: usize,
}

/// How a phase's span came about, where it is not kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PhaseOriginRef<'a> {
    pub(crate) request_id: &'a str,
    pub(crate) phase: PhaseId,
    pub(crate) occurrence: u16,
    pub(crate) context: Option<SpanContext>,
    pub(crate) entered: Option<Moment>,
    pub(crate) start: Option<Moment>,
    pub(crate) end: Option<Moment>,
    pub(crate) seen: &'a [Moment],
    pub(crate) recorded_attributes: usize,
}

impl PhaseOrigin {
    /// The same, borrowed.
    pub(crate) fn as_ref(&self) -> PhaseOriginRef<'_> {
        PhaseOriginRef {
            request_id: &self.request_id,
            phase: self.phase,
            occurrence: self.occurrence,
            context: self.context,
            entered: self.entered,
            start: self.start,
            end: self.end,
            seen: &self.seen,
            recorded_attributes: self.recorded_attributes,
        }
    }
}

/// A finished span.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// The trace.
    pub trace_id: TraceId,
    /// Its id.
    pub span_id: SpanId,
    /// Its parent; none for a root.
    pub parent_span_id: Option<SpanId>,
    /// The parent is in another process.
    pub parent_is_remote: bool,
    /// W3C trace flags.
    pub flags: u8,
    /// W3C `tracestate`; may be empty.
    pub trace_state: Box<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its kind.
    pub kind: SpanKind,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970, never before `start`.
    pub end: u64,
    /// Its status.
    pub status: Status,
    /// Attributes, each key once.
    pub attributes: Vec<Attribute>,
    /// Events by time.
    pub events: Vec<SpanEvent>,
    /// Links.
    pub links: Vec<Link>,
    /// What limits have kept out.
    pub dropped: Dropped,
    /// The library that made it; none stands for [`InstrumentationScope::omnitrace`].
    pub scope: Option<Arc<InstrumentationScope>>,
    /// Who recorded it.
    pub source: Arc<Source>,
    /// The phase behind it; none for a free span.
    pub origin: Option<PhaseOrigin>,
}
