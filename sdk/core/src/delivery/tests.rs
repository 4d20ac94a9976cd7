//! Every byte against prost's, and back.

use std::sync::Arc;
use std::time::Instant;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope as ProtoScope, KeyValue, any_value,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{self as proto, ResourceSpans, ScopeSpans};
use proptest::prelude::*;
use prost::Message;

use super::batch::{Batch, Memory, OpenBatch};
use super::envelopes::Envelopes;
use crate::assembler::{Assembler, LooseEvent, PhaseSpan, Scope, Sink};
use crate::decode;
use crate::event::{ActionName, Event, FreeSpan, Parent};
use crate::id::{SpanId, TraceId};
use crate::key::{KeyId, KeyRef};
use crate::queue::{self, Kept, Queue, Record, SpanRecord};
use crate::scopes::Scopes;
use crate::span::{
    Dropped, InstrumentationScope, Link, Moment, PhaseOrigin, Place, ScopeId, Source, Span,
    SpanEvent, SpanKind, Status,
};
use crate::value::{Attribute, Value, ValueRef};
use crate::vocabulary::{ActionId, PhaseId, Vocabulary};

fn source() -> Arc<Source> {
    Arc::new(Source {
        role: "prefill".into(),
        node: "10.0.0.2".into(),
    })
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        ".{0,200}".prop_map(|text| Value::Str(text.into())),
        any::<i64>().prop_map(Value::I64),
        any::<f64>()
            .prop_filter("NaN is not equal to itself", |n| !n.is_nan())
            .prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let array = prop::collection::vec(scalar(), 0..4);
    prop_oneof![
        4 => scalar(),
        1 => array.prop_map(|items| Value::Array(items.into_iter().collect())),
    ]
}

fn attributes() -> impl Strategy<Value = Vec<Attribute>> {
    let attribute = (".{0,40}", value()).prop_map(|(key, value)| Attribute::new(key, value));
    prop::collection::vec(attribute, 0..8)
}

fn trace_id() -> impl Strategy<Value = TraceId> {
    any::<u128>().prop_filter_map("zero", TraceId::new)
}

fn span_id() -> impl Strategy<Value = SpanId> {
    any::<u64>().prop_filter_map("zero", SpanId::new)
}

fn status() -> impl Strategy<Value = Status> {
    prop_oneof![
        Just(Status::Unset),
        Just(Status::Ok),
        ".{0,60}".prop_map(|text| Status::Error(text.into())),
    ]
}

fn event() -> impl Strategy<Value = SpanEvent> {
    (any::<u64>(), ".{0,40}", attributes(), 0..3u32).prop_map(
        |(time, name, attributes, dropped_attributes)| SpanEvent {
            time,
            name: name.into(),
            attributes,
            dropped_attributes,
        },
    )
}

fn link() -> impl Strategy<Value = Link> {
    (trace_id(), span_id(), ".{0,20}", attributes(), 0..3u32).prop_map(
        |(trace_id, span_id, state, attributes, dropped_attributes)| Link {
            trace_id,
            span_id,
            trace_state: state.into(),
            attributes,
            dropped_attributes,
        },
    )
}

fn scope() -> impl Strategy<Value = Option<Arc<InstrumentationScope>>> {
    let named = |name: &str, version: &str, url: &str, attributes: Vec<Attribute>| {
        Some(Arc::new(InstrumentationScope {
            name: name.into(),
            version: version.into(),
            schema_url: url.into(),
            attributes,
        }))
    };
    let long = "a name that is longer than the room that is kept for it ".repeat(9);
    prop_oneof![
        3 => Just(None),
        1 => Just(named("fastapi", "1.0", "https://schema/1", vec![Attribute::new("k", true)])),
        1 => Just(named(&long, "", "", Vec::new())),
    ]
}

