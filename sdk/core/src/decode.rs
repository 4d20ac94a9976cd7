//! Spans read from OTLP messages, by prost: those of ours that no Collector has taken, and
//! those of files, so that it may cost something.

use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope as ProtoScope, KeyValue, any_value,
};
use opentelemetry_proto::tonic::trace::v1 as proto;
use prost::Message;
use prost::encoding::{decode_key, decode_varint};

use crate::id::{SpanId, TraceId};
use crate::queue::DecodedSpan;
use crate::span::{
    Dropped, InstrumentationScope, Link, PhaseOrigin, Place, Source, Span, SpanEvent, SpanKind,
    Status, StatusRef,
};
use crate::value::{Attribute, Value};

/// The spans of an `ExportTraceServiceRequest` of ours, one at a time: all of them as
/// messages would take many times their bytes.
pub(crate) fn spans(
    body: &[u8],
) -> impl Iterator<Item = (proto::Span, Option<Arc<InstrumentationScope>>)> {
    let groups = fields(body, RESOURCE_SPANS).flat_map(|resource| fields(resource, SCOPE_SPANS));
    groups.flat_map(|group| {
        let named = fields(group, SCOPE).find_map(|bytes| ProtoScope::decode(bytes).ok());
        let url = fields(group, SCHEMA_URL).last().unwrap_or_default();
        let scope = scope(named, std::str::from_utf8(url).unwrap_or_default());
        fields(group, SPANS)
            .filter_map(|bytes| proto::Span::decode(bytes).ok())
            .map(move |span| (span, scope.clone()))
    })
}

/// Field of `ExportTraceServiceRequest`.
const RESOURCE_SPANS: u32 = 1;
/// Field of `ResourceSpans`.
const SCOPE_SPANS: u32 = 2;
/// Fields of `ScopeSpans`.
const SCOPE: u32 = 1;
const SPANS: u32 = 2;
const SCHEMA_URL: u32 = 3;

/// The values of one field of a message whose fields all have a length.
fn fields(mut message: &[u8], field: u32) -> impl Iterator<Item = &[u8]> {
    let next = move || {
        let (number, _) = decode_key(&mut message).ok()?;
        let len = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
        let (value, rest) = message.split_at_checked(len)?;
        message = rest;
        Some((number, value))
    };
    std::iter::from_fn(next).filter_map(move |(number, value)| (number == field).then_some(value))
}

/// A span of an OTLP message; none if its ids are invalid.
pub fn span(
    span: proto::Span,
    scope: Option<Arc<InstrumentationScope>>,
    origin: Option<PhaseOrigin>,
    source: &Arc<Source>,
) -> Option<Span> {
    Some(Span {
        trace_id: trace_id(&span.trace_id)?,
        span_id: span_id(&span.span_id)?,
        parent_span_id: span_id(&span.parent_span_id),
        parent_is_remote: span.flags & proto::SpanFlags::ContextIsRemoteMask as u32 != 0,
        flags: span.flags as u8,
        trace_state: span.trace_state.as_str().into(),
        kind: kind(span.kind()),
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
        events: span.events.into_iter().map(event).collect(),
        links: span.links.into_iter().filter_map(link).collect(),
        dropped: Dropped {
            attributes: span.dropped_attributes_count,
            events: span.dropped_events_count,
            links: span.dropped_links_count,
        },
        scope,
        source: Arc::clone(source),
        origin,
    })
}

/// A free span out of the queue, in its place.
pub(crate) fn free_span(
    span: &DecodedSpan<'_>,
    place: &Place,
    scope: Option<Arc<InstrumentationScope>>,
    source: &Arc<Source>,
) -> Span {
    let text = |bytes| std::str::from_utf8(bytes).unwrap_or_default();
    // The bytes are our own: what cannot be read was never written.
    let more = proto::Span::decode(span.more).unwrap_or_default();
    Span {
        trace_id: place.trace_id,
        span_id: span.span_id,
        parent_span_id: place.parent,
        parent_is_remote: span.parent_is_remote,
        flags: place.flags,
        trace_state: text(span.trace_state).into(),
        name: text(span.name).into(),
        kind: span.kind,
        start: span.start,
        end: span.end.max(span.start),
        status: match span.status {
            None => Status::Unset,
            Some((2, message)) => StatusRef::Error(text(message)).to_status(),
            Some(_) => Status::Ok,
        },
        attributes: span.attributes.to_vec(),
        events: more.events.into_iter().map(event).collect(),
        links: more.links.into_iter().filter_map(link).collect(),
        dropped: Dropped {
            attributes: more.dropped_attributes_count,
            events: more.dropped_events_count,
            links: more.dropped_links_count,
        },
        scope,
        source: Arc::clone(source),
        origin: None,
    }
}

/// A scope of an OTLP message; none if it is our own.
pub fn scope(scope: Option<ProtoScope>, schema_url: &str) -> Option<Arc<InstrumentationScope>> {
    let scope = scope?;
    let scope = InstrumentationScope {
        name: scope.name.into(),
        version: scope.version.into(),
        schema_url: schema_url.into(),
        attributes: attributes(scope.attributes),
    };
    (scope != InstrumentationScope::omnitrace()).then(|| Arc::new(scope))
}

fn kind(kind: proto::span::SpanKind) -> SpanKind {
    match kind {
        proto::span::SpanKind::Server => SpanKind::Server,
        proto::span::SpanKind::Client => SpanKind::Client,
        proto::span::SpanKind::Producer => SpanKind::Producer,
        proto::span::SpanKind::Consumer => SpanKind::Consumer,
        _ => SpanKind::Internal,
    }
}

fn event(event: proto::span::Event) -> SpanEvent {
    SpanEvent {
        time: event.time_unix_nano,
        name: event.name.into(),
        attributes: attributes(event.attributes),
        dropped_attributes: event.dropped_attributes_count,
    }
}

fn link(link: proto::span::Link) -> Option<Link> {
    Some(Link {
        trace_id: trace_id(&link.trace_id)?,
        span_id: span_id(&link.span_id)?,
        trace_state: link.trace_state.into(),
        attributes: attributes(link.attributes),
        dropped_attributes: link.dropped_attributes_count,
    })
}

fn trace_id(bytes: &[u8]) -> Option<TraceId> {
    TraceId::new(u128::from_be_bytes(bytes.try_into().ok()?))
}

fn span_id(bytes: &[u8]) -> Option<SpanId> {
    SpanId::new(u64::from_be_bytes(bytes.try_into().ok()?))
}

fn attributes(list: Vec<KeyValue>) -> Vec<Attribute> {
    let attribute = |kv: KeyValue| Attribute::new(kv.key, value(kv.value.unwrap_or_default()));
    list.into_iter().map(attribute).collect()
}

/// What no attribute of OpenTelemetry is becomes its text.
pub(crate) fn value(value: AnyValue) -> Value {
    match value.value {
        Some(any_value::Value::StringValue(text)) => Value::Str(text.into()),
        Some(any_value::Value::IntValue(n)) => Value::I64(n),
        Some(any_value::Value::DoubleValue(n)) => Value::F64(n),
        Some(any_value::Value::BoolValue(b)) => Value::Bool(b),
        Some(any_value::Value::ArrayValue(array)) => {
            Value::Array(array.values.into_iter().map(self::value).collect())
        }
        None => Value::Str("".into()),
        Some(other) => {
            let text = serde_json::to_string(&AnyValue { value: Some(other) });
            Value::Str(text.unwrap_or_default().into())
        }
    }
}
