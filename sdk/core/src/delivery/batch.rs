//! Spans that wait to be sent, already as bytes.
//!
//! A batch is the body of its request from the first span on: room for the
//! envelope is kept in front, so that nothing is copied when it is sent, nor when
//! it is sent again. What the legacy log needs of it is read back from the bytes,
//! which happens only when no Collector takes them.

use std::sync::Arc;
use std::time::Instant;

use opentelemetry_http::Bytes;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{self as proto, ScopeSpans};
use prost::Message;

use crate::assembler::PhaseSpan;
use crate::id::{SpanId, TraceId};
use crate::queue::DecodedSpan;
use crate::span::{Link, PhaseOrigin, Place, Source, Span, SpanEvent, SpanKind, Status};
use crate::value::{Attribute, Value};

use super::encode::{self, Envelope};

/// A Collector's usual limit on a gRPC message is 4 MiB; one span is far below
/// the rest.
const FULL_BYTES: usize = 3 << 20;
/// Rough bytes that a span takes beside its encoding.
const BESIDE: usize = 64;

/// Spans of one process, in the order they were finished.
pub struct Batch {
    /// Room for the envelope, then the spans.
    buffer: Bytes,
    /// Where the request's body begins in it.
    body: usize,
    /// Where the spans begin in it.
    spans: usize,
    entries: Vec<Entry>,
    /// Of those that are phases' spans, in their order.
    origins: Vec<PhaseOrigin>,
    /// When its first span came.
    pub(super) since: Instant,
    /// When its last span came.
    pub(super) until: Instant,
}

struct Entry {
    span_id: SpanId,
    is_phase: bool,
}

/// A batch that still takes spans.
pub(super) struct OpenBatch {
    buffer: Vec<u8>,
    room: usize,
    entries: Vec<Entry>,
    origins: Vec<PhaseOrigin>,
    since: Option<Instant>,
    until: Instant,
}

impl OpenBatch {
    pub(super) fn new(envelope: &Envelope, capacity: usize) -> Self {
        let room = envelope
            .head(usize::try_from(u32::MAX).unwrap_or(usize::MAX))
            .len();
        let mut buffer = Vec::with_capacity(capacity.max(room));
        buffer.resize(room, 0);
        Self {
            buffer,
            room,
            entries: Vec::new(),
            origins: Vec::new(),
            since: None,
            until: Instant::now(),
        }
    }

    pub(super) fn push(&mut self, span: Span, now: Instant) {
        encode::span(&span, &mut self.buffer);
        self.enter(span.span_id, span.origin, now);
    }

    pub(super) fn push_phase(&mut self, span: PhaseSpan<'_>, now: Instant) {
        encode::phase_span(&span, &mut self.buffer);
        self.enter(span.span_id, Some(span.origin), now);
    }

    pub(super) fn push_free(&mut self, span: &DecodedSpan<'_>, place: &Place, now: Instant) {
        encode::free_span(span, place, &mut self.buffer);
        self.enter(span.span_id, None, now);
    }

    fn enter(&mut self, span_id: SpanId, origin: Option<PhaseOrigin>, now: Instant) {
        self.entries.push(Entry {
            span_id,
            is_phase: origin.is_some(),
        });
        self.origins.extend(origin);
        self.since.get_or_insert(now);
        self.until = now;
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn memory(&self) -> usize {
        self.buffer.len() + self.entries.len() * BESIDE
    }

    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    pub(super) fn is_full(&self) -> bool {
        self.buffer.len() >= FULL_BYTES
    }

    /// The batch, and an empty one in its place. None: there is no span in it.
    pub(super) fn seal(&mut self, envelope: &Envelope) -> Option<Batch> {
        let since = self.since?;
        let mut next = Self::new(envelope, self.buffer.len());
        next.entries.reserve(self.entries.len());
        next.origins.reserve(self.origins.len());
        let mut full = std::mem::replace(self, next);
        let head = envelope.head(full.buffer.len() - full.room);
        let body = full.room - head.len();
        full.buffer[body..full.room].copy_from_slice(&head);
        Some(Batch {
            buffer: full.buffer.into(),
            body,
            spans: full.room,
            entries: full.entries,
            origins: full.origins,
            since,
            until: full.until,
        })
    }
}

impl Batch {
    /// A batch of these spans; none if there are none.
    pub(super) fn of(spans: Vec<Span>, envelope: &Envelope) -> Option<Self> {
        let mut open = OpenBatch::new(envelope, 0);
        let now = Instant::now();
        for span in spans {
            open.push(span, now);
        }
        open.seal(envelope)
    }

