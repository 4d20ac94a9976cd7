//! What is on the wire.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

use super::*;
use crate::receiver::{Received, Receiver};

fn one(receiver: &Receiver) -> Received {
    let mut received = receiver.received();
    assert_eq!(received.len(), 1);
    received.remove(0)
}

/// What a protocol carries for these spans.
fn carried(protocol: &str, compression: &str) -> (Received, ExportTraceServiceRequest) {
    let receiver = Receiver::new([]);
    let sender = Sender::new(&exporter(&[
        ("PROTOCOL", protocol),
        ("TRACES_ENDPOINT", &receiver.endpoint(protocol)),
        ("COMPRESSION", compression),
        (
            "HEADERS",
            "Authorization=Bearer%20t,x-other=o,x-raw-bin=AAEC",
        ),
    ]));
    assert_eq!(sender.send((1..=3).map(span).collect()), all_taken());
    let received = one(&receiver);
    let request = received.request.clone();
    (received, request)
}

#[test]
fn every_protocol_carries_the_same_spans_compressed_or_not() {
    let (_, expected) = carried("http/protobuf", "none");
    assert_eq!(expected.resource_spans[0].scope_spans[0].spans.len(), 3);
    for protocol in PROTOCOLS {
        for compression in ["none", "gzip"] {
            let (_, mut request) = carried(protocol, compression);
            if protocol == "http/json" {
                // The library adds what is optional for a link.
                let scope = &mut request.resource_spans[0].scope_spans[0];
                let links = scope.spans.iter_mut().flat_map(|span| &mut span.links);
                links.for_each(|link| link.flags = 0);
            }
            assert_eq!(request, expected, "{protocol} {compression}");
        }
    }
}

#[test]
fn http_has_the_configured_headers_and_no_others() {
    for (protocol, kind) in [
        ("http/protobuf", "application/x-protobuf"),
        ("http/json", "application/json"),
    ] {
        for compression in ["none", "gzip"] {
            let (received, _) = carried(protocol, compression);
            assert_eq!(received.path, "/v1/traces");
            let mut headers: Vec<_> = received
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
                .filter(|(name, _)| !["host", "content-length"].contains(name))
                .collect();
            headers.sort_unstable();
            let mut expected = vec![
                ("accept", "*/*"),
                ("authorization", "Bearer t"),
                ("content-encoding", "gzip"),
                ("content-type", kind),
                (
                    "user-agent",
                    concat!("omnitrace/", env!("CARGO_PKG_VERSION")),
                ),
                ("x-other", "o"),
                ("x-raw-bin", "AAEC"),
            ];
            expected.retain(|(name, _)| *name != "content-encoding" || compression == "gzip");
            assert_eq!(headers, expected, "{protocol} {compression}");
        }
    }
}

#[test]
fn grpc_has_the_configured_metadata_and_a_deadline() {
    let (received, _) = carried("grpc", "gzip");
    assert_eq!(
        received.path,
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    );
    let agent = received.header("user-agent").unwrap();
    let ours = concat!("omnitrace/", env!("CARGO_PKG_VERSION"), " ");
    assert!(agent.starts_with(ours), "{agent}");
    for (name, value) in [
        ("authorization", Some("Bearer t")),
        ("x-other", Some("o")),
        ("x-raw-bin", Some("AAEC")),
        ("grpc-encoding", Some("gzip")),
        ("grpc-timeout", Some("10000000u")),
        ("content-type", Some("application/grpc")),
        ("te", Some("trailers")),
    ] {
        assert_eq!(received.header(name), value, "{name}");
    }
    let (plain, _) = carried("grpc", "none");
    assert_eq!(plain.header("grpc-encoding"), None);
}

#[test]
fn a_user_in_the_url_is_sent_as_one_and_not_shown() {
    for protocol in ["http/protobuf", "http/json"] {
        let receiver = Receiver::new([crate::receiver::http(200, &[], "no")]);
        let endpoint = receiver.endpoint(protocol);
        let result = send(&exporter(&[
            ("PROTOCOL", protocol),
            (
                "TRACES_ENDPOINT",
                &endpoint.replace("http://", "http://me:secret@"),
            ),
        ]));
        // base64 of "me:secret"
        let sent = one(&receiver);
        assert_eq!(sent.header("authorization"), Some("Basic bWU6c2VjcmV0"));
        assert_eq!(
            result,
            refused(&format!(
                "{endpoint} is no OTLP endpoint: it answered HTTP status 200, no content type, \
                 that begins with \"no\""
            ))
        );
    }
}
