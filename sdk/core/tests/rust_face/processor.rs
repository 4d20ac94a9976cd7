//! Spans of OpenTelemetry's own SDK.

use std::net::TcpListener;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use insta::assert_snapshot;
use opentelemetry::trace::{
    Event, Link, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId,
    TraceState, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Array, Context, InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::{
    SamplingDecision, SamplingResult, SdkTracerProvider, ShouldSample, SpanProcessor as _,
};

use crate::sink::Received;
use crate::{PATIENCE, config, outcome, outcome_with, tree};

/// What arrives of a run with a provider of this resource.
fn recorded(resource: Resource, run: impl FnOnce(&SdkTracerProvider)) -> Received {
    let (received, stats) = outcome(|tracing| {
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_span_processor(tracing.span_processor())
            .build();
        run(&provider);
        provider.shutdown().unwrap();
        // The shutdown alone has delivered them.
        assert_eq!(tracing.stats().in_flight, 0);
    });
    let spans = received.spans().count() as u64;
    assert_eq!((stats.created, stats.exported), (spans, spans));
    received
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::new(seconds, 5)
}

fn caller() -> Context {
    let state = TraceState::from_key_value([("vendor", "abc"), ("other", "x")]).unwrap();
    let caller = SpanContext::new(
        TraceId::from_hex("4bf92f3577b34da6a3ce929d0e0e4736").unwrap(),
        SpanId::from_hex("00f067aa0ba902b7").unwrap(),
        TraceFlags::SAMPLED,
        true,
        state,
    );
    Context::new().with_remote_span_context(caller)
}

fn strings(list: [&'static str; 2]) -> Value {
    Value::Array(Array::String(list.map(Into::into).to_vec()))
}

#[test]
fn every_part_of_a_span_arrives() {
    let received = recorded(Resource::builder_empty().build(), |provider| {
        let scope = InstrumentationScope::builder("shop")
            .with_version("1.2.3")
            .with_schema_url("https://opentelemetry.io/schemas/1.30.0")
            .with_attributes([KeyValue::new("part", "cart")])
            .build();
        let tracer = provider.tracer_with_scope(scope);
        let linked = SpanContext::new(
            TraceId::from(0x11),
            SpanId::from(0x22),
            TraceFlags::default(),
            true,
            TraceState::from_key_value([("vendor", "linked")]).unwrap(),
        );
        let mut builder = tracer
            .span_builder("GET /cart")
            .with_kind(SpanKind::Server)
            .with_start_time(at(100))
            .with_attributes([
                KeyValue::new("flag", true),
                KeyValue::new("count", -7),
                KeyValue::new("price", 2.5),
                KeyValue::new("note", "läuft"),
                KeyValue::new("owned", "x".repeat(3)),
                KeyValue::new("flags", Value::Array(vec![true, false].into())),
                KeyValue::new("counts", Value::Array(vec![1i64, 2].into())),
                KeyValue::new("prices", Value::Array(vec![0.5, 1.5].into())),
                KeyValue::new("notes", strings(["a", "b"])),
                KeyValue::new("none", Value::Array(Array::String(vec![]))),
            ])
            .with_links(vec![Link::new(
                linked,
                vec![KeyValue::new("why", "retry")],
                0,
            )]);
        builder.events = Some(vec![Event::new(
            "added",
            at(101),
            vec![
                KeyValue::new("item", "tea"),
                KeyValue::new("tags", strings(["c", "d"])),
            ],
            0,
        )]);
        let span = tracer.build_with_context(builder, &caller());
        let context = caller().with_span(span);
        context.span().set_status(Status::error("no tea"));
        let below = tracer
            .span_builder("call")
            .with_kind(SpanKind::Client)
            .with_start_time(at(100));
        let mut below = tracer.build_with_context(below, &context);
        opentelemetry::trace::Span::set_status(&mut below, Status::Ok);
        opentelemetry::trace::Span::end_with_timestamp(&mut below, at(101));
        context.span().end_with_timestamp(at(102));

        let other = provider.tracer("other");
        for kind in [SpanKind::Producer, SpanKind::Consumer, SpanKind::Internal] {
            let span = other
                .span_builder("root")
                .with_kind(kind)
                .with_start_time(at(103));
            opentelemetry::trace::Span::end_with_timestamp(&mut other.build(span), at(104));
        }
    });
    assert_snapshot!(tree::of(&received), @r#"
    GET /cart SERVER ERROR "no tea" under remote 00f067aa0ba902b7 tracestate vendor=abc,other=x
      count = -7
      counts = [1, 2]
      flag = true
      flags = [true, false]
      none = []
      note = "läuft"
      notes = ["a", "b"]
      owned = "xxx"
      price = 2.5
      prices = [0.5, 1.5]
      * added
        item = "tea"
        tags = ["c", "d"]
      -> 00000000000000000000000000000011-0000000000000022 tracestate vendor=linked
        why = "retry"
      call CLIENT OK "" tracestate vendor=abc,other=x
    root PRODUCER
    root CONSUMER
    root
    "#);

    let (scope, schema, span) = received
        .scoped()
        .find(|(.., s)| s.name == "GET /cart")
        .unwrap();
    assert_eq!(
        (&*scope.name, &*scope.version, schema),
        ("shop", "1.2.3", "https://opentelemetry.io/schemas/1.30.0")
    );
    assert_eq!(
        tree::pairs(&scope.attributes),
        [("part".into(), "\"cart\"".into())]
    );
    assert_eq!(
        (
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            span.events[0].time_unix_nano
        ),
        (100_000_000_005, 102_000_000_005, 101_000_000_005)
    );
    assert_eq!(span.flags & 0xff, 1);
    assert_eq!(
        tree::hex(&span.trace_id),
        "4bf92f3577b34da6a3ce929d0e0e4736"
    );
    let (scope, schema, _) = received.scoped().find(|(.., s)| s.name == "root").unwrap();
    assert_eq!((&*scope.name, &*scope.version, schema), ("other", "", ""));
}

#[test]
fn what_the_sdk_has_left_out_is_counted_as_such() {
    let (received, _) = outcome(|tracing| {
        let provider = SdkTracerProvider::builder()
            .with_max_attributes_per_span(2)
            .with_max_events_per_span(1)
            .with_max_links_per_span(1)
            .with_max_attributes_per_event(1)
            .with_max_attributes_per_link(2)
            .with_span_processor(tracing.span_processor())
            .build();
        let tracer = provider.tracer("shop");
        let pairs = || {
            (0..5)
                .map(|n| KeyValue::new(format!("k{n}"), n))
                .collect::<Vec<_>>()
        };
        let span = tracer.build(tracer.span_builder("many").with_attributes(pairs()));
        let context = Context::new().with_span(span);
        for _ in 0..3 {
            context.span().add_event("event", pairs());
            let link = SpanContext::new(
                TraceId::from(0x11),
                SpanId::from(0x22),
                TraceFlags::default(),
                false,
                TraceState::NONE,
            );
            context.span().add_link(link, pairs());
        }
    });
    assert_snapshot!(tree::of(&received), @r#"
    many
      k0 = 0
      k1 = 1
      * event
        k0 = 0
      4 of the event's attributes dropped
      -> 00000000000000000000000000000011-0000000000000022
        k0 = 0
        k1 = 1
      3 of the link's attributes dropped
      3 attributes dropped
      2 events dropped
      2 links dropped
    "#);
}

#[test]
fn the_environments_limits_count_too() {
    let limits = [
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3"),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "1"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "0"),
        ("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "1"),
    ];
    let (received, _) = outcome_with(&limits, |tracing| {
        let provider = SdkTracerProvider::builder()
            .with_span_processor(tracing.span_processor())
            .build();
        let tracer = provider.tracer("shop");
        let pairs = || vec![KeyValue::new("a", "ümläut"), KeyValue::new("b", 1)];
        let span = tracer.build(tracer.span_builder("many").with_attributes(pairs()));
        let context = Context::new().with_span(span);
        for _ in 0..2 {
            context.span().add_event("event", pairs());
        }
        let link = caller().span().span_context().clone();
        context.span().add_link(link, vec![]);
    });
    assert_snapshot!(tree::of(&received), @r#"
    many
      a = "üml"
      * event
        a = "üml"
      1 of the event's attributes dropped
      1 attributes dropped
      1 events dropped
      1 links dropped
    "#);
}

#[test]
fn the_providers_resource_is_added_to_ours() {
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", "from the provider"),
            KeyValue::new("service.version", "1.2.3"),
            KeyValue::new("replicas", 3),
            KeyValue::new("telemetry.sdk.name", "opentelemetry"),
        ])
        .build();
    let received = recorded(resource, |provider| {
        provider.tracer("shop").in_span("span", |_| {});
    });
    let mut resource = tree::pairs(&received.resource());
    resource.retain(|(key, _)| !["process.pid", "service.instance.id"].contains(&&**key));
    let lines: Vec<String> = resource.iter().map(|(k, v)| format!("{k} = {v}")).collect();
    assert_snapshot!(lines.join("\n"), @r#"
    host.ip = "10.1.2.3"
    replicas = 3
    service.name = "from the provider"
    service.version = "1.2.3"
    telemetry.sdk.language = "rust"
    telemetry.sdk.name = "omnitrace"
    telemetry.sdk.version = "0.1.0"
    "#);
}

#[test]
fn a_resource_that_says_nothing_of_the_service_leaves_ours() {
    // The SDK says "unknown_service" where nobody has said anything.
    let received = recorded(Resource::builder().build(), |provider| {
        provider.tracer("shop").in_span("span", |_| {});
    });
    let resource = tree::pairs(&received.resource());
    assert!(resource.contains(&("service.name".to_owned(), "\"cart\"".to_owned())));
}

/// Records everything and has nothing exported.
#[derive(Debug, Clone)]
struct OnlyRecord;

impl ShouldSample for OnlyRecord {
    fn should_sample(
        &self,
        _: Option<&Context>,
        _: TraceId,
        _: &str,
        _: &SpanKind,
        _: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        SamplingResult {
            decision: SamplingDecision::RecordOnly,
            attributes: vec![],
            trace_state: TraceState::NONE,
        }
    }
}

#[test]
fn a_span_that_is_not_sampled_is_not_exported() {
    let (received, stats) = outcome(|tracing| {
        let provider = SdkTracerProvider::builder()
            .with_sampler(OnlyRecord)
            .with_span_processor(tracing.span_processor())
            .build();
        provider.tracer("shop").in_span("span", |_| {});
    });
    assert_eq!((received.spans().count(), stats.created), (0, 0));
}

#[test]
fn two_providers_of_a_process_share_its_tracing() {
    let (received, _) = outcome(|tracing| {
        let provider = || {
            SdkTracerProvider::builder()
                .with_span_processor(tracing.span_processor())
                .build()
        };
        let (one, two) = (provider(), provider());
        one.tracer("one").in_span("of one", |_| {});
        one.shutdown().unwrap();
        two.tracer("two").in_span("of two", |_| {});
        two.force_flush().unwrap();
        assert_eq!(tracing.stats().exported, 2);
    });
    let mut scopes: Vec<_> = received
        .scoped()
        .map(|(s, _, span)| (&*s.name, &*span.name))
        .collect();
    scopes.sort_unstable();
    assert_eq!(scopes, [("one", "of one"), ("two", "of two")]);
}

#[test]
fn a_collector_that_says_nothing_is_waited_for_no_longer_than_asked() {
    // It takes connections and is silent.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let tracing = omnitrace::start_with(config(&endpoint, &[]));
    let provider = SdkTracerProvider::builder()
        .with_span_processor(tracing.span_processor())
        .build();
    provider.tracer("shop").in_span("span", |_| {});
    let limit = Duration::from_millis(300);
    let outcome = provider.shutdown_with_timeout(limit);
    assert!(matches!(outcome, Err(OTelSdkError::InternalFailure(said)) if said.contains("300ms")));
    let stats = tracing.shutdown(PATIENCE);
    assert_eq!((stats.created, stats.dropped_total()), (1, 1));
    // Its log is off.
    assert_eq!(stats.dropped["not_delivered"], 1);
}

#[test]
fn a_processor_ends_once() {
    let (_, _) = outcome(|tracing| {
        let processor = tracing.span_processor();
        assert!(processor.shutdown_with_timeout(PATIENCE).is_ok());
        let again = processor.shutdown_with_timeout(PATIENCE);
        assert!(matches!(again, Err(OTelSdkError::AlreadyShutdown)));
        assert!(processor.force_flush().is_ok());
    });
}
