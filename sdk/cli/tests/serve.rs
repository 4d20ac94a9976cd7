//! `omnitrace serve` as a whole: the binary, spoken to over its three sockets.

#![allow(clippy::unwrap_used)]

#[path = "serve/server.rs"]
mod server;

use std::io::Write;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use serde_json::{Value, json};
use tonic::codec::CompressionEncoding;

use server::{Answer, Server};

const TRACE: &str = "0000000000000000a3ce929d0e0e4736";
const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

/// One span of one service as an OTLP/JSON body.
fn body(service: &str, span: Value) -> Value {
    json!({"resourceSpans": [{
        "resource": {"attributes": [
            {"key": "service.name", "value": {"stringValue": service}},
            {"key": "host.ip", "value": {"stringValue": "10.0.0.2"}},
        ]},
        "scopeSpans": [{"scope": {"name": "omnitrace"}, "spans": [span]}],
    }]})
}

fn proxy() -> Value {
    body(
        "omni-proxy",
        json!({
            "traceId": TRACE, "spanId": "00000000000000a1", "name": "P running", "kind": 3,
            "startTimeUnixNano": "1795334645577302999", "endTimeUnixNano": "1795334645579303001",
        }),
    )
}

fn prefill() -> Value {
    body(
        "vllm-prefill",
        json!({
            "traceId": TRACE, "spanId": "00000000000000a2", "parentSpanId": "00000000000000a1",
            "name": "Prefill", "kind": 2,
            "startTimeUnixNano": "1795334645578302999", "endTimeUnixNano": "1795334645579303000",
            "events": [{"timeUnixNano": "1795334645578402999", "name": "first token"}],
            "status": {"code": 2, "message": "out of blocks"},
        }),
    )
}

fn decode() -> Value {
    body(
        "vllm-decode",
        json!({
            "traceId": TRACE, "spanId": "00000000000000a3", "parentSpanId": "00000000000000a1",
            "name": "Decode", "kind": 2,
            "startTimeUnixNano": "1795334645578302999", "endTimeUnixNano": "1795334645578303999",
            "attributes": [{"key": "tokens", "value": {"intValue": "12"}}],
            "links": [{"traceId": TRACE, "spanId": "00000000000000a2"}],
        }),
    )
}

/// One span whose ids are of the right length, but zero.
fn zero_ids() -> Value {
    let span = json!({"traceId": "0".repeat(32), "spanId": "0".repeat(16), "name": "x"});
    body("omni-proxy", span)
}

fn request(body: Value) -> ExportTraceServiceRequest {
    serde_json::from_value(body).unwrap()
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn export_by_grpc(server: &Server, body: Value) -> ExportTraceServiceResponse {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let address = format!("http://{}", server.grpc);
        let client = TraceServiceClient::connect(address).await.unwrap();
        let mut client = client.send_compressed(CompressionEncoding::Gzip);
        client.export(request(body)).await.unwrap().into_inner()
    })
}

/// The proxy's span as protobuf, the prefill's as JSON, the decode's by gRPC.
fn server_with_one_trace() -> Server {
    let server = Server::start(&[]);
    let answer = server.post(PROTOBUF, &request(proxy()).encode_to_vec());
    assert_eq!((answer.status, answer.body), (200, vec![]));
    let answer = server.post(JSON, prefill().to_string().as_bytes());
    assert_eq!((answer.status, answer.text()), (200, "{}".to_owned()));
    let response = export_by_grpc(&server, decode());
    assert_eq!(response, ExportTraceServiceResponse::default());
    server
}

