//! OTLP/HTTP: `POST /v1/traces`, as protobuf or as JSON.

use std::io::Read;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use flate2::read::MultiGzDecoder;
use omnitrace_offline::otlp_json;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use serde_json::json;

use super::MAX_REQUEST;
use crate::serve::store::Store;

/// The routes of the OTLP/HTTP endpoint.
pub(in crate::serve) fn router(store: &Arc<Store>) -> Router {
    Router::new()
        .route("/v1/traces", post(export).fallback(wrong_method))
        .fallback(wrong_path)
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(Arc::clone(store))
}

async fn export(State(store): State<Arc<Store>>, request: Request) -> Response {
    let format = match Format::of(request.headers()) {
        Ok(format) => format,
        Err(failure) => return failure.answer(Format::Json),
    };
    let outcome = async {
        let gzip = is_gzip(request.headers())?;
        let body = Bytes::from_request(request, &()).await?;
        tokio::task::spawn_blocking(move || {
            let request = format.decode(&if gzip { gunzip(&body)? } else { body })?;
            Ok(super::accept(&store, request))
        })
        .await
        .unwrap_or_else(|_| {
            Err(Failure::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the request could not be converted",
            ))
        })
    };
    match outcome.await {
        Ok(response) => format.answer(StatusCode::OK, format.encode(&response)),
        Err(failure) => failure.answer(format),
    }
}

async fn wrong_method() -> Response {
    let mut response = Failure::new(StatusCode::METHOD_NOT_ALLOWED, "traces are sent by POST")
        .answer(Format::Json);
    let allow = HeaderValue::from_static("POST");
    response.headers_mut().insert(header::ALLOW, allow);
    response
}

async fn wrong_path() -> Response {
    Failure::new(
        StatusCode::NOT_FOUND,
        "only traces are received here: post them to /v1/traces",
    )
    .answer(Format::Json)
}

/// The body's format, the same for the request and the answer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Protobuf,
    Json,
}

impl Format {
    fn of(headers: &HeaderMap) -> Result<Self, Failure> {
        let content_type = headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        match media_type.to_ascii_lowercase().as_str() {
            "application/x-protobuf" => Ok(Self::Protobuf),
            "application/json" => Ok(Self::Json),
            _ => Err(Failure::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "content-type has to be application/x-protobuf or application/json",
            )),
        }
    }

    fn decode(self, body: &[u8]) -> Result<ExportTraceServiceRequest, Failure> {
        match self {
            Self::Protobuf => {
                ExportTraceServiceRequest::decode(body).map_err(|error| error.to_string())
            }
            Self::Json => otlp_json::decode(body).map_err(|error| error.to_string()),
        }
        .map_err(|reason| Failure::bad(format!("the body is no export request: {reason}")))
    }

    fn encode(self, response: &ExportTraceServiceResponse) -> Vec<u8> {
        match (self, &response.partial_success) {
            (Self::Protobuf, _) => response.encode_to_vec(),
            (Self::Json, None) => b"{}".to_vec(),
            (Self::Json, Some(partial)) => json!({"partialSuccess": {
                // Protobuf's JSON has 64-bit numbers as text.
                "rejectedSpans": partial.rejected_spans.to_string(),
                "errorMessage": partial.error_message,
            }})
            .to_string()
            .into_bytes(),
        }
    }

    fn answer(self, status: StatusCode, body: Vec<u8>) -> Response {
        let content_type = match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        };
        (status, [(header::CONTENT_TYPE, content_type)], body).into_response()
    }
}

fn is_gzip(headers: &HeaderMap) -> Result<bool, Failure> {
    match headers
        .get(header::CONTENT_ENCODING)
        .map(HeaderValue::as_bytes)
    {
        None | Some(b"" | b"identity") => Ok(false),
        Some(b"gzip") => Ok(true),
        Some(_) => Err(Failure::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content-encoding has to be gzip or absent",
        )),
    }
}

fn gunzip(body: &[u8]) -> Result<Bytes, Failure> {
    let mut plain = Vec::new();
    // One byte more than allowed tells too much from just enough.
    MultiGzDecoder::new(body)
        .take(MAX_REQUEST as u64 + 1)
        .read_to_end(&mut plain)
        .map_err(|error| Failure::bad(format!("the body is no gzip: {error}")))?;
    if plain.len() > MAX_REQUEST {
        return Err(Failure::too_large());
    }
    Ok(plain.into())
}

/// A request that is not taken. The body of the answer is a `google.rpc.Status`.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    message: String,
}

/// The two fields of `google.rpc.Status` that OTLP uses.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

impl Failure {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    fn bad(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "a request has at most {} MiB; send smaller batches",
                MAX_REQUEST >> 20
            ),
        )
    }

    fn answer(self, format: Format) -> Response {
        let code = match self.status {
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => tonic::Code::Unimplemented,
            StatusCode::PAYLOAD_TOO_LARGE => tonic::Code::ResourceExhausted,
            StatusCode::INTERNAL_SERVER_ERROR => tonic::Code::Internal,
            _ => tonic::Code::InvalidArgument,
        } as i32;
        let body = match format {
            Format::Protobuf => RpcStatus {
                code,
                message: self.message,
            }
            .encode_to_vec(),
            Format::Json => json!({"code": code, "message": self.message})
                .to_string()
                .into_bytes(),
        };
        format.answer(self.status, body)
    }
}

impl From<BytesRejection> for Failure {
    fn from(rejection: BytesRejection) -> Self {
        match rejection {
            BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
                Self::too_large()
            }
            other => Self::bad(format!("the body did not arrive: {other}")),
        }
    }
}
