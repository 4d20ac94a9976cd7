//! Our spans as Jaeger's.

use std::sync::Arc;

use omnitrace::Vocabulary;
use omnitrace::span::{Source, Span, Status};
use omnitrace::value::{Attribute, Value};

use super::model::{self, KeyValue, Log, Process, RefType, Reference, Trace};

/// One trace of spans with the same trace id.
pub fn trace(vocabulary: &Vocabulary, spans: &[Span]) -> Option<Trace> {
    let trace_id = spans.first()?.trace_id.to_string();
    let mut processes: Vec<(Arc<Source>, Arc<Process>)> = Vec::new();
    let converted = spans
        .iter()
        .map(|s| {
            let known = processes.iter().find(|(source, _)| *source == s.source);
            let process = match known {
                Some((_, process)) => Arc::clone(process),
                None => {
                    let process = Arc::new(process(vocabulary, &s.source));
                    processes.push((Arc::clone(&s.source), Arc::clone(&process)));
                    process
                }
            };
            (process, span(s))
        })
        .collect();
    Some(Trace::from_spans(trace_id, converted))
}

/// What a role begins with that stands for another tool's service.
const SERVICE: &str = "service:";

/// The role behind a service's name: what [`service_name`] gives this name.
pub(crate) fn role_of(service: &str) -> String {
    let vocabulary = Vocabulary::of_logs();
    let mut roles = vocabulary.roles().map(|(_, role)| role);
    if let Some(role) = roles.find(|role| *role.service == *service) {
        return role.name.to_string();
    }
    match service.strip_prefix("vllm-") {
        Some(role) if !role.is_empty() && !role.starts_with(SERVICE) => role.to_owned(),
        _ => format!("{SERVICE}{service}"),
    }
}

/// The node of a process, as [`process`] says it.
pub(crate) fn host_of(process: &Process) -> String {
    let tag = process.tags.iter().find(|tag| tag.key == "host.ip");
    tag.map(|tag| tag.value.text().into_owned())
        .unwrap_or_default()
}

/// The service of a role, as the live side names it by default.
pub fn service_name(vocabulary: &Vocabulary, role: &str) -> String {
    if let Some(service) = role.strip_prefix(SERVICE) {
        return service.to_owned();
    }
    vocabulary.role_named(role).map_or_else(
        || format!("vllm-{role}"),
        |role| vocabulary.role(role).service.to_string(),
    )
}

fn process(vocabulary: &Vocabulary, source: &Source) -> Process {
    let mut tags = Vec::new();
    if !source.node.is_empty() {
        tags.push(KeyValue::string("host.ip", &*source.node));
    }
    Process {
        service_name: service_name(vocabulary, &source.role),
        tags,
    }
}

fn span(span: &Span) -> model::Span {
    let trace_id = span.trace_id.to_string();
    // Both ends are rounded down, so a child that ends with its parent still does.
    let (start, end) = (span.start / 1000, span.end / 1000);
    let parent = span
        .parent_span_id
        .map(|id| (RefType::ChildOf, span.trace_id, id));
    let links = span
        .links
        .iter()
        .map(|l| (RefType::FollowsFrom, l.trace_id, l.span_id));
    let mut tags: Vec<KeyValue> = span.attributes.iter().map(tag).collect();
    tags.push(KeyValue::string("span.kind", span.kind.name()));
    match &span.status {
        Status::Unset => {}
        Status::Ok => tags.push(KeyValue::string("otel.status_code", "OK")),
        Status::Error(text) => {
            tags.push(KeyValue::string("otel.status_code", "ERROR"));
            if !text.is_empty() {
                tags.push(KeyValue::string("otel.status_description", &**text));
            }
            tags.push(KeyValue::bool("error", true));
        }
    }
    if !span.trace_state.is_empty() {
        tags.push(KeyValue::string("w3c.tracestate", &*span.trace_state));
    }
    if let Some(scope) = &span.scope {
        tags.push(KeyValue::string("otel.scope.name", &*scope.name));
        if !scope.version.is_empty() {
            tags.push(KeyValue::string("otel.scope.version", &*scope.version));
        }
    }
    model::Span {
        span_id: span.span_id.to_string(),
        operation_name: span.name.to_string(),
        references: parent
            .into_iter()
            .chain(links)
            .map(|(ref_type, trace, span)| Reference {
                ref_type,
                trace_id: trace.to_string(),
                span_id: span.to_string(),
            })
            .collect(),
        start_time: start,
        duration: end - start,
        tags,
        logs: span
            .events
            .iter()
            .map(|event| {
                let name = KeyValue::string("event", &*event.name);
                let fields = std::iter::once(name).chain(event.attributes.iter().map(tag));
                Log {
                    timestamp: event.time / 1000,
                    fields: fields.collect(),
                }
            })
            .collect(),
        trace_id,
        ..model::Span::default()
    }
}

fn tag(attribute: &Attribute) -> KeyValue {
    let key = &*attribute.key;
    match &attribute.value {
        Value::Str(text) => KeyValue::string(key, &**text),
        Value::I64(n) => KeyValue::int64(key, *n),
        Value::F64(n) => KeyValue::float64(key, *n),
        Value::Bool(b) => KeyValue::bool(key, *b),
        // As Jaeger shows what it receives by OTLP.
        Value::Array(array) => KeyValue::string(key, json(&array.items()).to_string()),
    }
}

pub(super) fn json(items: &[Value]) -> serde_json::Value {
    let item = |value: &Value| match value {
        Value::Str(text) => (**text).into(),
        Value::I64(n) => (*n).into(),
        Value::F64(n) => (*n).into(),
        Value::Bool(b) => (*b).into(),
        Value::Array(array) => json(&array.items()),
    };
    items.iter().map(item).collect()
}
