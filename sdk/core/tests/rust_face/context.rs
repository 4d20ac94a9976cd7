//! A trace that comes from elsewhere and goes on elsewhere.

use std::collections::HashMap;

use insta::assert_snapshot;
use omnitrace::SpanContext;
use omnitrace::layer::{SetParentError, context_of, current, extract, inject, set_parent};
use tracing::{Span, info_span};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};

use crate::{outcome, recorded_by, traced_with, tree};

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn caller() -> SpanContext {
    SpanContext::parse(CALLER.as_bytes()).unwrap()
}

#[test]
fn a_span_joins_its_callers_trace_and_its_callees_join_it() {
    let mut passed_on = None;
    let received = recorded_by(
        |layer| layer,
        || {
            let headers = HashMap::from([("traceparent", CALLER), ("tracestate", "vendor=abc")]);
            let span = info_span!("request", otel.kind = "server");
            let found = extract(&span, |name| headers.get(name).copied());
            assert_eq!(found, Some(caller()));
            let _entered = span.entered();
            let call = info_span!("call", otel.kind = "client");
            passed_on = context_of(&call);
            let mut headers = Vec::new();
            inject(&call, |name, value| headers.push((name, value.to_owned())));
            assert_eq!(
                headers,
                [
                    ("traceparent", passed_on.unwrap().traceparent()),
                    ("tracestate", "vendor=abc".to_owned()),
                ]
            );
            call.in_scope(|| assert_eq!(current(), passed_on));
            assert_ne!(current(), passed_on);
            info_span!(parent: None, "another trace");
        },
    );
    assert_snapshot!(tree::of(&received), @r#"
    request SERVER under remote 00f067aa0ba902b7 tracestate vendor=abc
      call CLIENT tracestate vendor=abc
    another trace
    "#);
    let call = received.spans().find(|span| span.name == "call").unwrap();
    let passed_on = passed_on.unwrap();
    assert_eq!(
        passed_on.traceparent(),
        format!(
            "00-{}-{}-01",
            tree::hex(&call.trace_id),
            tree::hex(&call.span_id)
        )
    );
    assert_eq!(passed_on.trace_id, caller().trace_id);
}

#[test]
fn a_context_that_is_none_changes_nothing() {
    let received = recorded_by(
        |layer| layer,
        || {
            for header in ["", "00-zz-00f067aa0ba902b7-01", &CALLER.replace("-01", "")] {
                let span = info_span!("request");
                let headers = HashMap::from([("traceparent", header), ("tracestate", "a=b")]);
                assert_eq!(extract(&span, |name| headers.get(name).copied()), None);
            }
            assert_eq!(extract(&info_span!("request"), |_| None), None);
        },
    );
    assert_snapshot!(tree::of(&received), @r#"
    request
    request
    request
    request
    "#);
}

#[test]
fn a_parent_comes_too_late_for_a_span_that_others_know() {
    let received = recorded_by(
        |layer| layer,
        || {
            let span = info_span!("has a child");
            info_span!(parent: &span, "child");
            assert_eq!(set_parent(&span, caller()), Err(SetParentError::TooLate));
            let span = info_span!("passed on");
            context_of(&span);
            assert_eq!(set_parent(&span, caller()), Err(SetParentError::TooLate));
            let span = info_span!("linked to");
            info_span!("linking").follows_from(&span);
            assert_eq!(set_parent(&span, caller()), Err(SetParentError::TooLate));
            let span = info_span!("moved twice");
            let other = SpanContext {
                span_id: omnitrace::id::SpanId::new(7).unwrap(),
                ..caller()
            };
            assert_eq!(set_parent(&span, other), Ok(()));
            assert_eq!(set_parent(&span, caller()), Ok(()));
        },
    );
    assert_snapshot!(tree::of(&received), @r#"
    has a child
      child
    passed on
    linked to
    linking
      -> linked to
    moved twice under remote 00f067aa0ba902b7
    "#);
}

#[test]
fn what_is_not_recorded_has_no_context() {
    assert_eq!((current(), context_of(&Span::current())), (None, None));
    assert_eq!(
        set_parent(&Span::none(), caller()),
        Err(SetParentError::NotRecorded)
    );
    let (received, _) = outcome(|tracing| {
        let layer = tracing.layer().with_filter(LevelFilter::INFO);
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let hidden = tracing::debug_span!("hidden").entered();
            assert_eq!(
                set_parent(&hidden, caller()),
                Err(SetParentError::NotRecorded)
            );
            assert_eq!((current(), context_of(&hidden)), (None, None));
            inject(&hidden, |name, value| panic!("{name}: {value}"));
        });
    });
    assert_eq!(received.spans().count(), 0);
}

#[test]
fn a_trace_that_the_caller_does_not_record_is_passed_on_but_not_recorded() {
    let (received, stats) = outcome(|tracing| {
        let subscriber = tracing_subscriber::registry().with(tracing.layer());
        tracing::subscriber::with_default(subscriber, || {
            let span = info_span!("request", note = "nobody reads it");
            let unsampled = SpanContext {
                flags: 0,
                ..caller()
            };
            set_parent(&span, unsampled).unwrap();
            let _entered = span.entered();
            let _inner = info_span!("inner").entered();
            let passed_on = current().unwrap();
            assert_eq!(
                (passed_on.trace_id, passed_on.flags),
                (caller().trace_id, 0)
            );
        });
    });
    assert_eq!(
        (received.spans().count(), stats.created, stats.unsampled),
        (0, 0, 2)
    );
}

#[test]
fn the_sampler_decides_where_no_caller_has() {
    let sampler = [("OTEL_TRACES_SAMPLER", "parentbased_always_off")];
    let (received, stats) = traced_with(&sampler, || {
        info_span!("request").in_scope(|| {
            info_span!("inner").in_scope(|| tracing::info!("nobody reads it"));
            assert_eq!(current().map(|own| own.flags), Some(0));
        });
        // What its caller wants is recorded whole.
        let span = info_span!("wanted", item = "tea");
        extract(&span, |name| (name == "traceparent").then_some(CALLER));
        span.in_scope(|| tracing::info!("added"));
    });
    assert_eq!((stats.created, stats.unsampled), (1, 2));
    assert_snapshot!(tree::of(&received), @r#"
    wanted under remote 00f067aa0ba902b7
      item = "tea"
      * added
        level = "INFO"
        target = "rust_face::context"
    "#);
}

#[test]
fn contexts_come_and_go_in_the_formats_of_the_environment() {
    let formats = [("OTEL_PROPAGATORS", "b3,baggage")];
    let (received, _) = traced_with(&formats, || {
        let came = HashMap::from([
            ("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-d"),
            ("baggage", "user=12"),
            (
                "traceparent",
                "00-11111111111111111111111111111111-2222222222222222-01",
            ),
        ]);
        let span = info_span!("request");
        let found = extract(&span, |name| came.get(name).copied());
        assert_eq!(found, Some(caller()));
        let _entered = span.entered();
        let call = info_span!("call");
        let own = context_of(&call).unwrap();
        let mut went = Vec::new();
        inject(&call, |name, value| went.push((name, value.to_owned())));
        let b3 = format!("{}-{}-d", own.trace_id, own.span_id);
        assert_eq!(went, [("b3", b3), ("baggage", "user=12".to_owned())]);
    });
    assert_snapshot!(tree::of(&received), @r#"
    request under remote 00f067aa0ba902b7
      call
    "#);
}
