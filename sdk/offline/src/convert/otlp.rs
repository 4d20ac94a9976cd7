//! Spans as OTLP messages, for files: a line of JSON for each trace, or one `TracesData`
//! message in protobuf.

use std::sync::Arc;

use omnitrace::Vocabulary;
use omnitrace::span::{
    InstrumentationScope as OurScope, Link, Source, Span, SpanEvent, SpanKind, Status,
};
use omnitrace::value::{Attribute, Value};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Otlp;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span as otlp;
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span as OtlpSpan, Status as OtlpStatus,
};
use prost::Message;

/// Whether a span's parent is remote is known, and is.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// Appends a line.
pub(super) fn json_line(vocabulary: &Vocabulary, spans: &[Span], out: &mut Vec<u8>) {
    // Writing to memory cannot fail.
    let _ = serde_json::to_writer(&mut *out, &request(vocabulary, spans));
    out.push(b'\n');
}

/// Appends fields of a `TracesData` message: such messages one after the other are one.
pub(super) fn protobuf(vocabulary: &Vocabulary, spans: &[Span], out: &mut Vec<u8>) {
    out.extend_from_slice(&request(vocabulary, spans).encode_to_vec());
}

/// All spans of a trace, by who recorded them and by scope.
fn request(vocabulary: &Vocabulary, spans: &[Span]) -> ExportTraceServiceRequest {
    let mut resources: Vec<(Arc<Source>, ResourceSpans)> = Vec::new();
    for span in spans {
        let known = resources
            .iter()
            .position(|(source, _)| *source == span.source);
        let at = known.unwrap_or_else(|| {
            let source = Arc::clone(&span.source);
            let resource = ResourceSpans {
                resource: Some(resource(vocabulary, &source)),
                ..ResourceSpans::default()
            };
            resources.push((source, resource));
            resources.len() - 1
        });
        let scopes = &mut resources[at].1.scope_spans;
        let scope = match &span.scope {
            Some(scope) => scope_spans(scope),
            None => scope_spans(&OurScope::omnitrace()),
        };
        let same = |s: &ScopeSpans| (&s.scope, &s.schema_url) == (&scope.scope, &scope.schema_url);
        match scopes.iter_mut().find(|s| same(s)) {
            Some(scope) => scope.spans.push(message(span)),
            None => scopes.push(ScopeSpans {
                spans: vec![message(span)],
                ..scope
            }),
        }
    }
    ExportTraceServiceRequest {
        resource_spans: resources.into_iter().map(|(_, spans)| spans).collect(),
    }
}

/// What stands for a service in Jaeger, as the replay sends it.
fn resource(vocabulary: &Vocabulary, source: &Source) -> Resource {
    Resource {
        attributes: crate::replay::resource(vocabulary, source)
            .iter()
            .map(key_value)
            .collect(),
        ..Resource::default()
    }
}

fn scope_spans(scope: &OurScope) -> ScopeSpans {
    ScopeSpans {
        scope: Some(InstrumentationScope {
            name: scope.name.to_string(),
            version: scope.version.to_string(),
            attributes: scope.attributes.iter().map(key_value).collect(),
            dropped_attributes_count: 0,
        }),
        spans: Vec::new(),
        schema_url: scope.schema_url.to_string(),
    }
}

fn message(span: &Span) -> OtlpSpan {
    let remote = if span.parent_is_remote { IS_REMOTE } else { 0 };
    OtlpSpan {
        trace_id: span.trace_id.value().to_be_bytes().to_vec(),
        span_id: span.span_id.value().to_be_bytes().to_vec(),
        trace_state: span.trace_state.to_string(),
        parent_span_id: span
            .parent_span_id
            .map_or_else(Vec::new, |id| id.value().to_be_bytes().to_vec()),
        flags: u32::from(span.flags) | HAS_IS_REMOTE | remote,
        name: span.name.to_string(),
        kind: match span.kind {
            SpanKind::Internal => otlp::SpanKind::Internal,
            SpanKind::Server => otlp::SpanKind::Server,
            SpanKind::Client => otlp::SpanKind::Client,
            SpanKind::Producer => otlp::SpanKind::Producer,
            SpanKind::Consumer => otlp::SpanKind::Consumer,
        }
        .into(),
        start_time_unix_nano: span.start,
        end_time_unix_nano: span.end,
        attributes: span.attributes.iter().map(key_value).collect(),
        dropped_attributes_count: span.dropped.attributes,
        events: span.events.iter().map(event).collect(),
        dropped_events_count: span.dropped.events,
        links: span.links.iter().map(link).collect(),
        dropped_links_count: span.dropped.links,
        status: status(&span.status),
    }
}

fn status(status: &Status) -> Option<OtlpStatus> {
    let (code, message) = match status {
        Status::Unset => return None,
        Status::Ok => (1, String::new()),
        Status::Error(reason) => (2, reason.to_string()),
    };
    Some(OtlpStatus { message, code })
}

fn event(event: &SpanEvent) -> otlp::Event {
    otlp::Event {
        time_unix_nano: event.time,
        name: event.name.to_string(),
        attributes: event.attributes.iter().map(key_value).collect(),
        dropped_attributes_count: event.dropped_attributes,
    }
}

fn link(link: &Link) -> otlp::Link {
    otlp::Link {
        trace_id: link.trace_id.value().to_be_bytes().to_vec(),
        span_id: link.span_id.value().to_be_bytes().to_vec(),
        trace_state: link.trace_state.to_string(),
        attributes: link.attributes.iter().map(key_value).collect(),
        dropped_attributes_count: link.dropped_attributes,
        flags: 0,
    }
}

fn key_value(attribute: &Attribute) -> KeyValue {
    KeyValue {
        key: attribute.key.to_string(),
        value: Some(value(&attribute.value)),
        ..KeyValue::default()
    }
}

fn value(value: &Value) -> AnyValue {
    let value = match value {
        Value::Str(text) => Otlp::StringValue(text.to_string()),
        Value::I64(n) => Otlp::IntValue(*n),
        Value::F64(n) => Otlp::DoubleValue(*n),
        Value::Bool(b) => Otlp::BoolValue(*b),
        Value::Array(array) => Otlp::ArrayValue(ArrayValue {
            values: array.items().iter().map(self::value).collect(),
        }),
    };
    AnyValue { value: Some(value) }
}
