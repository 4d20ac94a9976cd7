//! What becomes of a batch by what is answered to it over HTTP.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use prost::Message as _;

use super::*;
use crate::receiver::{Receiver, Reply, http};

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

/// What the exporter makes of an answer.
fn answered(protocol: &str, reply: Reply) -> (Receiver, Result<Taken, ExportError>) {
    let receiver = Receiver::new([reply]);
    let result = send(&exporter(&[
        ("PROTOCOL", protocol),
        ("TRACES_ENDPOINT", &receiver.endpoint(protocol)),
    ]));
    assert_eq!(receiver.received().len(), 1, "one attempt");
    (receiver, result)
}

fn over_http() -> impl Iterator<Item = &'static str> {
    PROTOCOLS.into_iter().filter(|protocol| *protocol != "grpc")
}

#[test]
fn only_four_statuses_may_be_tried_again() {
    for protocol in over_http() {
        for status in [429, 502, 503, 504] {
            let (_, result) = answered(protocol, http(status, &[("retry-after", "7")], ""));
            let reason = format!("the endpoint answered HTTP status {status}");
            assert_eq!(result, retryable(&reason, Some(7)), "{protocol}");
            let (_, result) = answered(protocol, http(status, &[], ""));
            assert_eq!(result, retryable(&reason, None), "{protocol}");
        }
        for status in [
            300, 302, 400, 401, 403, 404, 408, 413, 415, 418, 500, 501, 505, 599,
        ] {
            let elsewhere = [("retry-after", "7"), ("location", "/")];
            let (_, result) = answered(protocol, http(status, &elsewhere, ""));
            let reason = format!("the endpoint answered HTTP status {status}");
            assert_eq!(result, refused(&reason), "{protocol}");
        }
    }
}

#[test]
fn retry_after_may_be_a_date() {
    let headers = [
        ("retry-after", "Sun, 22 Nov 2026 12:00:09 GMT"),
        ("date", "Sun, 22 Nov 2026 12:00:00 GMT"),
    ];
    for protocol in over_http() {
        let (_, result) = answered(protocol, http(503, &headers, ""));
        let reason = "the endpoint answered HTTP status 503";
        assert_eq!(result, retryable(reason, Some(9)), "{protocol}");
    }
}