fn span() -> impl Strategy<Value = Span> {
    let kind = prop::sample::select(vec![
        SpanKind::Internal,
        SpanKind::Server,
        SpanKind::Client,
        SpanKind::Producer,
        SpanKind::Consumer,
    ]);
    let ids = (
        trace_id(),
        span_id(),
        prop::option::of(span_id()),
        any::<bool>(),
        any::<u8>(),
        ".{0,30}",
    );
    let times = (any::<u64>(), any::<u64>());
    let lists = (
        attributes(),
        prop::collection::vec(event(), 0..4),
        prop::collection::vec(link(), 0..4),
        (0..3u32, 0..3u32, 0..300u32),
    );
    (ids, ".{0,300}", kind, times, status(), lists, scope()).prop_map(
        |(ids, name, kind, times, status, lists, scope)| Span {
            trace_id: ids.0,
            span_id: ids.1,
            parent_span_id: ids.2,
            parent_is_remote: ids.3,
            flags: ids.4,
            trace_state: ids.5.into(),
            name: name.into(),
            kind,
            start: times.0.min(times.1),
            end: times.0.max(times.1),
            status,
            attributes: lists.0,
            events: lists.1,
            links: lists.2,
            dropped: Dropped {
                attributes: lists.3.0,
                events: lists.3.1,
                links: lists.3.2,
            },
            scope,
            source: source(),
            origin: None,
        },
    )
}

fn any_value(value: &Value) -> AnyValue {
    AnyValue {
        value: Some(match value {
            Value::Str(text) => any_value::Value::StringValue(text.to_string()),
            Value::I64(n) => any_value::Value::IntValue(*n),
            Value::F64(n) => any_value::Value::DoubleValue(*n),
            Value::Bool(b) => any_value::Value::BoolValue(*b),
            Value::Array(array) => any_value::Value::ArrayValue(ArrayValue {
                values: array.items().iter().map(any_value).collect(),
            }),
        }),
    }
}

fn key_values(attributes: &[Attribute]) -> Vec<KeyValue> {
    attributes
        .iter()
        .map(|a| KeyValue {
            key: a.key.to_string(),
            value: Some(any_value(&a.value)),
            ..Default::default()
        })
        .collect()
}

fn as_proto(span: &Span) -> proto::Span {
    let remote = if span.parent_is_remote { 0x300 } else { 0x100 };
    proto::Span {
        trace_id: span.trace_id.value().to_be_bytes().into(),
        span_id: span.span_id.value().to_be_bytes().into(),
        trace_state: span.trace_state.to_string(),
        parent_span_id: span
            .parent_span_id
            .map(|id| id.value().to_be_bytes().into())
            .unwrap_or_default(),
        flags: u32::from(span.flags) | remote,
        name: span.name.to_string(),
        kind: 1 + span.kind as i32,
        start_time_unix_nano: span.start,
        end_time_unix_nano: span.end,
        attributes: key_values(&span.attributes),
        dropped_attributes_count: span.dropped.attributes,
        events: span
            .events
            .iter()
            .map(|e| proto::span::Event {
                time_unix_nano: e.time,
                name: e.name.to_string(),
                attributes: key_values(&e.attributes),
                dropped_attributes_count: e.dropped_attributes,
            })
            .collect(),
        dropped_events_count: span.dropped.events,
        links: span
            .links
            .iter()
            .map(|l| proto::span::Link {
                trace_id: l.trace_id.value().to_be_bytes().into(),
                span_id: l.span_id.value().to_be_bytes().into(),
                trace_state: l.trace_state.to_string(),
                attributes: key_values(&l.attributes),
                dropped_attributes_count: l.dropped_attributes,
                flags: 0,
            })
            .collect(),
        dropped_links_count: span.dropped.links,
        status: match &span.status {
            Status::Unset => None,
            Status::Ok => Some(proto::Status {
                code: 1,
                message: String::new(),
            }),
            Status::Error(text) => Some(proto::Status {
                code: 2,
                message: text.to_string(),
            }),
        },
    }
}

/// Spans by scope, each scope once, in the order in which scopes are sent.
type Groups = Vec<(Option<Arc<InstrumentationScope>>, Vec<Span>)>;

fn request(resource: &[Attribute], groups: &Groups) -> Vec<u8> {
    let scope_spans = groups.iter().map(|(scope, spans)| {
        let own = InstrumentationScope::omnitrace();
        let scope = scope.as_deref().unwrap_or(&own);
        ScopeSpans {
            scope: Some(ProtoScope {
                name: scope.name.to_string(),
                version: scope.version.to_string(),
                attributes: key_values(&scope.attributes),
                ..Default::default()
            }),
            spans: spans.iter().map(as_proto).collect(),
            schema_url: scope.schema_url.to_string(),
        }
    });
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: key_values(resource),
                ..Default::default()
            }),
            scope_spans: scope_spans.collect(),
            ..Default::default()
        }],
    }
    .encode_to_vec()
}

