//! OTLP spans as Jaeger shows them, by the rules of the Collector's Jaeger
//! translator, which Jaeger itself uses.

use std::collections::BTreeMap;
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Otlp;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope, KeyValue as OtlpKeyValue,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1 as otlp;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use super::model::{Document, KeyValue, Log, Process, RefType, Reference, Span, Trace, Value};
use super::tag::float_text;

/// What Jaeger calls a service, and a span, whose name is missing or blank.
const NO_SERVICE_NAME: &str = "missing-service-name";
const NO_SPAN_NAME: &str = "empty-span-name";

/// The spans of one export request.
#[derive(Debug, Default)]
pub struct Conversion {
    /// In the order of the request.
    pub spans: Vec<ConvertedSpan>,
    /// The number of spans left out because their own trace or span id is not
    /// 16 or 8 bytes, not all zero.
    pub rejected: usize,
}

/// One span with its ids as bytes, for whoever keeps or joins spans.
#[derive(Debug)]
pub struct ConvertedSpan {
    /// The trace's id.
    pub trace_id: [u8; 16],
    /// The span's id.
    pub span_id: [u8; 8],
    /// The parent's id, if the span has one.
    pub parent_id: Option<[u8; 8]>,
    /// The resource; the spans of one `ResourceSpans` share it.
    pub process: Arc<Process>,
    /// The span; its `process_id` is for [`Trace::from_spans`] to fill in.
    pub span: Span,
}

/// Converts every span of `request` that has valid ids.
pub fn convert(request: ExportTraceServiceRequest) -> Conversion {
    let mut conversion = Conversion::default();
    for resource_spans in request.resource_spans {
        let process = Arc::new(process(resource_spans.resource.unwrap_or_default()));
        for scope_spans in resource_spans.scope_spans {
            let scope = scope_tags(scope_spans.scope.unwrap_or_default());
            for span in scope_spans.spans {
                match convert_span(span, &scope, &process) {
                    Some(span) => conversion.spans.push(span),
                    None => conversion.rejected += 1,
                }
            }
        }
    }
    conversion
}

impl Conversion {
    /// The spans grouped by trace, the trace that starts first in front.
    pub fn into_document(self) -> Document {
        let mut traces: BTreeMap<[u8; 16], Vec<_>> = BTreeMap::new();
        for converted in self.spans {
            let spans = traces.entry(converted.trace_id).or_default();
            spans.push((converted.process, converted.span));
        }
        let mut data: Vec<_> = traces
            .into_iter()
            .map(|(trace_id, spans)| Trace::from_spans(hex(&trace_id), spans))
            .collect();
        data.sort_by_key(|trace| trace.spans.first().map(|span| span.start_time));
        Document { data }
    }
}

/// `bytes` as lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

fn valid_id<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    let id: [u8; N] = bytes.try_into().ok()?;
    (id != [0; N]).then_some(id)
}

fn process(resource: Resource) -> Process {
    let mut service_name = String::new();
    let mut tags = Vec::with_capacity(resource.attributes.len());
    for attribute in resource.attributes {
        let tag = tag(attribute);
        if tag.key == "service.name" {
            service_name = tag.value.text().into_owned();
        } else {
            tags.push(tag);
        }
    }
    if service_name.is_empty() {
        NO_SERVICE_NAME.clone_into(&mut service_name);
    }
    Process { service_name, tags }
}

fn scope_tags(scope: InstrumentationScope) -> Vec<KeyValue> {
    [
        ("otel.scope.name", scope.name),
        ("otel.scope.version", scope.version),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(key, value)| KeyValue::string(key, value))
    .collect()
}

fn convert_span(
    span: otlp::Span,
    scope: &[KeyValue],
    process: &Arc<Process>,
) -> Option<ConvertedSpan> {
    let trace_id = valid_id(&span.trace_id)?;
    let span_id = valid_id(&span.span_id)?;
    let parent_id = valid_id(&span.parent_span_id);
    let mut warnings = Vec::new();
    if parent_id.is_none() && !matches!(span.parent_span_id.len(), 0 | 8) {
        warnings.push(format!(
            "the parent id is left out: it has {} bytes instead of 8",
            span.parent_span_id.len()
        ));
    }
    let trace_id_text = hex(&trace_id);
    let references = references(&trace_id_text, parent_id, &span.links, &mut warnings);
    let (start_time, duration) = times(&span, &mut warnings);
    let tags = tags(
        scope,
        span.attributes,
        span.kind,
        span.status,
        span.trace_state,
    );
    let operation_name = if span.name.is_empty() {
        NO_SPAN_NAME.to_owned()
    } else {
        span.name
    };
    Some(ConvertedSpan {
        trace_id,
        span_id,
        parent_id,
        process: Arc::clone(process),
        span: Span {
            trace_id: trace_id_text,
            span_id: hex(&span_id),
            operation_name,
            references,
            start_time,
            duration,
            tags,
            logs: span.events.into_iter().map(log).collect(),
            process_id: String::new(),
            warnings,
            flags: None,
        },
    })
}