#[test]
fn the_reason_of_a_refusal_is_passed_on() {
    let status = tonic_types::Status {
        code: 3,
        message: "no span of ours".into(),
        details: vec![],
    };
    for protocol in over_http() {
        for reply in [
            http(400, &[PROTOBUF], status.encode_to_vec()),
            http(400, &[JSON], r#"{"code":3,"message":"no span of ours"}"#),
        ] {
            let (_, result) = answered(protocol, reply);
            let reason = "the endpoint answered HTTP status 400: no span of ours";
            assert_eq!(result, refused(reason), "{protocol}");
        }
        // What cannot be read is not quoted.
        let (_, result) = answered(protocol, http(400, &[PROTOBUF], "<html>"));
        assert_eq!(result, refused("the endpoint answered HTTP status 400"));
    }
}

#[test]
fn a_partial_success_is_booked_whatever_it_is_written_in() {
    for protocol in PROTOCOLS {
        let (_, result) = answered(protocol, Reply::Partial(2, "too old"));
        assert_eq!(result, taken(2, "too old"), "{protocol}");
        let (_, result) = answered(protocol, Reply::Partial(0, "slow down"));
        assert_eq!(result, taken(0, "slow down"), "{protocol}");
        let (_, result) = answered(protocol, Reply::Partial(-1, ""));
        assert_eq!(result, all_taken(), "{protocol}");
    }
    for protocol in over_http() {
        for (body, expected) in [
            (r#"{"partialSuccess":{"rejectedSpans":3}}"#, taken(3, "")),
            (r#"{"partialSuccess":{"rejectedSpans":"3"}}"#, taken(3, "")),
            (
                r#"{"partialSuccess":{"errorMessage":"m"},"more":1}"#,
                taken(0, "m"),
            ),
            (r#"{"partialSuccess":null}"#, all_taken()),
            (r#"{"partialSuccess":{}}"#, all_taken()),
            ("{}", all_taken()),
            ("", all_taken()),
        ] {
            // Some endpoints answer JSON to whatever they are sent.
            let (_, result) = answered(protocol, http(200, &[JSON], body));
            assert_eq!(result, expected, "{protocol} {body}");
        }
        let (_, result) = answered(protocol, http(202, &[], ""));
        assert_eq!(result, all_taken(), "{protocol}");
    }
}

#[test]
fn a_web_page_has_taken_nothing() {
    let page = "<!doctype html>\n<title>Grafana</title>\n<body>Welcome to our dashboards, user";
    for protocol in over_http() {
        let headers = [("content-type", "text/html"), ("server", "nginx/1.22.1")];
        let (receiver, result) = answered(protocol, http(200, &headers, page));
        let reason = format!(
            "{} is no OTLP endpoint: it answered HTTP status 200, text/html, from nginx/1.22.1, \
             that begins with \"<!doctype html> <title>Grafana</title> <body>Welcome to our\"",
            receiver.endpoint(protocol)
        );
        assert_eq!(result, refused(&reason), "{protocol}");
    }
}

#[test]
fn neither_has_anything_else_that_is_not_otlp() {
    for protocol in over_http() {
        for (headers, body, kind) in [
            (vec![("content-type", "text/plain")], "", "text/plain"),
            (vec![], "OK", "no content type, that begins with \"OK\""),
            (
                vec![JSON],
                "[]",
                "application/json; charset=utf-8, that begins with \"[]\"",
            ),
            (
                vec![JSON],
                r#"{"partialSuccess":{"rejectedSpans":"many"}}"#,
                "application/json; charset=utf-8, that begins with \
                 \"{\"partialSuccess\":{\"rejectedSpans\":\"many\"}}\"",
            ),
            (
                vec![PROTOBUF],
                "\u{7}\r\nrubbish\u{1b}[2J",
                "application/x-protobuf, that begins with \"rubbish[2J\"",
            ),
        ] {
            let (receiver, result) = answered(protocol, http(200, &headers, body));
            let reason = format!(
                "{} is no OTLP endpoint: it answered HTTP status 200, {kind}",
                receiver.endpoint(protocol)
            );
            assert_eq!(result, refused(&reason), "{protocol}");
        }
    }
}

#[test]
fn an_answer_without_end_is_not_read_for_ever() {
    let endless = tonic::codegen::tokio_stream::iter(std::iter::repeat_with(|| {
        Ok::<_, std::io::Error>(vec![0xff; 1 << 16])
    }));
    let endless = axum::body::Body::from_stream(endless);
    let (receiver, result) = answered("http/protobuf", http(200, &[PROTOBUF], endless));
    let Err(ExportError::Refused { reason }) = result else {
        panic!("{result:?}");
    };
    assert!(reason.starts_with(&receiver.url()), "{reason}");
}

#[test]
fn an_answer_that_breaks_off_may_be_tried_again() {
    for protocol in over_http() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/v1/traces", server.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut read = [0; 65536];
            assert!(stream.read(&mut read).unwrap() > 0);
            let half = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf";
            stream.write_all(half.as_bytes()).unwrap();
        });
        let vars = [("PROTOCOL", protocol), ("TRACES_ENDPOINT", &*endpoint)];
        let said = reason(send(&exporter(&vars)));
        thread.join().unwrap();
        assert!(
            said.contains("end of file before message length reached"),
            "{said}"
        );
    }
}

#[test]
fn what_does_not_answer_may_be_tried_again() {
    for protocol in PROTOCOLS {
        let receiver = Receiver::new([Reply::Silence]);
        let vars = [
            ("PROTOCOL", protocol),
            ("TRACES_ENDPOINT", &*receiver.endpoint(protocol)),
            ("TIMEOUT", "200"),
        ];
        let said = reason(send(&exporter(&vars)));
        let known = [
            "no answer within 200ms",
            "operation timed out",
            "Timeout expired",
        ];
        assert!(known.iter().any(|text| said.contains(text)), "{said}");
    }
}

#[test]
fn what_is_not_there_may_be_tried_again() {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for protocol in PROTOCOLS {
        let endpoint = format!("http://{port}");
        let vars = [("PROTOCOL", protocol), ("TRACES_ENDPOINT", &*endpoint)];
        let said = reason(send(&exporter(&vars)));
        assert!(said.contains("Connection refused"), "{said}");
    }
}