#[test]
fn spans_that_came_in_three_ways_make_one_trace() {
    let server = server_with_one_trace();
    let string = |key: &str, value: &str| json!({"key": key, "type": "string", "value": value});
    let parent = json!({"refType": "CHILD_OF", "traceID": TRACE, "spanID": "00000000000000a1"});
    let link = json!({"refType": "FOLLOWS_FROM", "traceID": TRACE, "spanID": "00000000000000a2"});
    let process =
        |name: &str| json!({"serviceName": name, "tags": [string("host.ip", "10.0.0.2")]});
    let trace = json!([{
        "traceID": TRACE,
        "spans": [
            {
                "traceID": TRACE, "spanID": "00000000000000a1", "operationName": "P running",
                "references": [], "startTime": 1_795_334_645_577_302_u64, "duration": 2001,
                "tags": [string("otel.scope.name", "omnitrace"), string("span.kind", "client")],
                "logs": [], "processID": "p1",
            },
            {
                "traceID": TRACE, "spanID": "00000000000000a2", "operationName": "Prefill",
                "references": [parent], "startTime": 1_795_334_645_578_302_u64, "duration": 1001,
                "tags": [
                    string("otel.scope.name", "omnitrace"),
                    string("span.kind", "server"),
                    string("otel.status_code", "ERROR"),
                    {"key": "error", "type": "bool", "value": true},
                    string("otel.status_description", "out of blocks"),
                ],
                "logs": [{
                    "timestamp": 1_795_334_645_578_402_u64,
                    "fields": [string("event", "first token")],
                }],
                "processID": "p2",
            },
            {
                "traceID": TRACE, "spanID": "00000000000000a3", "operationName": "Decode",
                "references": [parent, link],
                "startTime": 1_795_334_645_578_302_u64, "duration": 1,
                "tags": [
                    string("otel.scope.name", "omnitrace"),
                    {"key": "tokens", "type": "int64", "value": 12},
                    string("span.kind", "server"),
                ],
                "logs": [], "processID": "p3",
            },
        ],
        "processes": {
            "p1": process("omni-proxy"),
            "p2": process("vllm-prefill"),
            "p3": process("vllm-decode"),
        },
    }]);
    for path in [
        &format!("/api/traces/{TRACE}"),
        "/api/traces/a3ce929d0e0e4736",
        "/api/traces/A3CE929D0E0E4736?prettyPrint=true",
        "/api/traces?traceID=a3ce929d0e0e4736",
        "/api/traces?service=vllm-decode&operation=Decode&limit=1",
        "/api/traces?service=vllm-prefill&tags=%7B%22error%22%3A%22true%22%7D&minDuration=1ms",
    ] {
        assert_eq!(server.query(path), trace, "{path}");
    }
    assert_eq!(
        server.query("/api/traces?service=omni-proxy&minDuration=3ms"),
        json!([])
    );
}

#[test]
fn services_operations_and_dependencies_are_those_of_the_spans() {
    let server = server_with_one_trace();
    let again = json!({"traceId": TRACE, "spanId": "00000000000000a4", "name": "Prefill"});
    server.post(JSON, body("vllm-prefill", again).to_string().as_bytes());
    for (path, data) in [
        (
            "/api/services",
            json!(["omni-proxy", "vllm-decode", "vllm-prefill"]),
        ),
        ("/api/services/vllm-prefill/operations", json!(["Prefill"])),
        (
            "/api/operations?service=vllm-prefill&spanKind=server",
            json!([{"name": "Prefill", "spanKind": "server"}]),
        ),
        (
            "/api/operations?service=vllm-prefill&spanKind=client",
            json!([]),
        ),
        (
            "/api/dependencies?endTs=1795334646000&lookback=3600000",
            json!([
                {"parent": "omni-proxy", "child": "vllm-decode", "callCount": 1},
                {"parent": "omni-proxy", "child": "vllm-prefill", "callCount": 1},
            ]),
        ),
        (
            "/api/dependencies?endTs=1795334645000&lookback=3600000",
            json!([]),
        ),
    ] {
        assert_eq!(server.query(path), data, "{path}");
    }
}

#[test]
fn a_span_sent_again_is_kept_once_and_the_books_say_so() {
    let server = server_with_one_trace();
    let trace = server.query("/api/traces/a3ce929d0e0e4736");
    let body = gzip(&request(prefill()).encode_to_vec());
    let headers = [("content-type", PROTOBUF), ("content-encoding", "gzip")];
    let answer = Answer::to(&server.http, "POST", "/v1/traces", &headers, &body);
    assert_eq!(answer.status, 200);
    assert_eq!(server.query("/api/traces/a3ce929d0e0e4736"), trace);
    assert_eq!(
        server.stats(),
        json!({
            "traces": 1, "spans": 3, "received_requests": 4,
            "duplicates": 1, "rejected": 0, "evicted": 0,
        })
    );
}

