//! By hand and by serde: the same bytes.

use omnitrace::id::TraceId;
use omnitrace::span::{Dropped, InstrumentationScope, Link, SpanEvent, SpanKind};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z ]{0,8}",
        // Everything that JSON escapes, and what it does not.
        vec(
            prop_oneof![
                Just('"'),
                Just('\\'),
                Just('/'),
                Just('\u{7f}'),
                any::<char>()
            ],
            0..6
        )
        .prop_map(|chars| chars.into_iter().collect()),
        "[\\x00-\\x1f]{0,3}",
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    let plain = prop_oneof![
        any_text().prop_map(|text| Value::Str(text.into())),
        any::<i64>().prop_map(Value::I64),
        (-9_007_199_254_740_993i64..=9_007_199_254_740_993).prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
        prop_oneof![Just(0.5), Just(1e300), Just(5e-324), Just(3.0)].prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
    ];
    prop_oneof![
        4 => plain.clone(),
        1 => vec(plain, 0..3).prop_map(|items| Value::Array(items.into_iter().collect())),
    ]
}

fn any_attributes() -> impl Strategy<Value = Vec<Attribute>> {
    let attribute = (any_text(), any_value());
    vec(
        attribute.prop_map(|(key, value)| Attribute::new(key, value)),
        0..4,
    )
}

/// Few enough for references that lead somewhere, and in circles.
fn any_span_id() -> impl Strategy<Value = SpanId> {
    (1u64..9).prop_map(|n| SpanId::new(n << 60 | n).unwrap())
}

fn any_trace_id() -> impl Strategy<Value = TraceId> {
    (1u128..4).prop_map(|n| TraceId::new(n << 120 | n).unwrap())
}

fn any_event() -> impl Strategy<Value = SpanEvent> {
    (any::<u64>(), any_text(), any_attributes()).prop_map(|(time, name, attributes)| SpanEvent {
        time,
        name: name.into(),
        attributes,
        dropped_attributes: 0,
    })
}

fn any_scope() -> impl Strategy<Value = Option<Arc<InstrumentationScope>>> {
    proptest::option::of((any_text(), any_text())).prop_map(|scope| {
        scope.map(|(name, version)| {
            Arc::new(InstrumentationScope {
                name: name.into(),
                version: version.into(),
                schema_url: "".into(),
                attributes: Vec::new(),
            })
        })
    })
}

fn any_status() -> impl Strategy<Value = Status> {
    prop_oneof![
        Just(Status::Unset),
        Just(Status::Ok),
        any_text().prop_map(|text| Status::Error(text.into())),
    ]
}

prop_compose! {
    fn any_span()(
        ids in (any_span_id(), proptest::option::of(any_span_id())),
        links in vec((any_trace_id(), any_span_id()), 0..3),
        start in prop_oneof![0u64..3000, 1_795_334_645_000_000_000u64..1_795_334_645_000_009_000],
        length in 0u64..5000,
        name in any_text(),
        kind in 0usize..5,
        status in any_status(),
        attributes in any_attributes(),
        events in vec(any_event(), 0..3),
        trace_state in any_text(),
        scope in any_scope(),
        source in (0usize..4, 0usize..3),
    ) -> Span {
        let kinds = [SpanKind::Internal, SpanKind::Server, SpanKind::Client, SpanKind::Producer, SpanKind::Consumer];
        Span {
            trace_id: TraceId::new(7).unwrap(),
            span_id: ids.0,
            parent_span_id: ids.1,
            parent_is_remote: false,
            flags: 1,
            trace_state: trace_state.into(),
            name: name.into(),
            kind: kinds[kind],
            start,
            end: start + length,
            status,
            attributes,
            events,
            links: links.into_iter().map(|(trace, span)| Link::new(trace, span)).collect(),
            dropped: Dropped::default(),
            scope,
            source: Arc::new(Source {
                role: ["proxy", "prefill", "decode", "x\"y"][source.0].into(),
                node: ["", "10.0.0.1", "fe80::1"][source.1].into(),
            }),
            origin: None,
        }
    }
}

proptest! {
    #[test]
    fn a_trace_written_by_hand_is_what_serde_writes_of_the_model(spans in vec(any_span(), 0..14)) {
        let vocabulary = Vocabulary::omni_vllm();
        let mut by_hand = Vec::new();
        trace(&vocabulary, &spans, &mut by_hand);
        let model = super::super::span::trace(&vocabulary, &spans);
        let by_serde = model.map_or_else(Vec::new, |model| serde_json::to_vec(&model).unwrap());
        prop_assert_eq!(String::from_utf8(by_hand).unwrap(), String::from_utf8(by_serde).unwrap());
    }
}
