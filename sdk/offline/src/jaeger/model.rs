//! The JSON that the Jaeger UI shows and that `jaeger-query` answers
//! (`internal/uimodel` in Jaeger's source; tried with UI 2.14.1).
//!
//! Reading is lenient where Jaeger itself is: `null` stands for an empty list
//! and unknown fields are skipped. Writing gives lists, never `null`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

pub use super::tag::{KeyValue, Value};

/// A whole file: what "Upload" of the UI takes and `convert` writes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// The traces, in the order in which they are listed.
    #[serde(deserialize_with = "null_as_default")]
    pub data: Vec<Trace>,
}

/// All spans of one trace id. Built by [`Trace::from_spans`], which sees to
/// what the UI demands: known processes, no cycle.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// 32 lower-case hex digits.
    #[serde(rename = "traceID")]
    pub trace_id: String,
    /// The spans, earliest first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub spans: Vec<Span>,
    /// The processes by the key that [`Span::process_id`] names.
    #[serde(default, deserialize_with = "null_as_default")]
    pub processes: BTreeMap<String, Process>,
}

/// One span.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    /// 32 lower-case hex digits, the same as the trace's.
    #[serde(rename = "traceID")]
    pub trace_id: String,
    /// 16 lower-case hex digits.
    #[serde(rename = "spanID")]
    pub span_id: String,
    /// The span's name.
    pub operation_name: String,
    /// The parent first, then the links.
    #[serde(default, deserialize_with = "null_as_default")]
    pub references: Vec<Reference>,
    /// Microseconds since 1970; the UI leaves out a span that starts at 0.
    pub start_time: u64,
    /// Microseconds.
    pub duration: u64,
    /// The attributes; `error` = true gives the badge, `span.kind` the kind.
    #[serde(default, deserialize_with = "null_as_default")]
    pub tags: Vec<KeyValue>,
    /// The events.
    #[serde(default, deserialize_with = "null_as_default")]
    pub logs: Vec<Log>,
    /// A key of [`Trace::processes`].
    #[serde(rename = "processID", default)]
    pub process_id: String,
    /// What a reader should know about this span's data; the UI shows it.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub warnings: Vec<String>,
    /// Jaeger's own flags; bit 0 is "sampled".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<u32>,
}

/// The service (and instance) that made a span.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// The service's name; the UI groups and colours by it.
    pub service_name: String,
    /// The other resource attributes.
    #[serde(default, deserialize_with = "null_as_default")]
    pub tags: Vec<KeyValue>,
}

/// One event of a span.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Log {
    /// Microseconds since 1970.
    pub timestamp: u64,
    /// The event's attributes; its name is the field `event`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub fields: Vec<KeyValue>,
}

/// How a span refers to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RefType {
    /// The other span is the parent.
    ChildOf,
    /// The other span is linked.
    FollowsFrom,
}

/// From one span to another, maybe in another trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reference {
    /// Parent or link.
    pub ref_type: RefType,
    /// 32 lower-case hex digits.
    #[serde(rename = "traceID")]
    pub trace_id: String,
    /// 16 lower-case hex digits.
    #[serde(rename = "spanID")]
    pub span_id: String,
}

/// Jaeger writes an empty list as `null` in several places.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_is_written_with_jaegers_field_names_and_read_back() {
        let document = Document {
            data: vec![Trace {
                trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
                spans: vec![Span {
                    trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
                    span_id: "b7ad6b7169203331".into(),
                    operation_name: "Prefill".into(),
                    references: vec![Reference {
                        ref_type: RefType::FollowsFrom,
                        trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
                        span_id: "00f067aa0ba902b7".into(),
                    }],
                    start_time: 1_795_334_645_577_302,
                    duration: 12,
                    tags: vec![KeyValue::string("span.kind", "server")],
                    logs: vec![Log {
                        timestamp: 1_795_334_645_577_303,
                        fields: vec![KeyValue::string("event", "first token")],
                    }],
                    process_id: "p1".into(),
                    warnings: vec!["late".into()],
                    flags: Some(1),
                }],
                processes: BTreeMap::from([(
                    "p1".to_owned(),
                    Process {
                        service_name: "vllm-prefill".into(),
                        tags: vec![KeyValue::int64("process.pid", 7)],
                    },
                )]),
            }],
        };
        let written = serde_json::to_value(&document).unwrap();
        assert_eq!(
            written,
            json!({"data": [{
                "traceID": "0af7651916cd43dd8448eb211c80319c",
                "spans": [{
                    "traceID": "0af7651916cd43dd8448eb211c80319c",
                    "spanID": "b7ad6b7169203331",
                    "operationName": "Prefill",
                    "references": [{
                        "refType": "FOLLOWS_FROM",
                        "traceID": "0af7651916cd43dd8448eb211c80319c",
                        "spanID": "00f067aa0ba902b7",
                    }],
                    "startTime": 1_795_334_645_577_302_u64,
                    "duration": 12,
                    "tags": [{"key": "span.kind", "type": "string", "value": "server"}],
                    "logs": [{
                        "timestamp": 1_795_334_645_577_303_u64,
                        "fields": [{"key": "event", "type": "string", "value": "first token"}],
                    }],
                    "processID": "p1",
                    "warnings": ["late"],
                    "flags": 1,
                }],
                "processes": {"p1": {
                    "serviceName": "vllm-prefill",
                    "tags": [{"key": "process.pid", "type": "int64", "value": 7}],
                }},
            }]})
        );
        assert_eq!(
            serde_json::from_value::<Document>(written).unwrap(),
            document
        );
    }

    #[test]
    fn a_null_list_from_a_genuine_jaeger_is_read_as_empty_and_written_as_a_list() {
        let answer = json!({
            "data": [{
                "traceID": "1", "processes": null, "warnings": null,
                "spans": [{
                    "traceID": "1", "spanID": "2", "operationName": "x", "references": null,
                    "startTime": 5, "duration": 0, "tags": null, "logs": null,
                    "processID": "p1", "warnings": null,
                }],
            }],
            "total": 0, "limit": 0, "offset": 0, "errors": null,
        });
        let document: Document = serde_json::from_value(answer).unwrap();
        assert_eq!(
            serde_json::to_value(document).unwrap(),
            json!({"data": [{
                "traceID": "1", "processes": {},
                "spans": [{
                    "traceID": "1", "spanID": "2", "operationName": "x", "references": [],
                    "startTime": 5, "duration": 0, "tags": [], "logs": [], "processID": "p1",
                }],
            }]})
        );
    }
}