/// As a batch has them: the scope that came first stands first.
fn by_scope(spans: &[Span]) -> Groups {
    let mut groups = Groups::new();
    for span in spans {
        match groups.iter_mut().find(|(scope, _)| *scope == span.scope) {
            Some((_, all)) => all.push(span.clone()),
            None => groups.push((span.scope.clone(), vec![span.clone()])),
        }
    }
    groups
}

/// The span as a caller hands it over.
fn free<'a>(span: &'a Span, attributes: &'a [(KeyRef<'a>, ValueRef<'a>)]) -> FreeSpan<'a> {
    FreeSpan {
        parent_is_remote: span.parent_is_remote,
        trace_state: &span.trace_state,
        kind: span.kind,
        status: span.status.as_ref(),
        attributes,
        events: &span.events,
        links: &span.links,
        dropped: span.dropped,
        scope: ScopeId::default(),
        ..FreeSpan::new(
            &span.name,
            span.start,
            span.end,
            span.span_id,
            Parent::Root(span.trace_id),
        )
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_batch_is_what_prost_would_make_of_it_and_comes_back_whole(
        resource in attributes(),
        spans in prop::collection::vec(span(), 1..6),
    ) {
        let mut envelopes = Envelopes::new(&resource, Arc::new(Scopes::default()));
        let batch = Batch::of(spans.clone(), &mut envelopes).unwrap();
        let groups = by_scope(&spans);
        prop_assert_eq!(&batch.body()[..], &request(&resource, &groups)[..]);
        let sent: Vec<Span> = groups.into_iter().flat_map(|(_, spans)| spans).collect();
        let ids: Vec<SpanId> = sent.iter().map(|span| span.span_id).collect();
        prop_assert_eq!(batch.span_ids(), ids);
        prop_assert_eq!(batch.decode(&source()), sent);
    }

    #[test]
    fn a_batch_is_the_same_in_pages_of_its_own_and_leaves_its_memory(
        spans in prop::collection::vec(span(), 1..6),
        long in prop::option::of(100_000..300_000usize),
    ) {
        let mut spans = spans;
        spans[0].scope = None;
        spans[0].origin = Some(PhaseOrigin {
            request_id: "r".into(),
            phase: PhaseId(3),
            occurrence: 1,
            context: None,
            entered: None,
            start: Some(Moment { action: ActionId(4), time: 5 }),
            end: None,
            seen: vec![Moment { action: ActionId(6), time: 7 }],
            recorded_attributes: 0,
        });
        if let Some(len) = long {
            spans[0].attributes.push(Attribute::new("long", "x".repeat(len).as_str()));
        }
        let mut envelopes = Envelopes::new(&[], Arc::new(Scopes::default()));
        let before = Batch::of(spans.clone(), &mut envelopes).unwrap();
        let (after, memory) = Batch::of(spans, &mut envelopes).unwrap().moved_out();
        prop_assert_eq!(memory.is_none(), before.needed().len() < 128 << 10);
        prop_assert_eq!(after.body(), before.body());
        prop_assert_eq!(after.span_ids(), before.span_ids());
        prop_assert_eq!(after.decode(&source()), before.decode(&source()));
        prop_assert_eq!(after.into_memory().is_none(), !memory.is_none());
    }

    #[test]
    fn a_free_span_goes_through_the_queue_and_becomes_the_same_bytes(span in span()) {
        let span = Span { scope: None, ..span };
        let attributes: Vec<_> = span
            .attributes
            .iter()
            .enumerate()
            // Some keys by number, as far as there are numbers.
            .map(|(at, a)| match KeyId::of(&a.key).filter(|_| at % 2 == 0) {
                Some(id) => (KeyRef::Known(id), a.value.as_ref()),
                None => (KeyRef::Text(&a.key), a.value.as_ref()),
            })
            .collect();
        let queue = Queue::new(1 << 20, Box::new(|| {}));
        let handed = free(&span, &attributes);
        let more = queue::more(&handed);
        let record = SpanRecord::new(&handed, Kept::of_cut(&attributes), &more);
        prop_assert_eq!(queue.push(&record), Ok(()));
        let place = Place {
            trace_id: span.trace_id,
            parent: span.parent_span_id,
            flags: span.flags,
        };
        let mut envelopes = Envelopes::new(&[], Arc::new(Scopes::default()));
        let mut open = OpenBatch::new(&envelopes, Memory::default());
        let mut whole = Vec::new();
        queue.drain(|record| {
            let Record::Span(decoded) = record else { panic!("{record:?}") };
            open.push_free(&decoded, &place, Instant::now());
            whole.push(decode::free_span(&decoded, &place, None, &source()));
        });
        prop_assert_eq!(&whole, &vec![span.clone()]);
        let batch = open.seal(&mut envelopes, Memory::default()).unwrap();
        prop_assert_eq!(&batch.body()[..], &request(&[], &vec![(None, whole)])[..]);
        prop_assert!(open.seal(&mut envelopes, Memory::default()).is_none());
    }
}

/// Keeps each span both ways.
struct BothWays {
    open: OpenBatch,
    spans: Vec<Span>,
}

impl Sink for BothWays {
    fn span(&mut self, span: PhaseSpan<'_>) {
        self.spans.push(span.clone().into_span());
        self.open.push_phase(span, Instant::now());
    }

    fn loose(&mut self, event: LooseEvent) {
        panic!("{event:?}");
    }

    fn unsampled(&mut self) {
        panic!("all are sampled");
    }

    fn contradictory(&mut self, _: PhaseId) {
        panic!("none is");
    }
}

#[test]
fn a_phases_span_is_encoded_as_the_span_that_it_becomes() {
    let vocabulary = Vocabulary::omni_vllm();
    let mut envelopes = Envelopes::new(&[], Arc::new(Scopes::default()));
    let mut sink = BothWays {
        open: OpenBatch::new(&envelopes, Memory::default()),
        spans: Vec::new(),
    };
    let mut assembler = Assembler::new(Arc::clone(&vocabulary), Scope::Process);
    let text = ValueRef::Str("m");
    let failed = ValueRef::Str("500");
    for (time, action, occurrence, attributes) in [
        (
            10,
            "Enter decode to generate",
            0,
            &[(KeyRef::Text("model"), text)][..],
        ),
        (12, "Start to dispatch decode request", 0, &[]),
        (
            15,
            "Add need pulling sequence",
            0,
            &[(KeyRef::Text("n"), ValueRef::I64(-1))],
        ),
        (
            16,
            "Enter decode to generate",
            1,
            &[(KeyRef::Text("half"), ValueRef::F64(0.5))],
        ),
        (17, "Start to dispatch decode request", 1, &[]),
        (
            30,
            "Second decode output token",
            0,
            &[(KeyRef::Text("late"), ValueRef::Bool(true))],
        ),
        (20, "First decode output token", 0, &[]),
        (
            40,
            "Finish decode pickle and start response",
            0,
            &[(KeyRef::Text("error.type"), failed)],
        ),
    ] {
        let event = Event {
            action: ActionName::Known(vocabulary.action_named(action).unwrap()),
            time,
            request_id: "r",
            occurrence,
            context: None,
            attributes,
            source: &source(),
            carried: false,
        };
        assembler.event(event, &mut sink);
    }
    assembler.settle(1, &mut sink);
    assembler.finish(&mut sink);
    let names: Vec<&str> = sink.spans.iter().map(|s| &*s.name).collect();
    assert_eq!(
        names,
        [
            "Start to dispatch decode request",
            "Add to need pulling for decode",
            "Add need pulling sequence",
            "Start to dispatch decode request",
            "Decode",
            "Decode",
        ]
    );
    let batch = sink.open.seal(&mut envelopes, Memory::default()).unwrap();
    let expected = request(&[], &vec![(None, sink.spans.clone())]);
    assert_eq!(batch.body()[..], expected[..]);
    assert_eq!(batch.decode(&source()), sink.spans);
}
