//! Batches to a Collector.
//!
//! A batch is sent as the bytes that it is, over HTTP and over gRPC. For JSON its
//! spans are made messages again. Whatever the protocol, what is on the wire is what
//! the configuration says, and an answer is read in one way: [`answer`] for HTTP,
//! [`grpc`] for gRPC.

mod answer;
mod grpc;
mod http;
mod json;
mod metrics;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_otlp::ExporterBuildError;

use crate::config::{ExporterConfig, NobodyTrusted, Protocol};
use crate::span::{Source, Span};
use crate::value::Attribute;

pub use super::batch::Batch;
use super::envelopes::Envelopes;
use grpc::Grpc;
use http::Http;
use json::Json;
pub(crate) use metrics::MetricsExporter;

/// How we introduce ourselves.
const USER_AGENT: &str = concat!("omnitrace/", env!("CARGO_PKG_VERSION"));

/// Sends batches of spans of one resource to one endpoint.
pub struct OtlpExporter {
    transport: Transport,
    resource: Vec<Attribute>,
    source: Arc<Source>,
    timeout: Duration,
}

enum Transport {
    Protobuf(Http),
    Json(Json),
    Grpc(Box<Grpc>),
}

/// What a Collector said to a batch that it took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    /// Spans of it that it has thrown away.
    pub rejected: u64,
    /// Why.
    pub reason: String,
}

/// Why a batch was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// It may be taken later; not before `after`, if that is given.
    #[error("{reason}")]
    Retryable {
        /// What happened.
        reason: String,
        /// What Retry-After said, or gRPC's RetryInfo; more than 0.
        after: Option<Duration>,
    },
    /// It will never be taken.
    #[error("{reason}")]
    Refused {
        /// What happened.
        reason: String,
    },
}

/// Why an exporter could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// Refused by opentelemetry-otlp.
    #[error("the OTLP exporter for \"{endpoint}\" cannot be made: {source}")]
    Build {
        /// The endpoint asked for.
        endpoint: String,
        /// The library's reason.
        source: ExporterBuildError,
    },
    /// The HTTP client cannot start.
    #[error("the HTTP client cannot be made: {0}")]
    Client(#[from] reqwest::Error),
    /// The gRPC client cannot start.
    #[error("the gRPC client for \"{endpoint}\" cannot be made: {reason}")]
    Grpc {
        /// The endpoint asked for.
        endpoint: String,
        /// The library's reason.
        reason: String,
    },
    /// An encrypted endpoint cannot be trusted.
    #[error(transparent)]
    NobodyTrusted(#[from] NobodyTrusted),
    /// The certificates cannot be used.
    #[error("the certificates for the Collector cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

impl OtlpExporter {
    /// An exporter for spans that `source` records, with these resource
    /// attributes; to be called on the runtime that will export.
    pub fn new(
        config: &ExporterConfig,
        source: Arc<Source>,
        resource: &[Attribute],
    ) -> Result<Self, ExporterError> {
        let transport = match config.protocol {
            Protocol::HttpProtobuf => Transport::Protobuf(Http::new(config, http::PROTOBUF)?),
            Protocol::HttpJson => Transport::Json(Json::new(config, resource)?),
            Protocol::Grpc => Transport::Grpc(Box::new(Grpc::new(config, grpc::SPANS)?)),
        };
        Ok(Self {
            transport,
            resource: resource.to_vec(),
            source,
            timeout: config.timeout,
        })
    }

    /// A batch of these spans; none if there are none.
    pub fn batch(&self, spans: Vec<Span>) -> Option<Batch> {
        let mut envelopes = Envelopes::new(&self.resource, Arc::default());
        Batch::of(spans, &mut envelopes)
    }

    /// Sends one batch; one attempt.
    pub async fn export(&self, batch: &Batch) -> Result<Taken, ExportError> {
        // The transport's own timeout does not cover every way of being stuck.
        let attempt = tokio::time::timeout(self.timeout, self.attempt(batch));
        attempt
            .await
            .unwrap_or_else(|_| Err(retryable(format!("no answer within {:?}", self.timeout))))
    }

    async fn attempt(&self, batch: &Batch) -> Result<Taken, ExportError> {
        match &self.transport {
            Transport::Protobuf(http) => http.send(batch.body()).await,
            Transport::Json(json) => json.send(&batch.decode(&self.source)).await,
            Transport::Grpc(grpc) => grpc.send(batch.body()).await,
        }
    }
}

fn retryable(reason: String) -> ExportError {
    ExportError::Retryable {
        reason,
        after: None,
    }
}

/// What a server that wants a certificate of its clients makes of us: where we have
/// none, what TLS says about that may be overtaken by the end of the connection.
#[derive(Debug, Clone, Copy)]
struct Nobody(bool);

impl Nobody {
    /// How the libraries say that the server has hung up.
    const HUNG_UP: [&str; 4] = [
        "connection closed",
        "broken pipe",
        "connection reset",
        "end of file",
    ];

    fn new(config: &ExporterConfig) -> Self {
        Self(config.is_encrypted() && config.tls.identity().is_none())
    }

    /// The error with its causes, and with a cure where we could be asked for a
    /// certificate.
    fn explain(self, error: &dyn std::error::Error) -> String {
        let mut reason = Chain(error).to_string();
        let text = reason.to_ascii_lowercase();
        if self.0 && Self::HUNG_UP.iter().any(|said| text.contains(said)) {
            reason.push_str(
                "; if the server asks for a client certificate, \
                 OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE names ours",
            );
        }
        reason
    }
}

/// An error with its causes, on one line: the libraries' own text leaves out why.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            // Some repeat their cause in their own text.
            let text = error.to_string();
            if !said.contains(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            source = error.source();
        }
        Ok(())
    }
}
