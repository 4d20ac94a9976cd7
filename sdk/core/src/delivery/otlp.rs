//! Batches to a Collector.
//!
//! HTTP with protobuf, the default, sends the bytes as they are. The other two
//! protocols go by opentelemetry-otlp, for which the spans are made messages again.

use std::fmt;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use flate2::write::GzEncoder;
use opentelemetry::trace as api;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{Bytes, HttpError, Request, Response};
use opentelemetry_otlp::{
    Compression, ExporterBuildError, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig,
    WithTonicConfig,
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use prost::Message as _;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use crate::config::{ExporterConfig, Protocol};
use crate::span::{Source, Span, SpanKind, Status};
use crate::value::{Attribute, Value};

pub use super::batch::Batch;
use super::encode::{Envelope, SCOPE, VERSION};

/// Sends batches of spans of one resource to one endpoint.
pub struct OtlpExporter {
    transport: Transport,
    envelope: Envelope,
    source: Arc<Source>,
    timeout: Duration,
}

enum Transport {
    /// HTTP with protobuf bodies.
    Http {
        client: reqwest::Client,
        request: Box<reqwest::Request>,
        gzip: bool,
    },
    /// gRPC, or HTTP with JSON bodies: then with the client's last answer.
    Library {
        exporter: Box<SpanExporter>,
        scope: InstrumentationScope,
        http: Option<Answers>,
    },
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
    /// An exporter for spans that `source` records, with these resource
    /// attributes; to be called on the runtime that will export.
    pub fn new(
        config: &ExporterConfig,
        source: Arc<Source>,
        resource: &[Attribute],
    ) -> Result<Self, ExporterError> {
        // Ok(()) and Err(_) both mean that a provider is there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let transport = match config.protocol {
            Protocol::HttpProtobuf => http_protobuf(config)?,
            Protocol::HttpJson => {
                let (exporter, answers) = http_json(config)?;
                library(config, resource, exporter, Some(answers))?
            }
            Protocol::Grpc => library(config, resource, grpc(config), None)?,
        };
        let envelope = Envelope::new(resource);
        Ok(Self {
            transport,
            envelope,
            source,
            timeout: config.timeout,
        })
    }

    /// A batch of these spans; none if there are none.
    pub fn batch(&self, spans: Vec<Span>) -> Option<Batch> {
        Batch::of(spans, &self.envelope)
    }

    /// Sends one batch; one attempt.
    pub async fn export(&self, batch: &Batch) -> Result<Taken, ExportError> {
        // The transport's own timeout does not cover every way of being stuck.
        let attempt = tokio::time::timeout(self.timeout, self.attempt(batch));
        attempt.await.unwrap_or_else(|_| {
            let reason = format!("no answer within {:?}", self.timeout);
            Err(ExportError::Retryable {
                reason,
                after: None,
            })
        })
    }

    async fn attempt(&self, batch: &Batch) -> Result<Taken, ExportError> {
        match &self.transport {
            Transport::Http {
                client,
                request,
                gzip,
            } => {
                // A request without a body can be cloned.
                let Some(mut request) = request.try_clone() else {
                    return Err(retryable("the request cannot be made".to_owned()));
                };
                let body = if *gzip {
                    compress(&batch.body())
                } else {
                    batch.body()
                };
                *request.body_mut() = Some(body.into());
                let answer = exchange(client, request).await;
                match answer.map_err(|e| retryable(Chain(&e).to_string()))? {
                    (
                        Answer::Status {
                            code: 200..=299, ..
                        },
                        body,
                    ) => Ok(taken(&body)),
                    (answer, _) => Err(answer.into()),
                }
            }
            Transport::Library {
                exporter,
                scope,
                http,
            } => {
                let spans = batch.decode(&self.source);
                let data = spans.iter().map(|span| span_data(span, scope)).collect();
                match exporter.export(data).await {
                    Ok(()) => Ok(Taken::default()),
                    Err(error) => Err(match http {
                        Some(answers) => {
                            let answer = answers.take();
                            answer.map_or_else(|| retryable(error.to_string()), Into::into)
                        }
                        None => classify_grpc(&error),
                    }),
                }
            }
        }
    }
}

fn retryable(reason: String) -> ExportError {
    ExportError::Retryable {
        reason,
        after: None,
    }
}

/// Tells what may be tried again from what may not (OTLP specification,
/// "Failures").
impl From<Answer> for ExportError {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Status { code, retry_after } => {
                let reason = format!("the endpoint answered HTTP status {code}");
                match code {
                    429 | 502 | 503 | 504 => Self::Retryable {
                        reason,
                        after: retry_after,
                    },
                    _ => Self::Refused { reason },
                }
            }
            Answer::Failed(reason) => retryable(reason),
        }
    }
}

