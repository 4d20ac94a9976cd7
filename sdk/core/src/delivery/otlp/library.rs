//! gRPC, and HTTP with JSON bodies, by opentelemetry-otlp: the spans are made
//! messages again for it.

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

use crate::config::ExporterConfig;
use crate::span::{Span, SpanKind, Status};
use crate::value::{Attribute, Value};

use super::super::encode::{SCOPE, VERSION};
use super::{Answer, Chain, ExportError, ExporterError, Taken, exchange, http_client, retryable};

/// An exporter of the library's, for one resource.
pub(super) struct Library {
    exporter: Box<SpanExporter>,
    scope: InstrumentationScope,
    /// For HTTP, where the client leaves what the error text does not say.
    answers: Option<Answers>,
}

impl Library {
    pub(super) fn grpc(
        config: &ExporterConfig,
        resource: &[Attribute],
    ) -> Result<Self, ExporterError> {
        Self::new(config, resource, grpc(config), None)
    }

    pub(super) fn http_json(
        config: &ExporterConfig,
        resource: &[Attribute],
    ) -> Result<Self, ExporterError> {
        let (exporter, answers) = http_json(config)?;
        Self::new(config, resource, exporter, Some(answers))
    }

    fn new(
        config: &ExporterConfig,
        resource: &[Attribute],
        exporter: Result<SpanExporter, ExporterBuildError>,
        answers: Option<Answers>,
    ) -> Result<Self, ExporterError> {
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
        Ok(Self {
            exporter: Box::new(exporter),
            scope,
            answers,
        })
    }

    pub(super) async fn export(&self, spans: &[Span]) -> Result<Taken, ExportError> {
        let data = spans
            .iter()
            .map(|span| span_data(span, &self.scope))
            .collect();
        let Err(error) = self.exporter.export(data).await else {
            return Ok(Taken::default());
        };
        Err(match &self.answers {
            Some(answers) => match answers.take() {
                Some(answer) => answer.into(),
                None => retryable(error.to_string()),
            },
            None => classify_grpc(&error),
        })
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
