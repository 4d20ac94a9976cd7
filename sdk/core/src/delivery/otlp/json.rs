//! OTLP over HTTP in JSON: opentelemetry-otlp makes the body of the spans, made its
//! messages again; an HTTP client of ours, behind it, decides everything else.
//!
//! The library adds headers and compression from its own reading of the environment
//! beside what it is told, and its errors are one sentence. So of its request only the
//! body is used, and the answer is left on the side.

use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use flate2::read::GzDecoder;
use opentelemetry::trace as api;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{Bytes, HttpError, Request, Response};
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use reqwest::header::CONTENT_ENCODING;

use crate::config::ExporterConfig;
use crate::span::{InstrumentationScope as OurScope, Span, SpanKind, Status};
use crate::value::{Attribute, Value};

use super::http::{self, Http};
use super::{ExportError, ExporterError, Taken};

/// The library's exporter, for one resource.
pub(super) struct Json {
    exporter: Box<SpanExporter>,
    scope: InstrumentationScope,
    outcome: Outcome,
}

/// How the last request ended, where the library's error does not say.
type Outcome = Arc<Mutex<Option<Result<Taken, ExportError>>>>;

impl Json {
    pub(super) fn new(
        config: &ExporterConfig,
        resource: &[Attribute],
    ) -> Result<Self, ExporterError> {
        let outcome = Outcome::default();
        let client = Client {
            http: Http::new(config, http::JSON)?,
            outcome: Arc::clone(&outcome),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(opentelemetry_otlp::Protocol::HttpJson)
            .with_endpoint(&config.endpoint)
            .with_timeout(config.timeout)
            .with_retry_policy(RetryPolicy::disabled())
            .build();
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
            outcome,
        })
    }

    /// One attempt.
    pub(super) async fn send(&self, spans: &[Span]) -> Result<Taken, ExportError> {
        let data = spans
            .iter()
            .map(|span| span_data(span, &self.scope))
            .collect();
        let said = self.exporter.export(data).await;
        let outcome = lock(&self.outcome).take();
        outcome.unwrap_or_else(|| {
            // It did not come to a request: the same spans would fail again.
            let reason = said.err().map(|error| error.to_string());
            Err(ExportError::Refused {
                reason: reason.unwrap_or_else(|| "no request was made".to_owned()),
            })
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the library takes for its way to the network.
#[derive(Debug)]
struct Client {
    http: Http,
    outcome: Outcome,
}

#[async_trait::async_trait]
impl opentelemetry_http::HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, mut body) = request.into_parts();
        // It knows gzip alone, and compresses only if the environment says so.
        if head.headers.contains_key(CONTENT_ENCODING) {
            let mut plain = Vec::new();
            GzDecoder::new(&body[..]).read_to_end(&mut plain)?;
            body = plain.into();
        }
        let outcome = self.http.send(body).await;
        *lock(&self.outcome) = Some(outcome);
        // The library has nothing to do with the answer.
        Ok(Response::new(Bytes::new()))
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
