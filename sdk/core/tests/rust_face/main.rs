//! Rust services: `tracing` through our layer, OpenTelemetry's SDK through our
//! processor, and what arrives of it over OTLP.
#![allow(clippy::unwrap_used)]

mod alike;
mod context;
mod fields;
mod load;
mod own_thread;
mod processor;
mod sink;
mod start;
mod structure;
mod tree;

use std::time::Duration;

use omnitrace::config::LegacyLogMode;
use omnitrace::{Config, Layer, Stats, Tracing};
use tracing_subscriber::layer::SubscriberExt as _;

use sink::{Received, Sink};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Settings of a service that sends to `endpoint`, with these variables besides,
/// whatever this process's environment says.
fn config(endpoint: &str, variables: &[(&str, &str)]) -> Config {
    let (config, warnings) = Config::from_vars(|name| {
        let usual = [
            ("OTEL_SERVICE_NAME", "cart"),
            ("OTEL_RESOURCE_ATTRIBUTES", "host.ip=10.1.2.3"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ];
        let mut all = variables.iter().chain(&usual);
        let found = all.find(|(variable, _)| *variable == name);
        found.map(|(_, value)| (*value).to_owned())
    });
    assert_eq!(warnings, Vec::<String>::new());
    Config {
        legacy_log: LegacyLogMode::Off,
        ..config
    }
}

/// What arrives of a service's run, and its books.
fn outcome(service: impl FnOnce(&Tracing)) -> (Received, Stats) {
    outcome_with(&[], service)
}

/// The same with these variables.
fn outcome_with(variables: &[(&str, &str)], service: impl FnOnce(&Tracing)) -> (Received, Stats) {
    let sink = Sink::start();
    let tracing = omnitrace::start_with(config(sink.endpoint(), variables));
    service(&tracing);
    let stats = tracing.shutdown(PATIENCE);
    (sink.received(), stats)
}

/// The same of what `tracing` is told.
fn traced_with(variables: &[(&str, &str)], run: impl FnOnce()) -> (Received, Stats) {
    outcome_with(variables, |tracing| {
        let subscriber = tracing_subscriber::registry().with(tracing.layer());
        tracing::subscriber::with_default(subscriber, run);
    })
}

/// What arrives of a run in which nothing is lost, with this layer.
fn recorded_by(layer: impl FnOnce(Layer) -> Layer, run: impl FnOnce()) -> Received {
    let (received, stats) = outcome(|tracing| {
        let subscriber = tracing_subscriber::registry().with(layer(tracing.layer()));
        tracing::subscriber::with_default(subscriber, run);
    });
    let spans = received.spans().count() as u64;
    let lost = stats.dropped_total() + stats.events_lost;
    assert_eq!((stats.created, stats.exported, lost), (spans, spans, 0));
    received
}

/// The same with the layer as it comes, as a tree.
fn recorded(run: impl FnOnce()) -> String {
    tree::of(&recorded_by(|layer| layer, run))
}
