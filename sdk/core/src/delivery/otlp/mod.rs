//! Batches to a Collector.
//!
//! HTTP with protobuf, the default, sends the bytes as they are. The other two
//! protocols go by opentelemetry-otlp, for which the spans are made messages again.

mod library;

use std::fmt;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use flate2::write::GzEncoder;
use opentelemetry_http::Bytes;
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use crate::config::{ExporterConfig, Protocol};
use crate::span::{Source, Span};
use crate::value::Attribute;

pub use super::batch::Batch;
use super::envelopes::Envelopes;
use library::Library;

/// Sends batches of spans of one resource to one endpoint.
pub struct OtlpExporter {
    transport: Transport,
    resource: Vec<Attribute>,
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
    /// The other protocols.
    Library(Library),
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
            Protocol::HttpJson => Transport::Library(Library::http_json(config, resource)?),
            Protocol::Grpc => Transport::Library(Library::grpc(config, resource)?),
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
            Transport::Library(library) => library.export(&batch.decode(&self.source)).await,
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

/// How the last request ended.
#[derive(Debug)]
enum Answer {
    Status {
        code: u16,
        retry_after: Option<Duration>,
    },
    Failed(String),
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