/// The parent comes first: the UI takes the first reference it can resolve.
fn references(
    trace_id: &str,
    parent_id: Option<[u8; 8]>,
    links: &[otlp::span::Link],
    warnings: &mut Vec<String>,
) -> Vec<Reference> {
    let parent = parent_id.map(|parent_id| Reference {
        ref_type: RefType::ChildOf,
        trace_id: trace_id.to_owned(),
        span_id: hex(&parent_id),
    });
    let links = links.iter().filter_map(|link| {
        match (valid_id::<16>(&link.trace_id), valid_id::<8>(&link.span_id)) {
            (Some(trace_id), Some(span_id)) => Some(Reference {
                ref_type: RefType::FollowsFrom,
                trace_id: hex(&trace_id),
                span_id: hex(&span_id),
            }),
            _ => {
                warnings.push("a link is left out: its ids are not valid".to_owned());
                None
            }
        }
    });
    parent.into_iter().chain(links).collect()
}

/// Start and duration in microseconds. Both ends are rounded down before they
/// are subtracted: so a child that ends with its parent still does.
fn times(span: &otlp::Span, warnings: &mut Vec<String>) -> (u64, u64) {
    let start = span.start_time_unix_nano;
    let end = span.end_time_unix_nano;
    if start == 0 && end != 0 {
        warnings.push("the span came without a start time; its end is taken".to_owned());
        return (end / 1000, 0);
    }
    if end < start {
        warnings.push(format!(
            "the span ended {} ns before its start; its duration is set to 0",
            start - end
        ));
        return (start / 1000, 0);
    }
    (start / 1000, end / 1000 - start / 1000)
}

fn tags(
    scope: &[KeyValue],
    attributes: Vec<OtlpKeyValue>,
    kind: i32,
    status: Option<otlp::Status>,
    trace_state: String,
) -> Vec<KeyValue> {
    let mut derived = Vec::with_capacity(5);
    let kind = match SpanKind::try_from(kind) {
        Ok(SpanKind::Internal) => Some("internal"),
        Ok(SpanKind::Server) => Some("server"),
        Ok(SpanKind::Client) => Some("client"),
        Ok(SpanKind::Producer) => Some("producer"),
        Ok(SpanKind::Consumer) => Some("consumer"),
        Ok(SpanKind::Unspecified) | Err(_) => None,
    };
    derived.extend(kind.map(|kind| KeyValue::string("span.kind", kind)));
    if let Some(status) = status {
        match status.code() {
            StatusCode::Unset => {}
            StatusCode::Ok => derived.push(KeyValue::string("otel.status_code", "OK")),
            StatusCode::Error => {
                derived.push(KeyValue::string("otel.status_code", "ERROR"));
                derived.push(KeyValue::bool("error", true));
            }
        }
        if !status.message.is_empty() {
            derived.push(KeyValue::string("otel.status_description", status.message));
        }
    }
    if !trace_state.is_empty() {
        derived.push(KeyValue::string("w3c.tracestate", trace_state));
    }
    let mut tags = Vec::with_capacity(scope.len() + attributes.len() + derived.len());
    tags.extend_from_slice(scope);
    // An attribute that says the same again would get a warning from the UI.
    tags.extend(
        attributes
            .into_iter()
            .map(tag)
            .filter(|tag| !scope.contains(tag) && !derived.contains(tag)),
    );
    tags.append(&mut derived);
    tags
}

fn log(event: otlp::span::Event) -> Log {
    let mut fields = Vec::with_capacity(event.attributes.len() + 1);
    if !event.name.is_empty() {
        fields.push(KeyValue::string("event", event.name));
    }
    fields.extend(event.attributes.into_iter().map(tag));
    Log {
        timestamp: event.time_unix_nano / 1000,
        fields,
    }
}

fn tag(attribute: OtlpKeyValue) -> KeyValue {
    let value = match attribute.value.and_then(|value| value.value) {
        Some(Otlp::StringValue(text)) => Value::String(text),
        Some(Otlp::BoolValue(flag)) => Value::Bool(flag),
        Some(Otlp::IntValue(number)) => Value::Int64(number),
        Some(Otlp::DoubleValue(number)) => Value::Float64(number),
        Some(Otlp::BytesValue(bytes)) => Value::Binary(bytes),
        None => Value::String(String::new()),
        nested => Value::String(json(AnyValue { value: nested }).to_string()),
    };
    KeyValue {
        key: attribute.key,
        value,
    }
}

/// Jaeger has no lists and maps: they are shown as JSON text.
fn json(value: AnyValue) -> serde_json::Value {
    use serde_json::Value as Json;
    match value.value {
        // An index into a dictionary that a trace request does not carry.
        None | Some(Otlp::StringValueStrindex(_)) => Json::Null,
        Some(Otlp::StringValue(text)) => text.into(),
        Some(Otlp::BoolValue(flag)) => flag.into(),
        Some(Otlp::IntValue(number)) => number.into(),
        Some(Otlp::DoubleValue(number)) if number.is_finite() => number.into(),
        Some(Otlp::DoubleValue(number)) => Json::String(float_text(number).into_owned()),
        Some(Otlp::BytesValue(bytes)) => Value::Binary(bytes).text().into_owned().into(),
        Some(Otlp::ArrayValue(array)) => array.values.into_iter().map(json).collect(),
        Some(Otlp::KvlistValue(map)) => map
            .values
            .into_iter()
            .map(|entry| (entry.key, entry.value.map_or(Json::Null, json)))
            .collect(),
    }
}

#[cfg(test)]
mod tests;
