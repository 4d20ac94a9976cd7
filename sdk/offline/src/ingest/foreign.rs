//! Spans of other tools' files: Jaeger JSON, OTLP JSON and OTLP protobuf.

use std::fmt;
use std::io::Read;
use std::sync::Arc;

use omnitrace::SpanContext;
use omnitrace::decode;
use omnitrace::id::{SpanId, TraceId};
use omnitrace::legacy_log::{AttributeMap, SpanSuffix};
use omnitrace::span::{
    Dropped, InstrumentationScope, Link, Source, Span, SpanEvent, SpanKind, Status,
};
use omnitrace::value::{Attribute, Value};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Otlp;
use opentelemetry_proto::tonic::trace::v1 as otlp;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::jaeger::model::{KeyValue, Process, RefType, Trace, Value as Tag};
use crate::jaeger::span::{host_of, role_of};
use crate::otlp_json;

/// Is given each span; the error ends the reading.
pub(super) type Each<'a> = dyn FnMut(Span) + 'a;

/// A span as the store holds it.
#[derive(Serialize, Deserialize)]
struct Held {
    name: String,
    end: u64,
    role: String,
    node: String,
    attributes: AttributeMap,
    span: SpanSuffix,
}

/// The span as bytes, which no line of a log begins with.
pub(super) fn to_bytes(span: &Span) -> Vec<u8> {
    let held = Held {
        name: span.name.to_string(),
        end: span.end,
        role: span.source.role.to_string(),
        node: span.source.node.to_string(),
        attributes: AttributeMap(span.attributes.clone()),
        span: SpanSuffix::new(span),
    };
    let mut bytes = vec![MARK];
    // Writing to memory cannot fail.
    let _ = serde_json::to_writer(&mut bytes, &held);
    bytes
}

const MARK: u8 = 1;

/// The span of [`to_bytes`]; none of other bytes.
pub(super) fn from_bytes(bytes: &[u8]) -> Option<Span> {
    let held: Held = serde_json::from_slice(bytes.strip_prefix(&[MARK])?).ok()?;
    let source = Arc::new(Source {
        role: held.role.into(),
        node: held.node.into(),
    });
    held.span
        .span(&held.name, held.end, &held.attributes, source)
}

/// OTLP in JSON: one object, or one after the other. One that cannot be read does not keep
/// the others from being taken.
pub(super) fn otlp_json(input: impl Read, each: &mut Each<'_>) -> Result<(), serde_json::Error> {
    let objects = serde_json::Deserializer::from_reader(input).into_iter::<Box<RawValue>>();
    let mut first = None;
    let mut more = 0_u64;
    for (number, object) in (1_u64..).zip(objects) {
        match object.and_then(|object| otlp_json::decode(object.get().as_bytes())) {
            Ok(request) => otlp(request, each),
            Err(error) if first.is_none() => first = Some((number, error)),
            Err(_) => more += 1,
        }
    }
    let Some((number, error)) = first else {
        return Ok(());
    };
    let more = match more {
        0 => String::new(),
        more => format!(", and {more} more that cannot be read"),
    };
    Err(Error::custom(format!("object {number}: {error}{more}")))
}

/// All spans of an OTLP message that have valid ids.
pub(super) fn otlp(request: ExportTraceServiceRequest, each: &mut Each<'_>) {
    for resource in request.resource_spans {
        let attributes = resource.resource.unwrap_or_default().attributes;
        let text = |key: &str| {
            let found = attributes.iter().find(|a| a.key == key)?;
            match &found.value.as_ref()?.value {
                Some(Otlp::StringValue(text)) => Some(text.as_str()),
                _ => None,
            }
        };
        let node = text("host.ip")
            .or(text("service.instance.id"))
            .unwrap_or_default();
        let source = Arc::new(Source {
            role: role_of(text("service.name").unwrap_or_default()).into(),
            node: node.into(),
        });
        for scope in resource.scope_spans {
            let known = decode::scope(scope.scope, &scope.schema_url);
            let known = known.filter(|scope| !scope.name.is_empty());
            for span in scope.spans {
                if let Some(span) = of_otlp(span, known.clone(), &source) {
                    each(span);
                }
            }
        }
    }
}

fn of_otlp(
    mut span: otlp::Span,
    scope: Option<Arc<InstrumentationScope>>,
    source: &Arc<Source>,
) -> Option<Span> {
    // Who says nothing of sampling has sampled what is here.
    if span.flags == 0 {
        span.flags = SpanContext::SAMPLED.into();
    }
    span.start_time_unix_nano = span.start_time_unix_nano.min(span.end_time_unix_nano);
    decode::span(span, scope, None, source)
}

