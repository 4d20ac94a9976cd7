//! omnitrace must not record itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::span::{Attributes, Id};
use tracing::{Subscriber, info_span};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::PATIENCE;
use crate::sink::Sink;
use crate::start::run;

/// Counts the spans that are made on omnitrace's thread.
struct Elsewhere(Arc<AtomicU64>);

impl<S: Subscriber> Layer<S> for Elsewhere {
    fn on_new_span(&self, _: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        if std::thread::current().name() == Some("omnitrace") {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Run by the next test in a process of its own: the subscriber is for all threads.
#[test]
#[ignore = "a program of the next test"]
fn the_service_that_exports_over_grpc() {
    let tracing = omnitrace::start();
    let elsewhere = Arc::default();
    let subscriber = tracing_subscriber::registry()
        .with(Elsewhere(Arc::clone(&elsewhere)))
        .with(tracing.layer());
    tracing::subscriber::set_global_default(subscriber).unwrap();
    for _ in 0..3 {
        info_span!("request").in_scope(|| tracing::info!("handled"));
        assert!(tracing.flush(PATIENCE));
    }
    tracing.shutdown(PATIENCE);
    // The HTTP/2 client has made some of its own: there was something to leave out.
    assert!(elsewhere.load(Ordering::Relaxed) > 0);
}

#[test]
fn the_exporters_own_spans_are_never_recorded() {
    let sink = Sink::start();
    run(
        "own_thread::the_service_that_exports_over_grpc",
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ],
    );
    let received = sink.received();
    let names: Vec<&str> = received.spans().map(|span| &*span.name).collect();
    assert_eq!(names, ["request"; 3]);
}
