//! Spans to a Collector, by opentelemetry-otlp.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use opentelemetry::trace as api;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{Bytes, HttpError, Request, Response};
use opentelemetry_otlp::{
    Compression, ExporterBuildError, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig,
    WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};

use crate::config::{ExporterConfig, Protocol};
use crate::span::{Span, SpanKind, Status};
use crate::value::{Attribute, Value};

/// Sends batches of spans of one resource to one endpoint.
#[derive(Debug)]
pub struct OtlpExporter {
    exporter: SpanExporter,
    scope: InstrumentationScope,
    timeout: Duration,
    http: Option<Answers>,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It may be taken later; not before `after`, if that is given.
    #[error("{reason}")]
    Retryable {
        /// What happened.
        reason: String,
        /// What Retry-After said.
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
    /// Refused by the transport.
    #[error("the OTLP exporter for \"{endpoint}\" cannot be made: {source}")]
    Build {
        /// The endpoint asked for.
        endpoint: String,
        /// The transport's reason.
        source: ExporterBuildError,
    },
    /// The HTTP client cannot start.
    #[error("the HTTP client cannot be made: {0}")]
    Client(#[from] reqwest::Error),
}

impl OtlpExporter {
    /// An exporter for spans of the resource with these attributes; to be called
    /// on the runtime that will export.
    pub fn new(config: &ExporterConfig, resource: &[Attribute]) -> Result<Self, ExporterError> {
        // Ok(()) and Err(_) both mean that a provider is there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (builder, http) = match config.protocol {
            Protocol::Grpc => (grpc(config), None),
            Protocol::HttpProtobuf => {
                let (exporter, answers) = http(config, opentelemetry_otlp::Protocol::HttpBinary)?;
                (exporter, Some(answers))
            }
            Protocol::HttpJson => {
                let (exporter, answers) = http(config, opentelemetry_otlp::Protocol::HttpJson)?;
                (exporter, Some(answers))
            }
        };
        let mut exporter = builder.map_err(|source| ExporterError::Build {
            endpoint: config.endpoint.clone(),
            source,
        })?;
        let attributes = resource.iter().map(key_value).collect::<Vec<_>>();
        exporter.set_resource(
            &Resource::builder_empty()
                .with_attributes(attributes)
                .build(),
        );
        let scope = InstrumentationScope::builder("omnitrace")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        Ok(Self {
            exporter,
            scope,
            timeout: config.timeout,
            http,
        })
    }

    /// Sends one batch; one attempt.
    pub async fn export(&self, batch: &[Span]) -> Result<(), ExportError> {
        let data = batch
            .iter()
            .map(|span| span_data(span, &self.scope))
            .collect();
        // The transport's own timeout does not cover every way of being stuck.
        let attempt = tokio::time::timeout(self.timeout, self.exporter.export(data));
        match attempt.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.classify(&error)),
            Err(_) => Err(ExportError::Retryable {
                reason: format!("no answer within {:?}", self.timeout),
                after: None,
            }),
        }
    }

    /// Tells what may be tried again from what may not (OTLP specification,
    /// "Failures").
    fn classify(&self, error: &OTelSdkError) -> ExportError {
        let retryable = |reason| ExportError::Retryable {
            reason,
            after: None,
        };
        match &self.http {
            Some(answers) => match answers.take() {
                Some(Answer::Status { code, retry_after }) => {
                    let reason = format!("the endpoint answered HTTP status {code}");
                    match code {
                        429 | 502 | 503 | 504 => ExportError::Retryable {
                            reason,
                            after: retry_after,
                        },
                        _ => ExportError::Refused { reason },
                    }
                }
                Some(Answer::Failed(reason)) => retryable(reason),
                None => retryable(error.to_string()),
            },
            None => {
                let reason = error.to_string();
                const RETRYABLE: [&str; 7] = [
                    "Cancelled",
                    "DeadlineExceeded",
                    "ResourceExhausted",
                    "Aborted",
                    "OutOfRange",
                    "Unavailable",
                    "DataLoss",
                ];
                // opentelemetry-otlp keeps the code only in its text.
                let code = reason.split("gRPC code: ").nth(1).unwrap_or_default();
                // A connection that fails below gRPC comes as Unknown with a source.
                let below = code.starts_with("Unknown:");
                if below || RETRYABLE.iter().any(|c| code.starts_with(c)) || code.is_empty() {
                    retryable(reason)
                } else {
                    ExportError::Refused { reason }
                }
            }
        }
    }
}

fn grpc(config: &ExporterConfig) -> Result<SpanExporter, ExporterBuildError> {
    use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
    let mut metadata = MetadataMap::new();
    for (key, value) in &config.headers {
        if let (Ok(key), Ok(value)) = (
            MetadataKey::from_bytes(key.to_ascii_lowercase().as_bytes()),
            MetadataValue::try_from(value),
        ) {
            metadata.insert(key, value);
        }
    }
    let mut builder = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&config.endpoint)
        .with_timeout(config.timeout)
        .with_metadata(metadata)
        .with_retry_policy(RetryPolicy::disabled());
    if config.endpoint.starts_with("https://") {
        builder =
            builder.with_tls_config(tonic::transport::ClientTlsConfig::new().with_native_roots());
    }
    if config.gzip {
        builder = builder.with_compression(Compression::Gzip);
    }
    builder.build()
}

