//! Every byte against prost's, and back.

use std::sync::Arc;
use std::time::Instant;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{self as proto, ResourceSpans, ScopeSpans};
use proptest::prelude::*;
use prost::Message;

use super::batch::{Batch, OpenBatch};
use super::encode::{Envelope, SCOPE, VERSION};
use crate::assembler::{Assembler, LooseEvent, PhaseSpan, Scope, Sink};
use crate::event::{ActionName, Event, Parent};
use crate::id::{SpanId, TraceId};
use crate::queue::DecodedSpan;
use crate::span::{Link, Place, Source, Span, SpanEvent, SpanKind, Status};
use crate::value::{Attribute, Value, ValueRef};
use crate::vocabulary::Vocabulary;

fn source() -> Arc<Source> {
    Arc::new(Source {
        role: "prefill".into(),
        node: "10.0.0.2".into(),
    })
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        ".{0,200}".prop_map(|text| Value::Str(text.into())),
        any::<i64>().prop_map(Value::I64),
        any::<f64>()
            .prop_filter("NaN is not equal to itself", |n| !n.is_nan())
            .prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
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

fn span() -> impl Strategy<Value = Span> {
    let event =
        (any::<u64>(), ".{0,40}", attributes()).prop_map(|(time, name, attributes)| SpanEvent {
            time,
            name: name.into(),
            attributes,
        });
    let link = (trace_id(), span_id()).prop_map(|(trace_id, span_id)| Link { trace_id, span_id });
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
        any::<u8>(),
    );
    let times = (any::<u64>(), any::<u64>());
    let lists = (
        attributes(),
        prop::collection::vec(event, 0..4),
        prop::collection::vec(link, 0..4),
    );
    (ids, ".{0,300}", kind, times, status(), lists).prop_map(
        |((trace_id, span_id, parent_span_id, flags), name, kind, times, status, lists)| Span {
            trace_id,
            span_id,
            parent_span_id,
            flags,
            name: name.into(),
            kind,
            start: times.0.min(times.1),
            end: times.0.max(times.1),
            status,
            attributes: lists.0,
            events: lists.1,
            links: lists.2,
            source: source(),
            origin: None,
        },
    )
}

fn key_values(attributes: &[Attribute]) -> Vec<KeyValue> {
    let value = |value: &Value| match value {
        Value::Str(text) => any_value::Value::StringValue(text.to_string()),
        Value::I64(n) => any_value::Value::IntValue(*n),
        Value::F64(n) => any_value::Value::DoubleValue(*n),
        Value::Bool(b) => any_value::Value::BoolValue(*b),
    };
    attributes
        .iter()
        .map(|a| KeyValue {
            key: a.key.to_string(),
            value: Some(AnyValue {
                value: Some(value(&a.value)),
            }),
            ..Default::default()
        })
        .collect()
}

fn as_proto(span: &Span) -> proto::Span {
    let remote = if span.kind == SpanKind::Server {
        0x300
    } else {
        0x100
    };
    proto::Span {
        trace_id: span.trace_id.value().to_be_bytes().into(),
        span_id: span.span_id.value().to_be_bytes().into(),
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
        events: span
            .events
            .iter()
            .map(|e| proto::span::Event {
                time_unix_nano: e.time,
                name: e.name.to_string(),
                attributes: key_values(&e.attributes),
                ..Default::default()
            })
            .collect(),
        links: span
            .links
            .iter()
            .map(|l| proto::span::Link {
                trace_id: l.trace_id.value().to_be_bytes().into(),
                span_id: l.span_id.value().to_be_bytes().into(),
                ..Default::default()
            })
            .collect(),
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
        ..Default::default()
    }
}

fn request(resource: &[Attribute], spans: &[Span]) -> Vec<u8> {
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: key_values(resource),
                ..Default::default()
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: SCOPE.into(),
                    version: VERSION.into(),
                    ..Default::default()
                }),
                spans: spans.iter().map(as_proto).collect(),
                ..Default::default()
            }],
            ..Default::default()
        }],
    }
    .encode_to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_batch_is_what_prost_would_make_of_it_and_comes_back_whole(
        resource in attributes(),
        spans in prop::collection::vec(span(), 1..6),
    ) {
        let batch = Batch::of(spans.clone(), &Envelope::new(&resource)).unwrap();
        prop_assert_eq!(&batch.body()[..], &request(&resource, &spans)[..]);
        prop_assert_eq!(batch.decode(&source()), spans);
    }

    #[test]
    fn a_free_span_is_encoded_as_the_span_that_it_becomes(span in span()) {
        let message = match &span.status {
            Status::Error(text) => Some(&**text),
            _ => None,
        };
        let attributes: Vec<_> =
            span.attributes.iter().map(|a| (&*a.key, a.value.as_ref())).collect();
        let decoded = DecodedSpan {
            name: &span.name,
            start: span.start,
            end: span.end,
            span_id: span.span_id,
            parent: Parent::Root(span.trace_id),
            kind: span.kind,
            error: message,
            attributes,
        };
        let place = Place {
            trace_id: span.trace_id,
            parent: span.parent_span_id,
            flags: span.flags,
        };
        let envelope = Envelope::new(&[]);
        let mut open = OpenBatch::new(&envelope, 0);
        open.push_free(&decoded, &place, Instant::now());
        let expected = decoded.to_span(&place, &source());
        let batch = open.seal(&envelope).unwrap();
        prop_assert_eq!(&batch.body()[..], &request(&[], std::slice::from_ref(&expected))[..]);
        prop_assert!(open.seal(&envelope).is_none());
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

    fn contradictory(&mut self) {
        panic!("none is");
    }
}

#[test]
fn a_phases_span_is_encoded_as_the_span_that_it_becomes() {
    let vocabulary = Vocabulary::omni_vllm();
    let envelope = Envelope::new(&[]);
    let mut sink = BothWays {
        open: OpenBatch::new(&envelope, 0),
        spans: Vec::new(),
    };
    let mut assembler = Assembler::new(Arc::clone(&vocabulary), Scope::Process);
    let text = ValueRef::Str("m");
    let failed = ValueRef::Str("500");
    for (time, action, occurrence, attributes) in [
        (10, "Enter decode to generate", 0, &[("model", text)][..]),
        (12, "Start to dispatch decode request", 0, &[]),
        (
            15,
            "Add need pulling sequence",
            0,
            &[("n", ValueRef::I64(-1))],
        ),
        (15, "Start to dispatch decode request", 1, &[]),
        (
            16,
            "Enter decode to generate",
            1,
            &[("half", ValueRef::F64(0.5))],
        ),
        (
            30,
            "Second decode output token",
            0,
            &[("late", ValueRef::Bool(true))],
        ),
        (20, "First decode output token", 0, &[]),
        (
            40,
            "Finish decode pickle and start response",
            0,
            &[("error.type", failed)],
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
            "Decode",
            "Decode",
        ]
    );
    let batch = sink.open.seal(&envelope).unwrap();
    assert_eq!(batch.body()[..], request(&[], &sink.spans)[..]);
    assert_eq!(batch.decode(&source()), sink.spans);
}