/// Jaeger's JSON, one trace at a time.
pub(super) fn jaeger_json(input: impl Read, each: &mut Each<'_>) -> Result<(), serde_json::Error> {
    let mut input = serde_json::Deserializer::from_reader(input);
    input.deserialize_map(Document(each))?;
    input.end()
}

struct Document<'a, 'e>(&'a mut Each<'e>);

impl<'de> Visitor<'de> for Document<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with traces in \"data\"")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "data" {
                map.next_value_seed(Traces(&mut *self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct Traces<'a, 'e>(&'a mut Each<'e>);

impl<'de> DeserializeSeed<'de> for Traces<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Traces<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of traces")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut traces: S) -> Result<(), S::Error> {
        while let Some(trace) = traces.next_element::<Trace>()? {
            for span in &trace.spans {
                if let Some(span) = of_jaeger(&trace, span) {
                    (self.0)(span);
                }
            }
        }
        Ok(())
    }
}

fn of_jaeger(trace: &Trace, span: &crate::jaeger::model::Span) -> Option<Span> {
    let missing = Process::default();
    let process = trace.processes.get(&span.process_id).unwrap_or(&missing);
    let mut made = Span {
        trace_id: padded(&span.trace_id, 32).and_then(|id| TraceId::parse(id.as_bytes()))?,
        span_id: padded(&span.span_id, 16).and_then(|id| SpanId::parse(id.as_bytes()))?,
        parent_span_id: None,
        parent_is_remote: false,
        flags: 1,
        trace_state: Box::default(),
        name: span.operation_name.as_str().into(),
        kind: SpanKind::Internal,
        start: span.start_time.saturating_mul(1000),
        end: span
            .start_time
            .saturating_add(span.duration)
            .saturating_mul(1000),
        status: Status::Unset,
        attributes: Vec::new(),
        events: Vec::new(),
        links: Vec::new(),
        dropped: Dropped::default(),
        scope: None,
        source: Arc::new(Source {
            role: role_of(&process.service_name).into(),
            node: host_of(process).into(),
        }),
        origin: None,
    };
    for reference in &span.references {
        let trace_id = padded(&reference.trace_id, 32).and_then(|id| TraceId::parse(id.as_bytes()));
        let span_id = padded(&reference.span_id, 16).and_then(|id| SpanId::parse(id.as_bytes()));
        let (Some(trace_id), Some(span_id)) = (trace_id, span_id) else {
            continue;
        };
        let is_parent = reference.ref_type == RefType::ChildOf && trace_id == made.trace_id;
        if is_parent && made.parent_span_id.is_none() {
            made.parent_span_id = Some(span_id);
        } else {
            made.links.push(Link::new(trace_id, span_id));
        }
    }
    for tag in &span.tags {
        take_tag(&mut made, tag);
    }
    for log in &span.logs {
        let is_name = |field: &&KeyValue| field.key == "event";
        let name = log.fields.iter().find(is_name).map(|f| f.value.text());
        let rest = log.fields.iter().filter(|f| !is_name(f));
        made.events.push(SpanEvent {
            time: log.timestamp.saturating_mul(1000),
            name: name.unwrap_or_default().into(),
            attributes: rest.map(of_tag).collect(),
            dropped_attributes: 0,
        });
    }
    Some(made)
}

/// Old files leave out zeros in front.
fn padded(id: &str, digits: usize) -> Option<String> {
    (id.len() <= digits).then(|| format!("{id:0>digits$}").to_ascii_lowercase())
}

/// A tag is an attribute, or what OpenTelemetry keeps beside them.
fn take_tag(span: &mut Span, tag: &KeyValue) {
    let text = tag.value.text();
    match &*tag.key {
        "span.kind" => span.kind = SpanKind::named(&text).unwrap_or_default(),
        "otel.status_code" if text == "OK" => span.status = Status::Ok,
        "otel.status_code" if text == "ERROR" => {
            if !matches!(span.status, Status::Error(_)) {
                span.status = Status::Error("".into());
            }
        }
        "otel.status_description" => span.status = Status::Error(text.as_ref().into()),
        "error" if text == "true" => {
            if !matches!(span.status, Status::Error(_)) {
                span.status = Status::Error("".into());
            }
        }
        "w3c.tracestate" => span.trace_state = text.into(),
        _ => span.attributes.push(of_tag(tag)),
    }
}

fn of_tag(tag: &KeyValue) -> Attribute {
    let value = match &tag.value {
        Tag::Bool(b) => Value::Bool(*b),
        Tag::Int64(n) => Value::I64(*n),
        Tag::Float64(n) => Value::F64(*n),
        Tag::String(_) | Tag::Binary(_) => Value::Str(tag.value.text().as_ref().into()),
    };
    Attribute::new(tag.key.as_str(), value)
}
