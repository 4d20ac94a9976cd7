//! OTLP over gRPC: a batch's bytes as the message of one call.

use std::error::Error as _;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use opentelemetry_http::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use prost::bytes::BufMut as _;
use tonic::body::Body;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::config::ExporterConfig;

use super::http::configured;
use super::{Chain, ExportError, ExporterError, Nobody, Taken, USER_AGENT, answer, retryable};

/// Methods that take batches.
pub(super) const SPANS: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
pub(super) const METRICS: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

/// Calls one method of one endpoint.
pub(super) struct Grpc {
    endpoint: Endpoint,
    method: PathAndQuery,
    metadata: MetadataMap,
    gzip: bool,
    timeout: Duration,
    nobody: Nobody,
    /// The connection, while it is good: the one of a call that gets no answer is not
    /// used again. HTTP/2 would send the next call into the same silence.
    connection: Mutex<Option<Channel>>,
}

impl Grpc {
    pub(super) fn new(
        config: &ExporterConfig,
        method: &'static str,
    ) -> Result<Self, ExporterError> {
        Ok(Self {
            endpoint: endpoint(config)?,
            method: PathAndQuery::from_static(method),
            metadata: MetadataMap::from_headers(configured(config)),
            gzip: config.gzip,
            timeout: config.timeout,
            nobody: Nobody::new(config),
            connection: Mutex::default(),
        })
    }

    /// One attempt.
    pub(super) async fn send(&self, body: Bytes) -> Result<Taken, ExportError> {
        let kept = self.connection().take();
        let connection = kept.unwrap_or_else(|| self.endpoint.connect_lazy());
        let mut client = tonic::client::Grpc::new(Answered(connection.clone()))
            .accept_compressed(CompressionEncoding::Gzip);
        if self.gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let mut request = Request::new(body);
        *request.metadata_mut() = self.metadata.clone();
        request.set_timeout(self.timeout);
        let ready = client.ready().await;
        let result = match ready.map_err(Status::from_error) {
            Ok(()) => client.unary(request, self.method.clone(), Encoded).await,
            Err(status) => Err(status),
        };
        // Where there is a source no Collector has said this.
        if !matches!(&result, Err(status) if status.source().is_some()) {
            *self.connection() = Some(connection);
        }
        match result {
            Ok(response) => Ok(response.into_inner().into()),
            Err(status) => Err(self.read(&status)),
        }
    }

    fn connection(&self) -> std::sync::MutexGuard<'_, Option<Channel>> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what may be tried again from what may not (OTLP specification, "OTLP/gRPC
    /// Response").
    fn read(&self, status: &Status) -> ExportError {
        if let Some(other) = NotGrpc::in_causes(status) {
            let (status, headers) = (other.status.as_u16(), &other.headers);
            let endpoint = self.endpoint.uri().to_string();
            return answer::by_status(
                status,
                headers,
                answer::stranger(&endpoint, status, headers, None),
            );
        }
        if let Some(cause) = status.source() {
            return retryable(self.nobody.explain(cause));
        }
        let reason = format!(
            "the endpoint answered gRPC status {:?}: {}",
            status.code(),
            status.message()
        );
        let info = status.get_details_retry_info();
        let throttled = info.is_some();
        let after = info
            .and_then(|info| info.retry_delay)
            .filter(|delay| !delay.is_zero());
        match status.code() {
            Code::ResourceExhausted if !throttled => ExportError::Refused { reason },
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss => ExportError::Retryable { reason, after },
            _ => ExportError::Refused { reason },
        }
    }
}

fn endpoint(config: &ExporterConfig) -> Result<Endpoint, ExporterError> {
    let refused = |error: tonic::transport::Error| ExporterError::Grpc {
        endpoint: config.endpoint.clone(),
        reason: Chain(&error).to_string(),
    };
    let uri = match &config.socket {
        Some(socket) => format!("unix:{}", socket.display()),
        None => config.endpoint.clone(),
    };
    let endpoint = Endpoint::from_shared(uri)
        .and_then(|endpoint| endpoint.user_agent(USER_AGENT))
        .map_err(refused)?
        .connect_timeout(config.timeout);
    if !config.is_encrypted() {
        return Ok(endpoint);
    }
    let roots = config.tls.roots()?;
    let mut tls = ClientTlsConfig::new().trust_anchors(roots.roots.iter().cloned());
    if let Some((certificates, key)) = config.tls.identity() {
        tls = tls.identity(Identity::from_pem(certificates, key));
    }
    endpoint.tls_config(tls).map_err(refused)
}

/// Messages out that are encoded already; answers in by prost.
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = ExportTraceServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, body: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(body.len());
        out.put(body);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn decode(&mut self, body: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        match ExportTraceServiceResponse::decode(body) {
            Ok(answer) => Ok(Some(answer)),
            Err(error) => Err(Status::internal(format!(
                "an answer that is not OTLP: {error}"
            ))),
        }
    }
}

/// A connection that tells a gRPC answer from a web page: tonic would try to read one
/// as messages, and its error would not say whose page it was.
struct Answered(Channel);

impl Service<http::Request<Body>> for Answered {
    type Response = http::Response<Body>;
    type Error = tonic::codegen::StdError;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let response = self.0.call(request);
        Box::pin(async move {
            let response = response.await?;
            let (headers, status) = (response.headers(), response.status());
            let kind = headers.get(http::header::CONTENT_TYPE);
            let is_grpc = kind.is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
            if is_grpc || headers.contains_key("grpc-status") {
                return Ok(response);
            }
            let headers = headers.clone();
            Err(NotGrpc { status, headers }.into())
        })
    }
}

/// The head of an answer that is not gRPC.
#[derive(Debug)]
struct NotGrpc {
    status: http::StatusCode,
    headers: http::HeaderMap,
}

impl NotGrpc {
    fn in_causes(status: &Status) -> Option<&Self> {
        let mut cause = status.source();
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            cause = error.source();
        }
        None
    }
}

impl std::error::Error for NotGrpc {}

impl fmt::Display for NotGrpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP status {}, not gRPC", self.status.as_u16())
    }
}