type HttpExporter = (Result<SpanExporter, ExporterBuildError>, Answers);

fn http(
    config: &ExporterConfig,
    protocol: opentelemetry_otlp::Protocol,
) -> Result<HttpExporter, ExporterError> {
    let answers = Answers::default();
    let client = Client {
        inner: reqwest::Client::builder()
            .timeout(config.timeout)
            .user_agent(concat!("omnitrace/", env!("CARGO_PKG_VERSION")))
            // A collector is an internal address: proxies of the environment
            // would see the traces.
            .no_proxy()
            .build()?,
        answers: answers.clone(),
    };
    let mut builder = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(protocol)
        .with_endpoint(&config.endpoint)
        .with_timeout(config.timeout)
        .with_headers(config.headers.iter().cloned().collect())
        .with_retry_policy(RetryPolicy::disabled());
    if config.gzip {
        builder = builder.with_compression(Compression::Gzip);
    }
    Ok((builder.build(), answers))
}

/// How the last request ended.
#[derive(Debug)]
enum Answer {
    Status {
        code: u16,
        retry_after: Option<Duration>,
    },
    Failed(String),
}

/// Where the HTTP client leaves the last answer: the exporter's error text has
/// neither the status nor Retry-After.
#[derive(Debug, Clone, Default)]
struct Answers(Arc<Mutex<Option<Answer>>>);

impl Answers {
    fn put(&self, answer: Answer) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
    }

    fn take(&self) -> Option<Answer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[derive(Debug)]
struct Client {
    inner: reqwest::Client,
    answers: Answers,
}

#[async_trait::async_trait]
impl opentelemetry_http::HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let result = self.exchange(request).await;
        if let Err(error) = &result {
            self.answers.put(Answer::Failed(Chain(error).to_string()));
        }
        result.map_err(Into::into)
    }
}

impl Client {
    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, reqwest::Error> {
        let response = self.inner.execute(request.try_into()?).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let retry_after = headers
            .get("retry-after")
            .and_then(|v| v.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        self.answers.put(Answer::Status {
            code: status.as_u16(),
            retry_after,
        });
        let mut answer = Response::new(response.bytes().await?);
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        Ok(answer)
    }
}

/// An error with its causes, on one line: reqwest's own text leaves out why.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

fn key_value(attribute: &Attribute) -> KeyValue {
    let value = match &attribute.value {
        Value::Str(text) => opentelemetry::Value::String(Arc::clone(text).into()),
        Value::I64(n) => opentelemetry::Value::I64(*n),
        Value::F64(n) => opentelemetry::Value::F64(*n),
        Value::Bool(b) => opentelemetry::Value::Bool(*b),
    };
    KeyValue::new(Arc::clone(&attribute.key), value)
}

fn span_data(span: &Span, scope: &InstrumentationScope) -> SpanData {
    let context = |trace: u128, id: u64| {
        api::SpanContext::new(
            trace.into(),
            id.into(),
            api::TraceFlags::new(span.flags),
            false,
            api::TraceState::default(),
        )
    };
    let time = |nanos| UNIX_EPOCH + Duration::from_nanos(nanos);
    let mut events = SpanEvents::default();
    events.events = span
        .events
        .iter()
        .map(|event| {
            let attributes = event.attributes.iter().map(key_value).collect();
            api::Event::new(event.name.to_string(), time(event.time), attributes, 0)
        })
        .collect();
    let mut links = SpanLinks::default();
    links.links = span
        .links
        .iter()
        .map(|l| api::Link::with_context(context(l.trace_id.value(), l.span_id.value())))
        .collect();
    SpanData {
        span_context: context(span.trace_id.value(), span.span_id.value()),
        parent_span_id: span.parent_span_id.map_or(0, |id| id.value()).into(),
        parent_span_is_remote: span.kind == SpanKind::Server,
        span_kind: match span.kind {
            SpanKind::Internal => api::SpanKind::Internal,
            SpanKind::Server => api::SpanKind::Server,
            SpanKind::Client => api::SpanKind::Client,
            SpanKind::Producer => api::SpanKind::Producer,
            SpanKind::Consumer => api::SpanKind::Consumer,
        },
        name: span.name.to_string().into(),
        start_time: time(span.start),
        end_time: time(span.end),
        attributes: span.attributes.iter().map(key_value).collect(),
        dropped_attributes_count: 0,
        events,
        links,
        status: match &span.status {
            Status::Unset => api::Status::Unset,
            Status::Ok => api::Status::Ok,
            Status::Error(text) => api::Status::error(text.to_string()),
        },
        instrumentation_scope: scope.clone(),
    }
}