fn classify_grpc(error: &OTelSdkError) -> ExportError {
    const RETRYABLE: [&str; 7] = [
        "Cancelled",
        "DeadlineExceeded",
        "ResourceExhausted",
        "Aborted",
        "OutOfRange",
        "Unavailable",
        "DataLoss",
    ];
    let reason = error.to_string();
    // opentelemetry-otlp keeps the code only in its text.
    let code = reason.split("gRPC code: ").nth(1).unwrap_or_default();
    // A connection that fails below gRPC comes as Unknown with a source.
    let below = code.starts_with("Unknown:") || code.is_empty();
    if below || RETRYABLE.iter().any(|c| code.starts_with(c)) {
        retryable(reason)
    } else {
        ExportError::Refused { reason }
    }
}

/// What the Collector says about a batch that it has taken.
fn taken(body: &[u8]) -> Taken {
    let partial = ExportTraceServiceResponse::decode(body)
        .ok()
        .and_then(|r| r.partial_success);
    partial.map_or_else(Taken::default, |partial| Taken {
        rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
        reason: partial.error_message,
    })
}

fn compress(body: &[u8]) -> Bytes {
    let mut gzip = GzEncoder::new(
        Vec::with_capacity(body.len() / 4),
        flate2::Compression::fast(),
    );
    // Writing to memory cannot fail.
    let _ = gzip.write_all(body);
    gzip.finish().unwrap_or_default().into()
}

fn library(
    config: &ExporterConfig,
    resource: &[Attribute],
    exporter: Result<SpanExporter, ExporterBuildError>,
    http: Option<Answers>,
) -> Result<Transport, ExporterError> {
    let mut exporter = exporter.map_err(|source| ExporterError::Build {
        endpoint: config.endpoint.clone(),
        source,
    })?;
    let attributes = resource.iter().map(key_value).collect::<Vec<_>>();
    exporter.set_resource(
        &Resource::builder_empty()
            .with_attributes(attributes)
            .build(),
    );
    let scope = InstrumentationScope::builder(SCOPE)
        .with_version(VERSION)
        .build();
    Ok(Transport::Library {
        exporter: Box::new(exporter),
        scope,
        http,
    })
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

fn http_client(config: &ExporterConfig) -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .timeout(config.timeout)
        .user_agent(concat!("omnitrace/", env!("CARGO_PKG_VERSION")))
        // A collector is an internal address: proxies of the environment would
        // see the traces.
        .no_proxy()
        // A redirected POST becomes a GET: nothing would be delivered.
        .redirect(reqwest::redirect::Policy::none())
        .build()
}

fn http_protobuf(config: &ExporterConfig) -> Result<Transport, ExporterError> {
    let client = http_client(config)?;
    let mut headers = HeaderMap::new();
    for (name, value) in &config.headers {
        match (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(value),
        ) {
            (Ok(name), Ok(value)) => _ = headers.insert(name, value),
            _ => tracing::warn!("OTLP header \"{name}\" is not a valid HTTP header: left out"),
        }
    }
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-protobuf"),
    );
    if config.gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    let request = Box::new(client.post(&config.endpoint).headers(headers).build()?);
    Ok(Transport::Http {
        client,
        request,
        gzip: config.gzip,
    })
}

type HttpExporter = (Result<SpanExporter, ExporterBuildError>, Answers);

fn http_json(config: &ExporterConfig) -> Result<HttpExporter, ExporterError> {
    let answers = Answers::default();
    let client = Client {
        inner: http_client(config)?,
        answers: answers.clone(),
    };
    let mut builder = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(opentelemetry_otlp::Protocol::HttpJson)
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
        match exchange(&self.inner, request.try_into()?).await {
            Ok((answer, body)) => {
                let mut response = Response::new(body);
                if let Answer::Status { code, .. } = answer {
                    *response.status_mut() = code.try_into()?;
                }
                self.answers.put(answer);
                Ok(response)
            }
            Err(error) => {
                self.answers.put(Answer::Failed(Chain(&error).to_string()));
                Err(error.into())
            }
        }
    }
}

async fn exchange(
    client: &reqwest::Client,
    request: reqwest::Request,
) -> Result<(Answer, Bytes), reqwest::Error> {
    let response = client.execute(request).await?;
    let retry_after = response
        .headers()
        .get("retry-after")
        .and_then(|v| v.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let answer = Answer::Status {
        code: response.status().as_u16(),
        retry_after,
    };
    Ok((answer, response.bytes().await?))
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
