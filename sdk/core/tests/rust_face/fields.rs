//! What spans and events say of themselves.

use std::fmt;

use insta::assert_snapshot;
use tracing::field::Empty;
use tracing::{debug, error, event, info, info_span, warn};
use tracing_subscriber::layer::SubscriberExt as _;

use crate::sink::Sink;
use crate::start::run;
use crate::{recorded, recorded_by, traced_with, tree};

#[derive(Debug)]
struct Item {
    name: &'static str,
}

/// An error with a source, which has one too.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no price")]
    Price(#[source] Box<Failure>),
    #[error("no database")]
    Database(#[source] Box<Failure>),
    #[error("no route")]
    Route,
}

fn failure() -> Failure {
    Failure::Price(Box::new(Failure::Database(Box::new(Failure::Route))))
}

#[test]
fn fields_keep_their_types() {
    let text = recorded(|| {
        let item = Item { name: "tea" };
        let span = info_span!(
            "add",
            count = -3,
            sum = 7_u64,
            most = u64::MAX,
            huge = i128::MAX,
            small = 5_u128,
            price = 2.5,
            fresh = true,
            note = "läuft",
            empty = "",
            item = ?item,
            label = %item.name,
            nothing = Empty,
            later = Empty,
            cart.id = "c-1",
        );
        span.record("later", 12);
        span.record("price", 3.5);
    });
    assert_snapshot!(text, @r#"
    add
      cart.id = "c-1"
      count = -3
      empty = ""
      fresh = true
      huge = "170141183460469231731687303715884105727"
      item = "Item { name: \"tea\" }"
      label = "tea"
      later = 12
      most = "18446744073709551615"
      note = "läuft"
      price = 3.5
      small = 5
      sum = 7
    "#);
}

#[test]
fn special_fields_make_name_kind_and_status() {
    let text = recorded(|| {
        let route = "/cart/{id}";
        info_span!(
            "request",
            otel.name = format!("GET {route}"),
            otel.kind = "server",
            otel.status_code = "OK",
        );
        let span = info_span!(
            "call",
            otel.kind = ?tracing::Level::INFO,
            otel.name = Empty,
            otel.status_code = Empty,
            otel.status_description = Empty,
        );
        span.record("otel.kind", "CLIENT");
        span.record("otel.name", format_args!("POST {}", "/pay"));
        span.record("otel.status_description", "card refused");
        span.record("otel.status_code", "error");
        info_span!("consume", otel.kind = %"Consumer", otel.status_code = "ERROR");
        info_span!(
            "produce",
            otel.kind = "producer",
            otel.status_code = "error"
        )
        .record("otel.status_code", "ok");
        info_span!(
            "odd",
            otel.kind = "sideways",
            otel.status_code = "perhaps",
            otel.name = 5
        );
    });
    assert_snapshot!(text, @r#"
    GET /cart/{id} SERVER OK ""
    POST /pay CLIENT ERROR "card refused"
      otel.kind = "Level(Info)"
    consume CONSUMER ERROR ""
    produce PRODUCER OK ""
    odd
      otel.kind = "sideways"
      otel.name = 5
      otel.status_code = "perhaps"
    "#);
}

#[test]
fn events_are_moments_of_the_span_they_are_in() {
    let text = recorded(|| {
        info!("outside");
        let span = info_span!("add");
        let _entered = span.enter();
        info!(count = 2_u64, fresh = false, "added");
        debug!(name: "named", target: "elsewhere", price = 2.5);
        warn!(message = 5);
        event!(tracing::Level::TRACE, level = "mine", "{}+{}", 1, 2);
        let inner = info_span!("inner");
        info!(parent: &inner, "for another span");
        info!(parent: None, "for none");
    });
    assert_snapshot!(text, @r#"
    add
      * added
        count = 2
        fresh = false
        level = "INFO"
        target = "rust_face::fields"
      * named
        level = "DEBUG"
        price = 2.5
        target = "elsewhere"
      * 5
        level = "WARN"
        target = "rust_face::fields"
      * 1+2
        level = "mine"
        target = "rust_face::fields"
      inner
        * for another span
          level = "INFO"
          target = "rust_face::fields"
    "#);
}

#[test]
fn what_fails_is_seen_in_the_spans_status() {
    let text = recorded(|| {
        info_span!("said so").in_scope(|| error!("it broke"));
        info_span!("error alone").in_scope(|| error!(error = %failure()));
        info_span!("error with a message").in_scope(|| error!(error = %failure(), "it broke"));
        info_span!("a warning about one").in_scope(|| warn!(error = "no tea"));
        info_span!("fine after all", otel.status_code = "ok").in_scope(|| error!("it broke"));
        let failure = failure();
        let error: &(dyn std::error::Error + 'static) = &failure;
        info_span!("an error as a value").in_scope(|| info!(cause = error, "retrying"));
        info_span!("a span's own", cause = error);
    });
    assert_snapshot!(text, @r#"
    said so ERROR ""
      * it broke
        level = "ERROR"
        target = "rust_face::fields"
    error alone ERROR "no price"
      * exception
        exception.message = "no price"
        level = "ERROR"
        target = "rust_face::fields"
    error with a message ERROR ""
      * it broke
        error = "no price"
        level = "ERROR"
        target = "rust_face::fields"
    a warning about one ERROR "no tea"
      * exception
        exception.message = "no tea"
        level = "WARN"
        target = "rust_face::fields"
    fine after all OK ""
      * it broke
        level = "ERROR"
        target = "rust_face::fields"
    an error as a value
      exception.message = "no price"
      exception.stacktrace = ["no database", "no route"]
      * retrying
        cause = "no price"
        cause.chain = ["no database", "no route"]
        exception.message = "no price"
        exception.stacktrace = ["no database", "no route"]
        level = "INFO"
        target = "rust_face::fields"
    a span's own
      cause = "no price"
      cause.chain = ["no database", "no route"]
      exception.message = "no price"
      exception.stacktrace = ["no database", "no route"]
    "#);
}

#[test]
fn the_place_in_the_code_is_there_if_asked_for() {
    let all =
        |layer: omnitrace::Layer| layer.with_level(true).with_target(true).with_location(true);
    let received = recorded_by(all, || {
        let _entered = info_span!("add", item = "tea", target = "a field's").entered();
        info!(target: "shop", "added");
    });
    assert_snapshot!(tree::of(&received), @r#"
    add
      code.file.path = "sdk/core/tests/rust_face/fields.rs"
      code.line.number = LINE
      code.module.name = "rust_face::fields"
      item = "tea"
      level = "INFO"
      target = "a field's"
      * added
        code.file.path = "sdk/core/tests/rust_face/fields.rs"
        code.line.number = LINE
        code.module.name = "rust_face::fields"
        level = "INFO"
        target = "shop"
    "#);
}

#[test]
fn a_record_of_the_log_crate_says_where_it_comes_from() {
    let located = |layer: omnitrace::Layer| layer.with_location(true);
    let received = recorded_by(located, || {
        let _entered = info_span!("add").entered();
        // So tracing-log hands them on.
        event!(
            target: "log",
            tracing::Level::INFO,
            message = format_args!("pool is full"),
            log.target = "db::pool",
            log.module_path = "db::pool::grow",
            log.file = "src/pool.rs",
            log.line = 41_u64,
        );
    });
    assert_snapshot!(tree::of(&received), @r#"
    add
      code.file.path = "sdk/core/tests/rust_face/fields.rs"
      code.line.number = LINE
      code.module.name = "rust_face::fields"
      * pool is full
        code.file.path = "src/pool.rs"
        code.line.number = LINE
        code.module.name = "db::pool::grow"
        level = "INFO"
        target = "db::pool"
    "#);
}

#[test]
fn what_is_too_long_or_too_much_is_cut_and_counted() {
    let received = recorded_by(
        |layer| layer,
        || {
            let _entered = info_span!("add", note = "x".repeat(20_000)).entered();
            for n in 0..200 {
                info!(n, "added");
            }
        },
    );
    let span = received.spans().next().unwrap();
    let (_, note) = &tree::pairs(&span.attributes)[0];
    assert_eq!(note.len(), 16 * 1024 + 2);
    assert_eq!((span.events.len(), span.dropped_events_count), (128, 72));

    let received = recorded_by(
        |layer| layer,
        || {
            let _entered = info_span!("add").entered();
            for _ in 0..100 {
                info!(note = "x".repeat(10_000), "added");
            }
        },
    );
    let span = received.spans().next().unwrap();
    let kept = span.events.len() as u32;
    assert!(kept > 10);
    assert_eq!(kept + span.dropped_events_count, 100);
}

#[test]
fn the_environments_limits_count() {
    let limits = [
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "2"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3"),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "1"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "1"),
        ("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "1"),
    ];
    let (received, _) = traced_with(&limits, || {
        let span = info_span!("add", item = "ümläut", count = 5, more = 6, later = Empty);
        span.record("later", 7);
        span.record("item", "changed");
        for _ in 0..2 {
            span.in_scope(|| info!(item = "ümläut", "added"));
            span.follows_from(&span);
        }
    });
    assert_snapshot!(tree::of(&received), @r#"
    add
      count = 5
      item = "cha"
      * added
        item = "üml"
      2 of the event's attributes dropped
      -> add
      2 attributes dropped
      1 events dropped
      1 links dropped
    "#);
}

/// Its Debug is a program of its own.
struct Talkative(fn());

impl fmt::Debug for Talkative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("before ")?;
        (self.0)();
        f.write_str("after")
    }
}

/// Run by the next test in a process of its own: only a subscriber for all threads
/// hears what a subscriber itself says.
#[test]
#[ignore = "a program of the next test"]
fn the_service_whose_values_trace() {
    let tracing = omnitrace::start();
    let subscriber = tracing_subscriber::registry().with(tracing.layer());
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let value = Talkative(|| {
        let inner = Talkative(|| info!("from within within"));
        let _entered = info_span!("asked", ?inner).entered();
        info!(?inner, "from within");
    });
    let span = info_span!("outer", later = Empty);
    let _entered = span.enter();
    span.record("later", tracing::field::debug(&value));
    info!(?value, "said");
    info_span!("inner", ?value);
}

#[test]
fn a_values_debug_may_trace_itself() {
    let sink = Sink::start();
    run(
        "fields::the_service_whose_values_trace",
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint())],
    );
    assert_snapshot!(tree::of(&sink.received()), @r#"
    outer
      later = "before after"
      * from within within
        level = "INFO"
        target = "rust_face::fields"
      * from within within
        level = "INFO"
        target = "rust_face::fields"
      * said
        level = "INFO"
        target = "rust_face::fields"
        value = "before after"
      * from within within
        level = "INFO"
        target = "rust_face::fields"
      asked
        inner = "before after"
        * from within within
          level = "INFO"
          target = "rust_face::fields"
        * from within
          inner = "before after"
          level = "INFO"
          target = "rust_face::fields"
      asked
        inner = "before after"
        * from within within
          level = "INFO"
          target = "rust_face::fields"
        * from within
          inner = "before after"
          level = "INFO"
          target = "rust_face::fields"
      inner
        value = "before after"
      asked
        inner = "before after"
        * from within within
          level = "INFO"
          target = "rust_face::fields"
        * from within
          inner = "before after"
          level = "INFO"
          target = "rust_face::fields"
    "#);
}

#[test]
fn a_debug_that_panics_harms_no_other_span() {
    let text = recorded(|| {
        let _entered = info_span!("outer").entered();
        let bad = Talkative(|| panic!("no Debug today"));
        for _ in 0..3 {
            let caught = std::panic::catch_unwind(|| {
                // Else the registry keeps what is above it open for ever.
                info_span!(parent: None, "never", ?bad);
            });
            assert!(caught.is_err());
            assert!(std::panic::catch_unwind(|| info!(?bad, "never")).is_err());
        }
        info_span!("after").in_scope(|| info!("said"));
    });
    assert_snapshot!(text, @r#"
    outer
      after
        * said
          level = "INFO"
          target = "rust_face::fields"
    "#);
}