#[test]
fn spans_with_invalid_ids_are_refused_and_the_sender_is_told() {
    let server = Server::start(&[]);
    let told = ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans: 1,
            error_message: "a trace id has 16 bytes and a span id 8, not all of them zero".into(),
        }),
    };
    assert_eq!(export_by_grpc(&server, zero_ids()), told);
    let answer = server.post(PROTOBUF, &request(zero_ids()).encode_to_vec());
    assert_eq!(
        ExportTraceServiceResponse::decode(&answer.body[..]).unwrap(),
        told
    );
    let answer = server.post(JSON, zero_ids().to_string().as_bytes());
    assert_eq!(
        serde_json::from_slice::<Value>(&answer.body).unwrap(),
        json!({"partialSuccess": {
            "rejectedSpans": "1",
            "errorMessage": "a trace id has 16 bytes and a span id 8, not all of them zero",
        }})
    );
    assert_eq!(server.stats()["rejected"], 3);
}

#[test]
fn a_bad_request_gets_the_status_and_a_reason_in_its_own_encoding() {
    let server = Server::start(&[]);
    let huge = gzip(&vec![0; (64 << 20) + 1]);
    let send = |method, path, headers: &[_], body: &[u8]| {
        let answer = Answer::to(&server.http, method, path, headers, body);
        (answer.status, answer.content_type.clone(), answer.text())
    };
    let json_error = |status: u16, code: i32, message: &str| {
        let text = json!({"code": code, "message": message}).to_string();
        (status, JSON.to_owned(), text)
    };
    let post = |headers: &[_], body: &[u8]| send("POST", "/v1/traces", headers, body);
    assert_eq!(
        post(&[("content-type", "application/json; charset=utf-8")], b"{"),
        json_error(
            400,
            3,
            "the body is no export request: EOF while parsing an object at line 1 column 1"
        )
    );
    assert_eq!(
        post(
            &[("content-type", JSON), ("content-encoding", "gzip")],
            b"this is plain text"
        ),
        json_error(400, 3, "the body is no gzip: invalid gzip header")
    );
    assert_eq!(
        post(&[("content-type", JSON), ("content-encoding", "zstd")], b""),
        json_error(415, 3, "content-encoding has to be gzip or absent")
    );
    assert_eq!(
        post(&[("content-type", "text/plain")], b""),
        json_error(
            415,
            3,
            "content-type has to be application/x-protobuf or application/json"
        )
    );
    assert_eq!(
        post(
            &[("content-type", JSON), ("content-encoding", "gzip")],
            &huge
        ),
        json_error(413, 8, "a request has at most 64 MiB; send smaller batches")
    );
    assert_eq!(
        send("GET", "/v1/traces", &[], b""),
        json_error(405, 12, "traces are sent by POST")
    );
    assert_eq!(
        send("POST", "/v1/metrics", &[("content-type", JSON)], b"{}"),
        json_error(
            404,
            12,
            "only traces are received here: post them to /v1/traces"
        )
    );
    // google.rpc.Status in protobuf: field 1 is the code 3, field 2 the message.
    let answer = server.post(PROTOBUF, b"\xff");
    assert_eq!(
        (answer.status, answer.content_type.as_str()),
        (400, PROTOBUF)
    );
    assert!(answer.body.starts_with(b"\x08\x03\x12"));
    assert_eq!(server.stats()["received_requests"], 0);
}

#[test]
fn what_the_api_does_not_have_is_an_error_in_jaegers_shape() {
    let server = Server::start(&[]);
    for (path, code, message) in [
        ("/api/traces/1", 404, "trace not found"),
        (
            "/api/traces/xyz",
            400,
            "a trace id has 1 to 32 hex digits, not 'xyz'",
        ),
        (
            "/api/traces?limit=x",
            400,
            "parameter 'limit' has to be a whole number, not 'x'",
        ),
        ("/api/operations", 400, "parameter 'service' is required"),
        ("/api/metrics/calls?service=x", 501, "no metrics are kept"),
        ("/api/v3/services", 404, "the API has no such path"),
    ] {
        let answer = server.get(path);
        assert_eq!(answer.status, code, "{path}");
        assert_eq!(
            serde_json::from_slice::<Value>(&answer.body).unwrap(),
            json!({
                "data": null, "total": 0, "limit": 0, "offset": 0,
                "errors": [{"code": code, "msg": message}],
            })
        );
    }
}

