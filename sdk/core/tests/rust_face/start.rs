//! How tracing begins and ends in a service.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use opentelemetry::trace::{Tracer as _, TracerProvider as _};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::info_span;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::sink::Sink;
use crate::{PATIENCE, config, tree};

/// Runs an ignored test of this program in a process of its own, with these variables
/// and no others of ours.
pub(crate) fn run(test: &str, variables: &[(&str, &str)]) -> Output {
    let inherited = std::env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        !name.starts_with("OTEL_") && !name.starts_with("OMNITRACE_") && name != "ROLE"
    });
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--include-ignored", "--nocapture"])
        .env_clear()
        .envs(inherited)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(said.contains("1 passed"), "{said}");
    output
}

/// A service that says nothing but what it must.
#[test]
#[ignore = "a program of other tests"]
fn the_service_that_only_adds_the_layer() {
    let subscriber = tracing_subscriber::registry().with(omnitrace::layer());
    tracing::subscriber::set_global_default(subscriber).unwrap();
    info_span!("request").in_scope(|| info_span!("work"));
    let stats = omnitrace::shutdown(PATIENCE);
    eprintln!("books: {stats:?}");
}

/// A service that ends without a word.
#[test]
#[ignore = "a program of other tests"]
fn the_service_that_returns_early() {
    let tracing = omnitrace::start();
    let subscriber = tracing_subscriber::registry().with(tracing.layer());
    tracing::subscriber::with_default(subscriber, || info_span!("request"));
}

#[test]
fn the_environment_is_enough() {
    let sink = Sink::start();
    run(
        "start::the_service_that_only_adds_the_layer",
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint()),
            ("OTEL_SERVICE_NAME", "cart"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "deployment.environment.name=test",
            ),
        ],
    );
    insta::assert_snapshot!(tree::of(&sink.received()), @r#"
    request
      work
    "#);
    let resource = tree::pairs(&sink.received().resource());
    for (key, value) in [
        ("service.name", "\"cart\""),
        ("deployment.environment.name", "\"test\""),
    ] {
        assert!(resource.contains(&(key.to_owned(), value.to_owned())));
    }
}

#[test]
fn a_service_that_nobody_names_has_the_programs_name() {
    let sink = Sink::start();
    run(
        "start::the_service_that_only_adds_the_layer",
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint())],
    );
    let resource = tree::pairs(&sink.received().resource());
    let (_, name) = resource
        .iter()
        .find(|(key, _)| key == "service.name")
        .unwrap();
    assert!(name.starts_with("\"unknown_service:rust_face"), "{name}");
}

#[test]
fn what_is_left_is_delivered_where_the_service_just_ends() {
    let sink = Sink::start();
    run(
        "start::the_service_that_returns_early",
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint())],
    );
    assert_eq!(tree::of(&sink.received()), "request\n");
}

#[test]
fn mistakes_in_the_environment_are_told_before_anybody_listens() {
    let sink = Sink::start();
    let output = run(
        "start::the_service_that_only_adds_the_layer",
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint()),
            ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ],
    );
    let complained = String::from_utf8_lossy(&output.stderr);
    let told: Vec<&str> = complained
        .lines()
        .filter(|l| l.starts_with("omnitrace: "))
        .collect();
    assert_eq!(told.len(), 1, "{complained}");
    assert!(
        told[0].contains("OTEL_BSP_SCHEDULE_DELAY=\"soon\""),
        "{complained}"
    );
    assert_eq!(sink.received().spans().count(), 2);
}

#[test]
fn a_service_that_is_switched_off_runs_and_records_nothing() {
    let sink = Sink::start();
    let output = run(
        "start::the_service_that_only_adds_the_layer",
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint()),
            ("OTEL_SDK_DISABLED", "true"),
        ],
    );
    assert_eq!(sink.received().spans().count(), 0);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("created: 0"), "{said}");
}

#[test]
fn what_comes_after_the_end_is_counted() {
    let sink = Sink::start();
    let tracing = omnitrace::start_with(config(sink.endpoint(), &[]));
    let provider = SdkTracerProvider::builder()
        .with_span_processor(tracing.span_processor())
        .build();
    let subscriber = tracing_subscriber::registry().with(tracing.layer());
    tracing::subscriber::with_default(subscriber, || {
        let open = info_span!("open at the end");
        info_span!("in time");
        let stats = tracing.shutdown(PATIENCE);
        assert_eq!((stats.created, stats.exported), (1, 1));
        drop(open);
        info_span!("too late");
        provider.tracer("late").in_span("too late as well", |_| {});
    });
    assert_eq!(tree::of(&sink.received()), "in time\n");
    let stats = tracing.stats();
    let late = BTreeMap::from([("after_shutdown", 3)]);
    assert_eq!((stats.created, stats.exported, stats.dropped), (4, 1, late));
}
