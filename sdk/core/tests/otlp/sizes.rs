//! How large a request gets, whatever is recorded.

use std::time::Duration;

use omnitrace::{Action, FreeSpan, KeyRef, Parent, Pipeline, ValueRef, clock};
use opentelemetry_proto::tonic::trace::v1 as proto;
use prost::Message as _;

use super::*;
use crate::receiver::Receiver;

/// What a gRPC server takes unless it is told otherwise.
const MESSAGE_LIMIT: usize = 4 << 20;
const REQUESTS: usize = 16;
/// Longest value that is kept.
const LONG: usize = 16 << 10;
const FINISH: &str = "Finish prefill pickle and start response";

/// Sends what `record` makes of each number, and says what has arrived in which sizes.
fn delivered(protocol: &str, record: impl Fn(&Pipeline, usize)) -> (Vec<usize>, Vec<proto::Span>) {
    let receiver = Receiver::new([]);
    let (config, warnings) = settings(&[
        ("PROTOCOL", protocol),
        ("ENDPOINT", &receiver.url()),
        // Only what is full leaves before the end.
        ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
        ("OMNITRACE_LEGACY_LOG", "off"),
        ("ROLE", "prefill"),
    ]);
    assert_eq!(warnings, Vec::<String>::new());
    let pipeline = Pipeline::start(config).unwrap();
    for number in 0..REQUESTS {
        let before = pipeline.stats().events;
        record(&pipeline, number);
        // The next one needs the room in the queue.
        while pipeline.stats().events == before {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let stats = pipeline.shutdown(Duration::from_secs(60));
    assert_eq!((stats.dropped_total(), stats.events_lost), (0, 0));
    let received = receiver.received();
    let sizes = received.iter().map(|r| r.request.encoded_len()).collect();
    let requests = received.into_iter().flat_map(|r| r.request.resource_spans);
    let groups = requests.flat_map(|resource| resource.scope_spans);
    (sizes, groups.flat_map(|group| group.spans).collect())
}

fn attributes<'a>(keys: &'a [String], value: &'a str) -> Vec<(KeyRef<'a>, ValueRef<'a>)> {
    let pair = |key: &'a String| (KeyRef::Text(key), ValueRef::Str(value));
    keys.iter().map(pair).collect()
}

#[test]
fn phases_with_more_than_fits_are_cut_and_counted_and_no_request_is_too_large() {
    let text = "x".repeat(LONG);
    let keys: Vec<String> = (0..15).map(|n| format!("key {n}")).collect();
    let record = |pipeline: &Pipeline, number: usize| {
        let request_id = format!("request {number}");
        let (few, many) = (attributes(&keys[..3], &text), attributes(&keys, &text));
        let told = ["first", "second", "third"].map(|name| (name, &many[..]));
        let begins = ("PD api server get request", &[][..]);
        for (name, attributes) in [begins].into_iter().chain(told).chain([(FINISH, &few[..])]) {
            assert!(pipeline.recorder().action(&Action {
                name,
                time: clock::now(),
                request_id: &request_id,
                occurrence: 0,
                context: None,
                attributes,
            }));
        }
    };
    for protocol in ["http/protobuf", "grpc"] {
        let (sizes, spans) = delivered(protocol, record);
        assert!(
            sizes.iter().all(|size| *size < MESSAGE_LIMIT) && sizes[0] > 3 << 20,
            "{protocol}: {sizes:?}"
        );
        let kept = |span: &proto::Span| {
            let events: Vec<_> = span.events.iter().map(|e| e.name.clone()).collect();
            let long = |a: &&_| proto_text(a).is_some_and(|text| text.len() == LONG);
            let attributes = span.attributes.iter().filter(long).count();
            (
                span.name.clone(),
                events,
                span.dropped_events_count,
                attributes,
                span.dropped_attributes_count,
            )
        };
        let events = vec!["first".to_owned(), "second".to_owned()];
        let expected = ("Prefill".to_owned(), events, 1, 1, 2);
        assert_eq!(
            spans.iter().map(kept).collect::<Vec<_>>(),
            vec![expected; REQUESTS]
        );
    }
}

fn proto_text(attribute: &opentelemetry_proto::tonic::common::v1::KeyValue) -> Option<&str> {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

#[test]
fn the_largest_spans_there_can_be_make_no_request_too_large() {
    let text = "x".repeat(LONG);
    let keys: Vec<String> = (0..128).map(|n| format!("{n:01024}")).collect();
    let all = attributes(&keys, &text);
    let told: Vec<Attribute> = keys
        .iter()
        .map(|key| Attribute::new(key.as_str(), text.as_str()))
        .collect();
    let event = |number: u64| SpanEvent {
        time: number,
        name: "event".into(),
        attributes: told[..1].to_vec(),
        dropped_attributes: 0,
    };
    let events: Vec<SpanEvent> = (0..128).map(event).collect();
    let record = |pipeline: &Pipeline, number: usize| {
        let parent = Parent::Root(TraceId::new(number as u128 + 1).unwrap());
        let span = FreeSpan::new(&keys[0], 1, 2, SpanId::random(), parent);
        assert!(pipeline.recorder().span(&FreeSpan {
            attributes: &all,
            events: &events,
            ..span
        }));
    };
    for protocol in ["http/protobuf", "grpc"] {
        let (sizes, spans) = delivered(protocol, record);
        assert!(
            sizes.iter().all(|size| *size < MESSAGE_LIMIT) && sizes[0] > 3 << 20,
            "{protocol}: {sizes:?}"
        );
        assert_eq!(spans.len(), REQUESTS);
        for span in spans {
            let kept = (span.attributes.len() as u32, span.events.len() as u32);
            let whole = (
                kept.0 + span.dropped_attributes_count,
                kept.1 + span.dropped_events_count,
            );
            assert_eq!(whole, (128, 128));
            // What one record has room for.
            assert_eq!(kept, (15, 8));
        }
    }
}
