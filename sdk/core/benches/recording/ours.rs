//! omnitrace's own recorder.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use omnitrace::event::{Action, FreeSpan, Parent};
use omnitrace::id::SpanId;
use omnitrace::{Config, Key, Pipeline, Recorder, SpanContext, Stats, Tracing, ValueRef, clock};

use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::measure::{BURST, Books, Caller, Contestant};
use crate::peers;

/// The settings are the defaults: the room for waiting spans never has to be
/// raised for what this bench records.
fn config(endpoint: &str) -> Result<Config, Box<dyn Error>> {
    let (config, warnings) = Config::from_vars(|name| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(endpoint.to_owned()),
        "OMNITRACE_LEGACY_LOG" => Some("off".to_owned()),
        "ROLE" => Some("prefill".to_owned()),
        _ => None,
    });
    match warnings.first() {
        Some(warning) => Err(warning.as_str().into()),
        None => Ok(config),
    }
}

fn books(stats: &Stats) -> Books {
    Books {
        made: stats.created + stats.events_lost,
        lost: Some(stats.dropped_total() + stats.events_lost),
    }
}

struct Ours<R> {
    pipeline: Pipeline,
    records: R,
}

struct Recording<R> {
    recorder: Arc<Recorder>,
    records: R,
}

fn start<R: Records + 'static>(
    endpoint: &str,
    records: R,
) -> Result<Box<dyn Contestant>, Box<dyn Error>> {
    let config = config(endpoint)?;
    let pipeline = Pipeline::start(config)?;
    Ok(Box::new(Ours { pipeline, records }))
}

trait Records: Clone + Send {
    fn prepare(&mut self) {}
    fn record(&mut self, recorder: &Recorder);
}

impl<R: Records> Caller for Recording<R> {
    fn prepare(&mut self) {
        self.records.prepare();
    }

    fn record(&mut self) {
        self.records.record(&self.recorder);
    }
}

impl<R: Records + 'static> Contestant for Ours<R> {
    fn caller(&self) -> Box<dyn Caller> {
        Box::new(Recording {
            recorder: Arc::clone(self.pipeline.recorder()),
            records: self.records.clone(),
        })
    }

    fn flush(&mut self) {
        // What is left undelivered shows in the books.
        let _ = self.pipeline.flush(Duration::from_secs(30));
    }

    fn books(&self, _: u64) -> Books {
        books(&self.pipeline.stats())
    }
}

/// Finished spans under one remote parent, [`peers::NAME`] with the six
/// attributes that the peers' spans have.
pub(crate) fn span(
    endpoint: &str,
    _: Option<usize>,
) -> Result<Box<dyn Contestant>, Box<dyn Error>> {
    start(
        endpoint,
        Spans {
            parent: remote_parent()?,
            requests: request_ids(0, BURST),
        },
    )
}

static OPERATION: Key = Key::new("gen_ai.operation.name");
static MODEL: Key = Key::new("gen_ai.request.model");
static REQUEST_ID: Key = Key::new("gen_ai.request.id");
static INPUT_TOKENS: Key = Key::new("gen_ai.usage.input_tokens");
static OUTPUT_TOKENS: Key = Key::new("gen_ai.usage.output_tokens");
static TEMPERATURE: Key = Key::new("gen_ai.request.temperature");

#[derive(Clone)]
struct Spans {
    parent: SpanContext,
    requests: Vec<String>,
}

impl Records for Spans {
    fn record(&mut self, recorder: &Recorder) {
        for request in &self.requests {
            let start = clock::now();
            let (name, parent) = (peers::NAME, Parent::Span(self.parent));
            let id = SpanId::random();
            recorder.span_with(
                &FreeSpan::new(name, start, clock::now(), id, parent),
                [
                    (OPERATION.get(), ValueRef::Str("chat")),
                    (MODEL.get(), ValueRef::Str("deepseek-r1")),
                    (REQUEST_ID.get(), ValueRef::Str(request)),
                    (INPUT_TOKENS.get(), ValueRef::I64(1024)),
                    (OUTPUT_TOKENS.get(), ValueRef::I64(128)),
                    (TEMPERATURE.get(), ValueRef::F64(0.7)),
                ],
            );
        }
    }
}

fn remote_parent() -> Result<SpanContext, &'static str> {
    SpanContext::parse(peers::TRACEPARENT.as_bytes()).ok_or("a bad traceparent")
}

/// The actions of prefill requests, in order: about one span for each.
pub(crate) fn action(
    endpoint: &str,
    _: Option<usize>,
) -> Result<Box<dyn Contestant>, Box<dyn Error>> {
    start(
        endpoint,
        Actions {
            bursts: 0,
            requests: Vec::new(),
        },
    )
}

const ACTIONS: [&str; 10] = [
    "PD api server get request",
    "Start process request in prefill engine",
    "Prefill add waiting queue",
    "try to schedule in waiting queue",
    "Prefill get new_blocks",
    "success add to seq groups",
    "Prefill start execute_model",
    "Prefill done execute_model",
    "Start to send output in prefill stage",
    "Finish prefill pickle and start response",
];

#[derive(Clone)]
struct Actions {
    bursts: u64,
    requests: Vec<String>,
}

impl Records for Actions {
    fn prepare(&mut self) {
        let count = BURST / ACTIONS.len() as u64;
        self.requests = request_ids(self.bursts * count, count);
        self.bursts += 1;
    }

    fn record(&mut self, recorder: &Recorder) {
        for request_id in &self.requests {
            for name in ACTIONS {
                recorder.action(&Action {
                    name,
                    time: clock::now(),
                    request_id,
                    occurrence: 0,
                    context: None,
                    attributes: &[],
                });
            }
        }
    }
}

/// `tracing` spans through our layer.
pub(crate) fn layer(
    endpoint: &str,
    _: Option<usize>,
) -> Result<Box<dyn Contestant>, Box<dyn Error>> {
    let tracing = omnitrace::start_with(config(endpoint)?);
    let subscriber = tracing_subscriber::registry().with(tracing.layer());
    tracing::subscriber::set_global_default(subscriber)?;
    let spans = peers::TracingSpans::new();
    Ok(Box::new(Face { tracing, spans }))
}

/// opentelemetry_sdk's spans through our processor.
pub(crate) fn span_processor(
    endpoint: &str,
    _: Option<usize>,
) -> Result<Box<dyn Contestant>, Box<dyn Error>> {
    let tracing = omnitrace::start_with(config(endpoint)?);
    let provider = SdkTracerProvider::builder()
        .with_span_processor(tracing.span_processor())
        .build();
    let spans = peers::OpenTelemetrySpans::new(&provider);
    Ok(Box::new(Face { tracing, spans }))
}

/// Spans that are made with somebody else's interface.
struct Face<S> {
    tracing: Tracing,
    spans: S,
}

impl<S: peers::Spans> Contestant for Face<S> {
    fn caller(&self) -> Box<dyn Caller> {
        Box::new(self.spans.clone())
    }

    fn flush(&mut self) {
        // What is left undelivered shows in the books.
        let _ = self.tracing.flush(Duration::from_secs(30));
    }

    fn books(&self, _: u64) -> Books {
        books(&self.tracing.stats())
    }
}

/// Request ids as vLLM makes them.
pub(crate) fn request_ids(first: u64, count: u64) -> Vec<String> {
    let id = |n| format!("chatcmpl-38a4f1c0-5b1e-4c52-9c0d-{n:012x}");
    (first..first + count).map(id).collect()
}
