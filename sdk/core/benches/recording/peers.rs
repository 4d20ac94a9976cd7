//! What a Rust program would otherwise use, set up as its documentation says.

use std::borrow::Cow;
use std::error::Error;

use fastrace::collector::{Config as FastraceConfig, SpanContext as FastraceContext};
use fastrace::local::LocalSpan;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider,
};
use tracing_subscriber::layer::SubscriberExt as _;

use crate::measure::{BURST, Books, Caller, Contestant};
use crate::ours::request_ids;

/// Name of every span.
pub(crate) const NAME: &str = "schedule";
/// The parent of every span.
pub(crate) const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn exporter(endpoint: &str) -> Result<SpanExporter, Box<dyn Error>> {
    // reqwest will not be built without one, https or not.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{endpoint}/v1/traces"))
        .build()?)
}

fn provider(endpoint: &str, room: Option<usize>) -> Result<SdkTracerProvider, Box<dyn Error>> {
    let mut batches = BatchConfigBuilder::default();
    if let Some(room) = room {
        batches = batches.with_max_queue_size(room);
    }
    let processor = BatchSpanProcessor::builder(exporter(endpoint)?)
        .with_batch_config(batches.build())
        .build();
    Ok(SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build())
}

/// The remote parent, as a service gets it from a request's headers.
fn remote_parent() -> Context {
    let headers = [("traceparent".to_owned(), TRACEPARENT.to_owned())];
    let headers = std::collections::HashMap::from(headers);
    TraceContextPropagator::new().extract(&headers)
}

/// Spans that are made with somebody's interface, whoever records them.
pub(crate) trait Spans: Caller + Clone + 'static {
    /// Spans of a burst.
    const SPANS: u64;
}

struct Peer<S> {
    provider: SdkTracerProvider,
    spans: S,
}

impl<S: Spans> Contestant for Peer<S> {
    fn caller(&self) -> Box<dyn Caller> {
        Box::new(self.spans.clone())
    }

    fn flush(&mut self) {
        // What is left undelivered is missing in the sink.
        let _ = self.provider.force_flush();
    }

    fn books(&self, bursts: u64) -> Books {
        Books {
            made: bursts * S::SPANS,
            lost: None,
        }
    }
}

/// opentelemetry_sdk without anything above it.
pub(crate) fn opentelemetry(
    endpoint: &str,
    room: Option<usize>,
) -> Result<Box<dyn Contestant>, Box<dyn Error>> {
    let provider = provider(endpoint, room)?;
    let spans = OpenTelemetrySpans::new(&provider);
    Ok(Box::new(Peer { provider, spans }))
}

#[derive(Clone)]
pub(crate) struct OpenTelemetrySpans {
    tracer: SdkTracer,
    parent: Context,
    requests: Vec<String>,
}

impl OpenTelemetrySpans {
    pub(crate) fn new(provider: &SdkTracerProvider) -> Self {
        Self {
            tracer: provider.tracer("bench"),
            parent: remote_parent(),
            requests: request_ids(0, BURST),
        }
    }
}

impl Spans for OpenTelemetrySpans {
    const SPANS: u64 = BURST;
}

impl Caller for OpenTelemetrySpans {
    fn record(&mut self) {
        for request in &self.requests {
            let attributes = [
                KeyValue::new("gen_ai.operation.name", "chat"),
                KeyValue::new("gen_ai.request.model", "deepseek-r1"),
                KeyValue::new("gen_ai.request.id", request.clone()),
                KeyValue::new("gen_ai.usage.input_tokens", 1024),
                KeyValue::new("gen_ai.usage.output_tokens", 128),
                KeyValue::new("gen_ai.request.temperature", 0.7),
            ];
            let span = self.tracer.span_builder(NAME).with_attributes(attributes);
            span.start_with_context(&self.tracer, &self.parent).end();
        }
    }
}

/// `tracing` spans through tracing-opentelemetry.
pub(crate) fn tracing(
    endpoint: &str,
    room: Option<usize>,
) -> Result<Box<dyn Contestant>, Box<dyn Error>> {
    let provider = provider(endpoint, room)?;
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("bench"));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer))?;
    let spans = TracingSpans::new();
    Ok(Box::new(Peer { provider, spans }))
}

#[derive(Clone)]
pub(crate) struct TracingSpans {
    requests: Vec<String>,
}

impl TracingSpans {
    pub(crate) fn new() -> Self {
        Self {
            requests: request_ids(0, BURST),
        }
    }
}

impl Spans for TracingSpans {
    /// One more is around them.
    const SPANS: u64 = BURST + 1;
}

impl Caller for TracingSpans {
    fn record(&mut self) {
        let _burst = tracing::info_span!("burst").entered();
        for request in &self.requests {
            tracing::info_span!(
                "schedule",
                gen_ai.operation.name = "chat",
                gen_ai.request.model = "deepseek-r1",
                gen_ai.request.id = request,
                gen_ai.usage.input_tokens = 1024,
                gen_ai.usage.output_tokens = 128,
                gen_ai.request.temperature = 0.7,
            )
            .in_scope(|| {});
        }
    }
}

/// fastrace's local spans; its queue has no size to set.
pub(crate) fn fastrace(
    endpoint: &str,
    _: Option<usize>,
) -> Result<Box<dyn Contestant>, Box<dyn Error>> {
    let reporter = fastrace_opentelemetry::OpenTelemetryReporter::new(
        exporter(endpoint)?,
        Cow::Owned(Resource::builder().build()),
        InstrumentationScope::builder("bench").build(),
    );
    fastrace::set_reporter(reporter, FastraceConfig::default());
    let requests = request_ids(0, BURST);
    Ok(Box::new(Fastrace {
        spans: FastraceSpans { requests },
    }))
}

struct Fastrace {
    spans: FastraceSpans,
}

#[derive(Clone)]
struct FastraceSpans {
    requests: Vec<String>,
}

impl Caller for FastraceSpans {
    fn record(&mut self) {
        let burst = fastrace::Span::root("burst", FastraceContext::random());
        let _local = burst.set_local_parent();
        for request in &self.requests {
            let _span = LocalSpan::enter_with_local_parent(NAME).with_properties(|| {
                [
                    ("gen_ai.operation.name", "chat".into()),
                    ("gen_ai.request.model", "deepseek-r1".into()),
                    ("gen_ai.request.id", Cow::Owned(request.clone())),
                    ("gen_ai.usage.input_tokens", Cow::Owned(1024.to_string())),
                    ("gen_ai.usage.output_tokens", Cow::Owned(128.to_string())),
                    ("gen_ai.request.temperature", Cow::Owned(0.7.to_string())),
                ]
            });
        }
    }
}

impl Contestant for Fastrace {
    fn caller(&self) -> Box<dyn Caller> {
        Box::new(self.spans.clone())
    }

    fn flush(&mut self) {
        fastrace::flush();
    }

    fn books(&self, bursts: u64) -> Books {
        Books {
            made: bursts * (BURST + 1),
            lost: None,
        }
    }
}