#[test]
fn of_several_traces_asked_for_by_id_the_missing_ones_are_named() {
    let server = server_with_one_trace();
    let answer = server.get("/api/traces?traceID=a3ce929d0e0e4736&traceID=77");
    let mut envelope: Value = serde_json::from_slice(&answer.body).unwrap();
    let data = envelope["data"].take();
    assert_eq!(data, server.query("/api/traces/a3ce929d0e0e4736"));
    assert_eq!(
        envelope,
        json!({
            "data": null, "total": 0, "limit": 0, "offset": 0,
            "errors": [{"msg": "trace not found", "traceID": "77"}],
        })
    );
}

#[test]
fn an_uploaded_otlp_file_is_shown_but_not_kept() {
    let server = Server::start(&[]);
    let headers = [("content-type", JSON)];
    let file = prefill().to_string();
    let answer = Answer::to(
        &server.ui,
        "POST",
        "/api/transform",
        &headers,
        file.as_bytes(),
    );
    let shown: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(shown["data"][0]["spans"][0]["operationName"], "Prefill");
    assert_eq!(server.query("/api/services"), json!([]));
}

#[test]
fn every_page_of_the_ui_is_served_with_the_files_it_names() {
    let server = Server::start(&[]);
    let start = server.get("/");
    let page = start.text();
    assert_eq!(
        (start.status, start.content_type.as_str()),
        (200, "text/html; charset=utf-8")
    );
    for path in ["/search", "/trace/a3ce929d0e0e4736", "/dependencies"] {
        let answer = server.get(path);
        assert_eq!(
            (answer.status, answer.text()),
            (200, page.clone()),
            "{path}"
        );
    }
    let script = page
        .split("src=\".")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    let answer = server.get(script);
    assert_eq!(
        (answer.status, answer.content_type.as_str()),
        (200, "text/javascript")
    );
    assert_eq!(server.get("/static/none.js").status, 404);
    assert_eq!(server.get("/health").text(), "ok\n");
}

#[test]
fn a_full_store_gives_up_old_traces_and_says_so_once() {
    let server = Server::start(&["--memory-limit-mib", "1"]);
    let mut traces = 0;
    while server.stats()["evicted"] != 2 {
        traces += 1;
        let span = json!({
            "traceId": format!("{traces:032x}"), "spanId": "00000000000000a1",
            "name": "x".repeat(50_000), "startTimeUnixNano": "1000",
        });
        server.post(JSON, body("omni-proxy", span).to_string().as_bytes());
    }
    assert_eq!(server.stats()["traces"], traces - 2);
    assert_eq!(server.get("/api/traces/2").status, 404);
    assert_eq!(server.get("/api/traces/3").status, 200);
    assert_eq!(
        server.terminate(),
        (
            Some(0),
            "omnitrace: the memory limit of 1 MiB is reached; from now on the traces that have \
             gone longest without a new span make room (--memory-limit-mib sets the limit)\n"
                .to_owned()
        )
    );
}

#[test]
fn a_port_in_use_ends_the_command_with_the_option_in_the_message() {
    let server = Server::start(&[]);
    let second = Command::new(env!("CARGO_BIN_EXE_omnitrace"))
        .args(["serve", "--otlp-grpc-endpoint", &server.grpc])
        .output()
        .unwrap();
    assert_eq!((second.status.code(), second.stdout), (Some(1), vec![]));
    let stderr = String::from_utf8(second.stderr).unwrap();
    let start = format!(
        "cannot listen on {} for --otlp-grpc-endpoint: ",
        server.grpc
    );
    assert!(stderr.contains(&start), "{stderr}");
}
