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
use crate::span::{InstrumentationScope as OurScope, Span, SpanKind, Status};
use crate::value::{Attribute, Value};

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
        let scope = scope(&OurScope::omnitrace());
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

fn scope(scope: &OurScope) -> InstrumentationScope {
    let mut builder = InstrumentationScope::builder(scope.name.to_string())
        .with_attributes(scope.attributes.iter().map(key_value));
    if !scope.version.is_empty() {
        builder = builder.with_version(scope.version.to_string());
    }
    if !scope.schema_url.is_empty() {
        builder = builder.with_schema_url(scope.schema_url.to_string());
    }
    builder.build()
}

fn key_value(attribute: &Attribute) -> KeyValue {
    KeyValue::new(Arc::clone(&attribute.key), value(&attribute.value))
}

fn value(value: &Value) -> opentelemetry::Value {
    match value {
        Value::Str(text) => opentelemetry::Value::String(Arc::clone(text).into()),
        Value::I64(n) => opentelemetry::Value::I64(*n),
        Value::F64(n) => opentelemetry::Value::F64(*n),
        Value::Bool(b) => opentelemetry::Value::Bool(*b),
        Value::Array(items) => opentelemetry::Value::Array(array(&items.items())),
    }
}

/// The library has an array type for each type of its values.
fn array(items: &[Value]) -> opentelemetry::Array {
    use opentelemetry::Array;
    match items.first() {
        Some(Value::I64(_)) => Array::I64(of(items, |v| match v {
            Value::I64(n) => Some(*n),
            _ => None,
        })),
        Some(Value::F64(_)) => Array::F64(of(items, |v| match v {
            Value::F64(n) => Some(*n),
            _ => None,
        })),
        Some(Value::Bool(_)) => Array::Bool(of(items, |v| match v {
            Value::Bool(b) => Some(*b),
            _ => None,
        })),
        _ => Array::String(of(items, |v| match v {
            Value::Str(text) => Some(Arc::clone(text).into()),
            _ => None,
        })),
    }
}

fn of<T>(items: &[Value], item: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    items.iter().filter_map(item).collect()
}

fn span_data(span: &Span, own: &InstrumentationScope) -> SpanData {
    let context = |trace: u128, id: u64, state: &str| {
        api::SpanContext::new(
            trace.into(),
            id.into(),
            api::TraceFlags::new(span.flags),
            false,
            // One that the library cannot read is none.
            state.parse().unwrap_or_default(),
        )
    };
    let time = |nanos| UNIX_EPOCH + Duration::from_nanos(nanos);
    let mut events = SpanEvents::default();
    events.events = span
        .events
        .iter()
        .map(|event| {
            let attributes = event.attributes.iter().map(key_value).collect();
            let (name, time) = (event.name.to_string(), time(event.time));
            api::Event::new(name, time, attributes, event.dropped_attributes)
        })
        .collect();
    let mut links = SpanLinks::default();
    links.links = span
        .links
        .iter()
        .map(|link| {
            let attributes = link.attributes.iter().map(key_value).collect();
            let (trace, span) = (link.trace_id.value(), link.span_id.value());
            let context = context(trace, span, &link.trace_state);
            api::Link::new(context, attributes, link.dropped_attributes)
        })
        .collect();
    (events.dropped_count, links.dropped_count) = (span.dropped.events, span.dropped.links);
    SpanData {
        span_context: context(
            span.trace_id.value(),
            span.span_id.value(),
            &span.trace_state,
        ),
        parent_span_id: span.parent_span_id.map_or(0, |id| id.value()).into(),
        parent_span_is_remote: span.parent_is_remote,
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
        dropped_attributes_count: span.dropped.attributes,
        events,
        links,
        status: match &span.status {
            Status::Unset => api::Status::Unset,
            Status::Ok => api::Status::Ok,
            Status::Error(text) => api::Status::error(text.to_string()),
        },
        instrumentation_scope: match &span.scope {
            Some(other) => scope(other),
            None => own.clone(),
        },
    }
}
