//! The OTLP exporter against servers that speak the real protocols: axum and tonic,
//! with and without TLS.

#![allow(clippy::unwrap_used)]

mod answers;
mod authority;
mod grpc;
mod metrics;
mod receiver;
mod sizes;
mod tls;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

use omnitrace::config::ExporterConfig;
use omnitrace::delivery::otlp::{ExportError, OtlpExporter, Taken};
use omnitrace::id::{SpanId, TraceId};
use omnitrace::span::{Dropped, Link, Source, SpanEvent, SpanKind, Status};
use omnitrace::{Attribute, Config, Span};

/// The names of the protocols.
const PROTOCOLS: [&str; 3] = ["http/protobuf", "http/json", "grpc"];

/// Settings made of variables, as a user makes them, with what was said about them.
fn settings(variables: &[(&str, &str)]) -> (Config, Vec<String>) {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    let get = |name: &str| {
        let name = name.strip_prefix("OTEL_EXPORTER_OTLP_").unwrap_or(name);
        variables.get(name).map(|value| (*value).to_owned())
    };
    Config::from_vars(get)
}

/// The exporter's settings; variables are given without `OTEL_EXPORTER_OTLP_`.
fn exporter(variables: &[(&str, &str)]) -> ExporterConfig {
    let (config, warnings) = settings(variables);
    assert_eq!(warnings, Vec::<String>::new());
    config.exporter.unwrap()
}

fn source() -> Arc<Source> {
    Arc::new(Source {
        role: "prefill".into(),
        node: "10.0.0.2".into(),
    })
}

fn resource() -> Vec<Attribute> {
    vec![Attribute::new("service.name", "vllm-prefill")]
}

fn span(number: u64) -> Span {
    Span {
        trace_id: TraceId::new(u128::from(number) << 64 | 7).unwrap(),
        span_id: SpanId::new(number).unwrap(),
        parent_span_id: SpanId::new(number - 1),
        parent_is_remote: true,
        flags: 1,
        trace_state: "vendor=1".into(),
        name: format!("span {number}").into(),
        kind: SpanKind::Server,
        start: 1_795_334_645_577_302_011,
        end: 1_795_334_645_579_802_011,
        status: Status::Error("broken".into()),
        attributes: vec![
            Attribute::new("text", "é\"\n"),
            Attribute::new("integer", i64::MIN),
            Attribute::new("double", 0.1),
            Attribute::new("bool", true),
        ],
        events: vec![SpanEvent {
            time: 1_795_334_645_578_000_000,
            name: "token".into(),
            attributes: vec![Attribute::new("n", 1)],
            dropped_attributes: 0,
        }],
        links: vec![Link::new(TraceId::new(9).unwrap(), SpanId::new(8).unwrap())],
        dropped: Dropped::default(),
        scope: None,
        source: source(),
        origin: None,
    }
}

/// An exporter with the runtime it lives on, of the kind that a pipeline has.
struct Sender {
    runtime: tokio::runtime::Runtime,
    exporter: OtlpExporter,
}

impl Sender {
    fn new(config: &ExporterConfig) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let exporter =
            runtime.block_on(async { OtlpExporter::new(config, source(), &resource()).unwrap() });
        Self { runtime, exporter }
    }

    fn send(&self, spans: Vec<Span>) -> Result<Taken, ExportError> {
        let batch = self.exporter.batch(spans).unwrap();
        self.runtime.block_on(self.exporter.export(&batch))
    }

    fn one(&self) -> Result<Taken, ExportError> {
        self.send(vec![span(1)])
    }
}

/// Sends one span by a new exporter.
fn send(config: &ExporterConfig) -> Result<Taken, ExportError> {
    Sender::new(config).one()
}

fn taken(rejected: u64, reason: &str) -> Result<Taken, ExportError> {
    Ok(Taken {
        rejected,
        reason: reason.to_owned(),
    })
}

fn all_taken() -> Result<Taken, ExportError> {
    taken(0, "")
}

fn refused(reason: &str) -> Result<Taken, ExportError> {
    Err(ExportError::Refused {
        reason: reason.to_owned(),
    })
}

fn retryable(reason: &str, seconds: Option<u64>) -> Result<Taken, ExportError> {
    Err(ExportError::Retryable {
        reason: reason.to_owned(),
        after: seconds.map(std::time::Duration::from_secs),
    })
}

/// The reason why an attempt may be made again.
fn reason(result: Result<Taken, ExportError>) -> String {
    match result {
        Err(ExportError::Retryable {
            reason,
            after: None,
        }) => reason,
        other => panic!("{other:?} is not a failure below the protocol"),
    }
}
