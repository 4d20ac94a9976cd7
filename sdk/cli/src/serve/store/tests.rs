use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan};

use super::super::search::Params;
use super::*;

const ROOMY: u64 = 1 << 30;

/// One span of one service: trace, span and parent by a number each, 0 for no
/// parent; start in microseconds.
fn request(
    service: &str,
    (trace, span, parent): (u8, u8, u8),
    name: &str,
    start: u64,
) -> ExportTraceServiceRequest {
    let attribute = KeyValue {
        key: "service.name".into(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(service.into())),
        }),
        ..KeyValue::default()
    };
    let span = OtlpSpan {
        trace_id: vec![trace; 16],
        span_id: vec![span; 8],
        parent_span_id: vec![parent; 8],
        name: name.into(),
        kind: 2,
        start_time_unix_nano: start * 1000,
        end_time_unix_nano: (start + 10) * 1000,
        ..OtlpSpan::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![attribute],
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                spans: vec![span],
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    }
}

fn search(pairs: &[(&str, &str)]) -> Search {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    Search::parse(&Params(pairs.iter().map(own).collect()), 0).unwrap()
}

/// Per trace: its first id byte, and each span as "service name".
fn found(store: &Store, pairs: &[(&str, &str)]) -> Vec<(String, Vec<String>)> {
    let line = |trace: &Trace, span: &Span| {
        let service = &trace.processes[&span.process_id].service_name;
        format!("{service} {}", span.operation_name)
    };
    store
        .search(&search(pairs))
        .into_iter()
        .map(|trace| {
            let spans = trace.spans.iter().map(|span| line(&trace, span)).collect();
            (trace.trace_id[..2].to_owned(), spans)
        })
        .collect()
}

fn own<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).to_vec()
}

#[test]
fn a_search_gives_whole_traces_newest_first_and_no_more_than_the_limit() {
    let store = Store::new(ROOMY);
    for trace in 1..=3 {
        let start = u64::from(trace) * 1000;
        store.add(request("proxy", (trace, 1, 0), "root", start));
        store.add(request("prefill", (trace, 2, 1), "Prefill", start + 1));
    }
    store.add(request("other", (9, 1, 0), "alone", 9000));
    let whole = own(["proxy root", "prefill Prefill"]);
    assert_eq!(
        found(&store, &[("service", "prefill"), ("limit", "2")]),
        [("03".to_owned(), whole.clone()), ("02".to_owned(), whole)]
    );
    assert_eq!(found(&store, &[("service", "unknown")]), []);
    assert_eq!(
        found(&store, &[("service", "prefill"), ("operation", "root")]),
        []
    );
}

#[test]
fn late_spans_join_their_trace_and_a_span_that_comes_again_replaces_the_first() {
    let store = Store::new(ROOMY);
    store.add(request("proxy", (1, 1, 0), "root", 1000));
    store.add(request("proxy", (2, 1, 0), "root", 2000));
    store.add(request("prefill", (1, 2, 1), "first try", 1001));
    store.add(request("decode", (1, 2, 1), "Decode", 1001));
    assert_eq!(
        found(&store, &[("start", "1"), ("end", "1999")]),
        [("01".to_owned(), own(["proxy root", "decode Decode"]))]
    );
    assert_eq!(store.services(), ["decode", "proxy"]);
    assert_eq!(
        store.stats(),
        Stats {
            traces: 2,
            spans: 3,
            received_requests: 4,
            duplicates: 1,
            rejected: 0,
            evicted: 0,
        }
    );
}

#[test]
fn the_trace_that_has_gone_longest_without_a_span_makes_room() {
    let one = {
        let store = Store::new(ROOMY);
        store.add(request("a", (1, 1, 0), "root", 1));
        store.read().bytes as u64
    };
    let store = Store::new(3 * one);
    store.add(request("a", (1, 1, 0), "root", 1));
    store.add(request("b", (2, 1, 0), "root", 2));
    // The first trace gets a span and so outlives the second.
    store.add(request("a", (1, 2, 1), "more", 1));
    store.add(request("c", (3, 1, 0), "root", 3));
    assert_eq!(
        found(&store, &[]),
        [
            ("03".to_owned(), own(["c root"])),
            ("01".to_owned(), own(["a root", "a more"])),
        ]
    );
    assert_eq!(store.services(), ["a", "c"]);
    assert!(store.read().bytes as u64 <= 3 * one);
    assert_eq!(store.stats().evicted, 1);
}

#[test]
fn a_store_gives_back_all_the_room_it_counted() {
    let store = Store::new(ROOMY);
    store.add(request("a", (1, 1, 0), "root", 1));
    let once = store.read().bytes;
    store.add(request("a", (1, 1, 0), "root", 1));
    assert_eq!(store.read().bytes, once);
    store.add(request("b", (1, 1, 0), "another name", 1));
    store.add(request("b", (1, 2, 1), "child", 2));
    let mut shelf = store.write();
    assert!(shelf.evict_oldest());
    assert!(!shelf.evict_oldest());
    assert_eq!((shelf.bytes, shelf.spans, shelf.by_age.len()), (0, 0, 0));
    assert_eq!(shelf.catalogue.services(), Vec::<String>::new());
}

#[test]
fn a_trace_too_large_for_the_store_is_not_kept() {
    let store = Store::new(1);
    store.add(request("a", (1, 1, 0), "root", 1));
    assert_eq!(found(&store, &[]), []);
    assert_eq!((store.stats().spans, store.stats().evicted), (0, 1));
}

#[test]
fn dependencies_are_the_calls_between_different_services_within_the_window() {
    let store = Store::new(ROOMY);
    for trace in 1..=2 {
        let start = u64::from(trace) * 1000;
        store.add(request("proxy", (trace, 1, 0), "root", start));
        store.add(request("proxy", (trace, 2, 1), "P running", start));
        store.add(request("prefill", (trace, 3, 2), "Prefill", start));
        store.add(request("decode", (trace, 4, 2), "Decode", start));
        store.add(request("decode", (trace, 5, 9), "parent is missing", start));
    }
    let call = |child: &str, call_count| Dependency {
        parent: "proxy".into(),
        child: child.into(),
        call_count,
    };
    assert_eq!(
        store.dependencies(&(0..=u64::MAX)),
        [call("decode", 2), call("prefill", 2)]
    );
    assert_eq!(
        store.dependencies(&(1500..=2500)),
        [call("decode", 1), call("prefill", 1)]
    );
    assert_eq!(store.dependencies(&(0..=999)), []);
}

#[test]
fn operations_are_listed_once_per_name_and_kind() {
    let store = Store::new(ROOMY);
    store.add(request("a", (1, 1, 0), "x", 1));
    store.add(request("a", (2, 1, 0), "x", 1));
    store.add(request("a", (3, 1, 0), "b", 1));
    let operation = |name: &str| Operation {
        name: name.into(),
        span_kind: "server".into(),
    };
    assert_eq!(store.operations("a"), [operation("b"), operation("x")]);
    assert_eq!(store.operations("b"), []);
}
