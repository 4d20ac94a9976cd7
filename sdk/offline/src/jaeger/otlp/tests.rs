use opentelemetry_proto::tonic::common::v1::ArrayValue;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use serde_json::json;

use super::*;

fn request(json: serde_json::Value) -> ExportTraceServiceRequest {
    serde_json::from_value(json).unwrap()
}

#[test]
fn a_span_with_everything_becomes_what_jaeger_shows() {
    let conversion = convert(request(json!({"resourceSpans": [{
        "resource": {"attributes": [
            {"key": "service.name", "value": {"stringValue": "vllm-prefill"}},
            {"key": "process.pid", "value": {"intValue": "41"}},
        ]},
        "scopeSpans": [{
            "scope": {"name": "omnitrace", "version": "0.1.0"},
            "spans": [{
                "traceId": "0af7651916cd43dd8448eb211c80319c",
                "spanId": "b7ad6b7169203331",
                "parentSpanId": "00f067aa0ba902b7",
                "traceState": "a=b",
                "name": "Prefill",
                "kind": 2,
                "startTimeUnixNano": "1795334645577302999",
                "endTimeUnixNano": "1795334645579303001",
                "attributes": [
                    {"key": "error", "value": {"boolValue": true}},
                    {"key": "ok", "value": {"boolValue": false}},
                    {"key": "tokens", "value": {"intValue": 12}},
                    {"key": "share", "value": {"doubleValue": 0.25}},
                    {"key": "raw", "value": {"bytesValue": "AAAwOQ=="}},
                    {"key": "none", "value": {}},
                    {"key": "list", "value": {"arrayValue": {"values": [
                        {"stringValue": "a"}, {"intValue": 1}, {"doubleValue": 0.5},
                    ]}}},
                    {"key": "map", "value": {"kvlistValue": {"values": [
                        {"key": "x", "value": {"boolValue": true}}, {"key": "y"},
                    ]}}},
                ],
                "events": [
                    {"timeUnixNano": "1795334645578000999", "name": "first token",
                     "attributes": [{"key": "n", "value": {"intValue": 1}}]},
                    {"timeUnixNano": "1795334645578001000"},
                ],
                "links": [
                    {"traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "1111111111111111"},
                    {"traceId": "", "spanId": "1111111111111111"},
                ],
                "status": {"code": 2, "message": "out of blocks"},
            }],
        }],
    }]})));
    assert_eq!(conversion.rejected, 0);
    assert_eq!(
        conversion.spans[0].parent_id,
        Some([0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 2, 0xb7])
    );
    let string = |key, value| json!({"key": key, "type": "string", "value": value});
    assert_eq!(
        serde_json::to_value(conversion.into_document()).unwrap(),
        json!({"data": [{
            "traceID": "0af7651916cd43dd8448eb211c80319c",
            "spans": [{
                "traceID": "0af7651916cd43dd8448eb211c80319c",
                "spanID": "b7ad6b7169203331",
                "operationName": "Prefill",
                "references": [
                    {"refType": "CHILD_OF", "traceID": "0af7651916cd43dd8448eb211c80319c",
                     "spanID": "00f067aa0ba902b7"},
                    {"refType": "FOLLOWS_FROM", "traceID": "0af7651916cd43dd8448eb211c80319c",
                     "spanID": "1111111111111111"},
                ],
                "startTime": 1_795_334_645_577_302_u64,
                "duration": 2001,
                "tags": [
                    string("otel.scope.name", "omnitrace"),
                    string("otel.scope.version", "0.1.0"),
                    {"key": "ok", "type": "bool", "value": false},
                    {"key": "tokens", "type": "int64", "value": 12},
                    {"key": "share", "type": "float64", "value": 0.25},
                    {"key": "raw", "type": "binary", "value": "AAAwOQ=="},
                    string("none", ""),
                    string("list", r#"["a",1,0.5]"#),
                    string("map", r#"{"x":true,"y":null}"#),
                    string("span.kind", "server"),
                    string("otel.status_code", "ERROR"),
                    {"key": "error", "type": "bool", "value": true},
                    string("otel.status_description", "out of blocks"),
                    string("w3c.tracestate", "a=b"),
                ],
                "logs": [
                    {"timestamp": 1_795_334_645_578_000_u64, "fields": [
                        string("event", "first token"),
                        {"key": "n", "type": "int64", "value": 1},
                    ]},
                    {"timestamp": 1_795_334_645_578_001_u64, "fields": []},
                ],
                "processID": "p1",
                "warnings": ["a link is left out: its ids are not valid"],
            }],
            "processes": {"p1": {
                "serviceName": "vllm-prefill",
                "tags": [{"key": "process.pid", "type": "int64", "value": 41}],
            }},
        }]})
    );
}

#[test]
fn what_json_cannot_hold_stands_in_a_list_as_text() {
    let values = [
        Otlp::DoubleValue(f64::NAN),
        Otlp::DoubleValue(f64::INFINITY),
        Otlp::BytesValue(vec![0, 0, 48, 57]),
    ];
    let values = values.map(|value| AnyValue { value: Some(value) }).into();
    assert_eq!(
        json(AnyValue {
            value: Some(Otlp::ArrayValue(ArrayValue { values })),
        }),
        json!(["NaN", "Infinity", "AAAwOQ=="])
    );
}

fn one_span(span: otlp::Span) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            scope_spans: vec![ScopeSpans {
                spans: vec![span],
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    }
}

fn bare_span(start: u64, end: u64) -> otlp::Span {
    otlp::Span {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        start_time_unix_nano: start,
        end_time_unix_nano: end,
        ..otlp::Span::default()
    }
}

#[test]
fn a_span_without_names_gets_jaegers_stand_ins_and_no_tags() {
    let document = convert(one_span(bare_span(5000, 5000))).into_document();
    let process = Process {
        service_name: "missing-service-name".into(),
        tags: vec![],
    };
    assert_eq!(
        document,
        Document {
            data: vec![Trace {
                trace_id: "01".repeat(16),
                spans: vec![Span {
                    trace_id: "01".repeat(16),
                    span_id: "02".repeat(8),
                    operation_name: "empty-span-name".into(),
                    start_time: 5,
                    process_id: "p1".into(),
                    ..Span::default()
                }],
                processes: BTreeMap::from([("p1".to_owned(), process)]),
            }]
        }
    );
}

#[test]
fn rounding_to_microseconds_keeps_a_child_within_its_parent() {
    let parent = times(&bare_span(1_999, 10_001), &mut vec![]);
    let child = times(&bare_span(1_999, 10_000), &mut vec![]);
    assert_eq!((parent, child), ((1, 9), (1, 9)));
}

#[test]
fn a_span_that_ends_before_it_starts_or_never_started_is_kept_with_a_warning() {
    let mut warnings = vec![];
    assert_eq!(times(&bare_span(9_000, 7_500), &mut warnings), (9, 0));
    assert_eq!(times(&bare_span(0, 7_500), &mut warnings), (7, 0));
    assert_eq!(
        warnings,
        [
            "the span ended 1500 ns before its start; its duration is set to 0",
            "the span came without a start time; its end is taken",
        ]
    );
}

#[test]
fn only_spans_with_valid_ids_are_taken() {
    for (trace_id, span_id) in [
        (vec![0; 16], vec![2; 8]),
        (vec![1; 8], vec![2; 8]),
        (vec![1; 16], vec![0; 8]),
        (vec![1; 16], vec![]),
    ] {
        let span = otlp::Span {
            trace_id,
            span_id,
            ..bare_span(1, 2)
        };
        let conversion = convert(one_span(span));
        assert_eq!((conversion.spans.len(), conversion.rejected), (0, 1));
    }
}

#[test]
fn a_parent_id_of_zeros_is_a_root_and_one_of_the_wrong_length_a_root_with_a_warning() {
    for (parent_span_id, warnings) in [
        (vec![0; 8], vec![]),
        (
            vec![1; 3],
            vec!["the parent id is left out: it has 3 bytes instead of 8".to_owned()],
        ),
    ] {
        let span = otlp::Span {
            parent_span_id,
            ..bare_span(1, 2)
        };
        let converted = convert(one_span(span)).spans.remove(0);
        assert_eq!(
            (
                converted.parent_id,
                converted.span.references,
                converted.span.warnings
            ),
            (None, vec![], warnings)
        );
    }
}
