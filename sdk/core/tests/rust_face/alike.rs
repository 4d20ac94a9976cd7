//! A program that is traced by our layer and by tracing-opentelemetry.

use std::fmt::Debug;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::field::Empty;
use tracing::{debug, error, info, info_span, instrument, warn};
use tracing_subscriber::layer::SubscriberExt as _;

use crate::{outcome, recorded, tree};

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failure(&'static str, #[source] Option<Box<Failure>>);

fn failure() -> Failure {
    Failure("no price", Some(Box::new(Failure("no database", None))))
}

#[instrument(fields(otel.kind = "client"), err)]
fn price(item: &str, id: i64) -> Result<f64, Failure> {
    debug!("asking");
    if id > 1 { Err(failure()) } else { Ok(2.5) }
}

#[instrument(skip_all, name = "add to cart", fields(item.count = items.len() as i64, item.first))]
fn add<T: Debug>(items: &[T]) {
    tracing::Span::current().record("item.first", tracing::field::debug(&items[0]));
    warn!(left = 2, fresh = true, price = 0.5, "few {}", "left");
}

fn program() {
    let request = info_span!(
        "request",
        otel.name = "POST /cart",
        otel.kind = "server",
        otel.status_code = Empty,
        otel.status_description = Empty,
        user.id = 12,
        vip = false,
        note = "läuft",
        path = %"/cart",
        body = ?Some("tea"),
        nothing = Empty,
    );
    let other = info_span!("other");
    request.follows_from(&other);
    request.in_scope(|| {
        add(&["tea", "milk"]);
        let _ = price("tea", 1);
        let _ = price("milk", 2);
        info!(parent: &other, "beside");
        error!("plain error");
        let failure = failure();
        let cause: &(dyn std::error::Error + 'static) = &failure;
        info_span!("with a cause", cause);
        info_span!("with a caused event").in_scope(|| info!(cause, "retrying"));
        info_span!("error event").in_scope(|| error!(error = %failure));
        info_span!("error event with text").in_scope(|| error!(error = ?failure, "broke"));
        info_span!(parent: None, "of its own").in_scope(|| info!(name: "named", "text"));
    });
    request.record("otel.status_code", "ERROR");
    request.record("otel.status_description", "not all of it");
}

#[test]
fn our_layer_records_what_tracing_opentelemetry_does() {
    let (theirs, _) = outcome(|tracing| {
        let provider = SdkTracerProvider::builder()
            .with_span_processor(tracing.span_processor())
            .build();
        // What ours leaves out, or only has if asked.
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("shop"))
            .with_target(false)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false);
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, program);
    });
    let (ours, theirs) = (recorded(program), tree::of(&theirs));
    assert_eq!(ours, theirs);
    insta::assert_snapshot!(ours, @r#"
    POST /cart SERVER ERROR "not all of it"
      body = "Some(\"tea\")"
      note = "läuft"
      path = "/cart"
      user.id = 12
      vip = false
      * plain error
        level = "ERROR"
        target = "rust_face::alike"
      -> other
      add to cart
        item.count = 2
        item.first = "\"tea\""
        * few left
          fresh = true
          left = 2
          level = "WARN"
          price = 0.5
          target = "rust_face::alike"
      price CLIENT
        id = 1
        item = "tea"
        * asking
          level = "DEBUG"
          target = "rust_face::alike"
      price CLIENT ERROR "no price"
        id = 2
        item = "milk"
        * asking
          level = "DEBUG"
          target = "rust_face::alike"
        * exception
          exception.message = "no price"
          level = "ERROR"
          target = "rust_face::alike"
      with a cause
        cause = "no price"
        cause.chain = ["no database"]
        exception.message = "no price"
        exception.stacktrace = ["no database"]
      with a caused event
        exception.message = "no price"
        exception.stacktrace = ["no database"]
        * retrying
          cause = "no price"
          cause.chain = ["no database"]
          exception.message = "no price"
          exception.stacktrace = ["no database"]
          level = "INFO"
          target = "rust_face::alike"
      error event ERROR "no price"
        * exception
          exception.message = "no price"
          level = "ERROR"
          target = "rust_face::alike"
      error event with text ERROR ""
        * broke
          error = "Failure(\"no price\", Some(Failure(\"no database\", None)))"
          level = "ERROR"
          target = "rust_face::alike"
    other
      * beside
        level = "INFO"
        target = "rust_face::alike"
    of its own
      * text
        level = "INFO"
        target = "rust_face::alike"
    "#);
}