    /// Number of spans, never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn memory(&self) -> usize {
        self.buffer.len() + self.entries.len() * BESIDE
    }

    pub(super) fn span_ids(&self) -> Vec<SpanId> {
        self.entries.iter().map(|e| e.span_id).collect()
    }

    /// An `ExportTraceServiceRequest`.
    pub(super) fn body(&self) -> Bytes {
        self.buffer.slice(self.body..)
    }

    /// The spans as they were before they became bytes.
    pub(super) fn decode(&self, source: &Arc<Source>) -> Vec<Span> {
        // The bytes are our own: what cannot be read was never written.
        let spans = ScopeSpans::decode(&self.buffer[self.spans..])
            .unwrap_or_default()
            .spans;
        debug_assert_eq!(spans.len(), self.entries.len());
        let mut origins = self.origins.iter().cloned();
        let mut origin = |entry: &Entry| entry.is_phase.then(|| origins.next()).flatten();
        spans
            .into_iter()
            .zip(&self.entries)
            .filter_map(|(span, entry)| from_proto(span, origin(entry), source))
            .collect()
    }
}

fn from_proto(
    span: proto::Span,
    origin: Option<PhaseOrigin>,
    source: &Arc<Source>,
) -> Option<Span> {
    Some(Span {
        trace_id: trace_id(&span.trace_id)?,
        span_id: span_id(&span.span_id)?,
        parent_span_id: span_id(&span.parent_span_id),
        flags: span.flags as u8,
        kind: match span.kind() {
            proto::span::SpanKind::Server => SpanKind::Server,
            proto::span::SpanKind::Client => SpanKind::Client,
            proto::span::SpanKind::Producer => SpanKind::Producer,
            proto::span::SpanKind::Consumer => SpanKind::Consumer,
            _ => SpanKind::Internal,
        },
        name: span.name.into(),
        start: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        status: match span.status {
            Some(status) => match status.code() {
                proto::status::StatusCode::Error => Status::Error(status.message.into()),
                proto::status::StatusCode::Ok => Status::Ok,
                proto::status::StatusCode::Unset => Status::Unset,
            },
            None => Status::Unset,
        },
        attributes: attributes(span.attributes),
        events: span
            .events
            .into_iter()
            .map(|event| SpanEvent {
                time: event.time_unix_nano,
                name: event.name.into(),
                attributes: attributes(event.attributes),
            })
            .collect(),
        links: span
            .links
            .iter()
            .filter_map(|link| {
                Some(Link {
                    trace_id: trace_id(&link.trace_id)?,
                    span_id: span_id(&link.span_id)?,
                })
            })
            .collect(),
        source: Arc::clone(source),
        origin,
    })
}

fn trace_id(bytes: &[u8]) -> Option<TraceId> {
    TraceId::new(u128::from_be_bytes(bytes.try_into().ok()?))
}

fn span_id(bytes: &[u8]) -> Option<SpanId> {
    SpanId::new(u64::from_be_bytes(bytes.try_into().ok()?))
}

fn attributes(list: Vec<KeyValue>) -> Vec<Attribute> {
    list.into_iter()
        .filter_map(|kv| {
            let value = match kv.value?.value? {
                any_value::Value::StringValue(text) => Value::Str(text.into()),
                any_value::Value::IntValue(n) => Value::I64(n),
                any_value::Value::DoubleValue(n) => Value::F64(n),
                any_value::Value::BoolValue(b) => Value::Bool(b),
                _ => return None,
            };
            Some(Attribute {
                key: kv.key.into(),
                value,
            })
        })
        .collect()
}
