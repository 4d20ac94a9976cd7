//! What becomes of a batch by what is answered to it over gRPC.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::receiver::{Receiver, Reply, http};

fn config(receiver: &Receiver) -> ExporterConfig {
    exporter(&[("PROTOCOL", "grpc"), ("ENDPOINT", &receiver.url())])
}

fn answered(reply: Reply) -> (Receiver, Result<Taken, ExportError>) {
    let receiver = Receiver::new([reply]);
    let result = send(&config(&receiver));
    assert_eq!(receiver.received().len(), 1, "one attempt");
    (receiver, result)
}

/// A status that says when to come back.
fn throttled(code: Code, delay: Option<Duration>) -> Reply {
    let mut details = ErrorDetails::new();
    details.set_retry_info(delay);
    Reply::Grpc(Status::with_error_details(code, "busy", details))
}

#[test]
fn the_codes_of_the_specification_may_be_tried_again_and_no_others() {
    const RETRYABLE: [Code; 6] = [
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unavailable,
        Code::DataLoss,
    ];
    for code in (1..=16).map(Code::from_i32) {
        let (_, result) = answered(Reply::Grpc(Status::new(code, "said so")));
        let reason = format!("the endpoint answered gRPC status {code:?}: said so");
        let expected = match RETRYABLE.contains(&code) {
            true => retryable(&reason, None),
            false => refused(&reason),
        };
        assert_eq!(result, expected, "{code:?}");
    }
}

#[test]
fn retry_info_says_how_long_to_wait_and_that_exhaustion_passes() {
    let seven = Some(Duration::from_secs(7));
    for code in [Code::ResourceExhausted, Code::Unavailable] {
        let reason = format!("the endpoint answered gRPC status {code:?}: busy");
        let (_, result) = answered(throttled(code, seven));
        assert_eq!(result, retryable(&reason, Some(7)), "{code:?}");
        // No time given, or none to wait: our own back-off.
        for delay in [None, Some(Duration::ZERO)] {
            let (_, result) = answered(throttled(code, delay));
            assert_eq!(result, retryable(&reason, None), "{code:?} {delay:?}");
        }
    }
    let (_, result) = answered(throttled(Code::InvalidArgument, seven));
    assert_eq!(
        result,
        refused("the endpoint answered gRPC status InvalidArgument: busy")
    );
}

#[test]
fn a_web_page_has_taken_nothing() {
    let page = [("content-type", "text/html"), ("server", "envoy")];
    for status in [200, 404, 500] {
        let (receiver, result) = answered(http(status, &page, "<html>"));
        let reason = format!(
            "{}/ is no OTLP endpoint: it answered HTTP status {status}, text/html, from envoy",
            receiver.url()
        );
        assert_eq!(result, refused(&reason), "{status}");
    }
    // A proxy before a Collector that is away for a moment.
    let busy = [page[0], page[1], ("retry-after", "5")];
    for status in [429, 502, 503, 504] {
        let (receiver, result) = answered(http(status, &busy, "<html>"));
        let reason = format!(
            "{}/ is no OTLP endpoint: it answered HTTP status {status}, text/html, from envoy",
            receiver.url()
        );
        assert_eq!(result, retryable(&reason, Some(5)), "{status}");
    }
}

#[test]
fn an_answer_that_is_not_otlp_is_an_error() {
    // A whole message of one byte that is no protobuf.
    let body = b"\0\0\0\0\x01\xff".to_vec();
    let (_, result) = answered(http(200, &[("content-type", "application/grpc")], body));
    let Err(ExportError::Refused { reason }) = result else {
        panic!("{result:?}");
    };
    assert!(reason.contains("an answer that is not OTLP"), "{reason}");
}

#[test]
fn one_connection_serves_until_a_call_gets_no_answer() {
    let receiver = Receiver::new([
        Reply::Ok,
        Reply::Grpc(Status::unavailable("a moment")),
        Reply::Ok,
        Reply::Silence,
        Reply::Ok,
        Reply::Ok,
    ]);
    let sender = Sender::new(&ExporterConfig {
        timeout: Duration::from_secs(3),
        ..config(&receiver)
    });
    let mut connections = Vec::new();
    for _ in 0..6 {
        let result = sender.one();
        connections.push((result.is_ok(), receiver.connections()));
    }
    assert_eq!(
        connections,
        [
            (true, 1),
            (false, 1),
            (true, 1),
            (false, 1),
            (true, 2),
            (true, 2)
        ]
    );
}

#[test]
fn a_server_that_comes_back_is_found_again() {
    let first = Receiver::new([]);
    let sender = Sender::new(&config(&first));
    assert_eq!(sender.one(), all_taken());
    let port = first.port();
    drop(first);
    let gone = reason(sender.one());
    assert!(!gone.is_empty());
    let second = Receiver::on(port);
    // The first attempt may still meet the end of the old connection.
    let results = [sender.one(), sender.one()];
    assert_eq!(results[1], all_taken(), "{results:?}");
    assert!(!second.received().is_empty());
}

#[test]
fn a_batch_of_nearly_4_mib_is_one_message() {
    let receiver = Receiver::new([]);
    let sender = Sender::new(&config(&receiver));
    let spans: Vec<_> = (1..=3)
        .map(|number| Span {
            attributes: vec![Attribute::new("large", &*"x".repeat(1_300_000))],
            ..span(number)
        })
        .collect();
    assert_eq!(sender.send(spans), all_taken());
    assert_eq!(receiver.received().len(), 1);
}
