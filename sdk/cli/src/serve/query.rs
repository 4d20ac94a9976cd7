//! The part of `jaeger-query`'s HTTP API that the UI uses, answered from the
//! store in the same shapes.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use omnitrace_offline::jaeger::otlp;
use omnitrace_offline::otlp_json;
use serde::Serialize;

use super::receiver::MAX_REQUEST;
use super::search::{Params, Search};
use super::store::Store;

/// The routes below `/api`.
pub(super) fn router() -> Router<Arc<Store>> {
    Router::new()
        .route(
            "/services",
            get(|store, query| answer(store, query, services)),
        )
        .route(
            "/services/{service}/operations",
            get(|store, query, Path(service): Path<String>| {
                answer(store, query, move |store, _| {
                    operation_names(store, &service)
                })
            }),
        )
        .route(
            "/operations",
            get(|store, query| answer(store, query, operations)),
        )
        .route("/traces", get(|store, query| answer(store, query, traces)))
        .route(
            "/traces/{trace_id}",
            get(|store, query, Path(trace_id): Path<String>| {
                answer(store, query, move |store, _| trace(store, &trace_id))
            }),
        )
        .route(
            "/dependencies",
            get(|store, query| answer(store, query, dependencies)),
        )
        // Behind "Upload" in the UI, for a file of OTLP/JSON.
        .route(
            "/transform",
            post(|store, query, body: Bytes| answer(store, query, move |_, _| transform(&body)))
                .layer(DefaultBodyLimit::max(MAX_REQUEST)),
        )
        // For this status the UI's "Monitor" page explains itself.
        .route(
            "/metrics/{name}",
            get(|| async {
                Failure::new(StatusCode::NOT_IMPLEMENTED, "no metrics are kept").into_response()
            }),
        )
        .fallback(|| async {
            Failure::new(StatusCode::NOT_FOUND, "the API has no such path").into_response()
        })
}

/// What is wrong with a request. The answer has Jaeger's shape for errors.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    message: String,
}

/// Jaeger's envelope around every answer.
#[derive(Serialize)]
struct Envelope<T> {
    data: Option<T>,
    total: usize,
    limit: usize,
    offset: usize,
    errors: Option<Vec<ApiError>>,
}

#[derive(Serialize)]
struct ApiError {
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
    msg: String,
    #[serde(rename = "traceID", skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

type Outcome<T> = Result<Envelope<T>, Failure>;

impl<T> Envelope<T> {
    fn of(data: T) -> Self {
        Self {
            data: Some(data),
            total: 0,
            limit: 0,
            offset: 0,
            errors: None,
        }
    }

    fn with_total(mut self, total: usize) -> Self {
        self.total = total;
        self
    }
}

/// Runs `handler` on a thread that may block, since it may walk all spans.
async fn answer<T, H>(
    State(store): State<Arc<Store>>,
    Query(pairs): Query<Vec<(String, String)>>,
    handler: H,
) -> Response
where
    T: Serialize,
    H: FnOnce(&Store, &Params) -> Outcome<T> + Send + 'static,
{
    let params = Params(pairs);
    let response = tokio::task::spawn_blocking(move || {
        let envelope = handler(&store, &params)?;
        // Links in the UI ask for it.
        let pretty = params
            .get("prettyPrint")
            .is_some_and(|value| value != "false");
        json(StatusCode::OK, &envelope, pretty)
    });
    match response.await {
        Ok(Ok(response)) => response,
        Ok(Err(failure)) => failure.into_response(),
        Err(_) => {
            Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the query failed").into_response()
        }
    }
}

fn services(store: &Store, _: &Params) -> Outcome<Vec<String>> {
    let services = store.services();
    let total = services.len();
    Ok(Envelope::of(services).with_total(total))
}

fn operation_names(store: &Store, service: &str) -> Outcome<Vec<String>> {
    let operations = store.operations(service).into_iter();
    let mut names: Vec<_> = operations.map(|operation| operation.name).collect();
    // They come in order of name; what differs is the kind.
    names.dedup();
    let total = names.len();
    Ok(Envelope::of(names).with_total(total))
}

fn operations(store: &Store, params: &Params) -> Outcome<impl Serialize + use<>> {
    let service = params
        .get("service")
        .ok_or_else(|| Failure::bad("parameter 'service' is required"))?;
    let mut operations = store.operations(service);
    if let Some(kind) = params.get("spanKind") {
        operations.retain(|operation| operation.span_kind == kind);
    }
    let total = operations.len();
    Ok(Envelope::of(operations).with_total(total))
}

fn traces(store: &Store, params: &Params) -> Outcome<impl Serialize + use<>> {
    let mut ids = params.all("traceID").peekable();
    if ids.peek().is_none() {
        let search = Search::parse(params, now()).map_err(Failure::bad)?;
        return Ok(Envelope::of(store.search(&search)));
    }
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for id in ids {
        match store.trace(parse_trace_id(id)?) {
            Some(trace) => found.push(trace),
            None => missing.push(ApiError {
                code: None,
                msg: "trace not found".to_owned(),
                // As it was asked for: the UI looks it up by that.
                trace_id: Some(id.to_owned()),
            }),
        }
    }
    let mut envelope = Envelope::of(found);
    envelope.errors = (!missing.is_empty()).then_some(missing);
    Ok(envelope)
}

fn trace(store: &Store, trace_id: &str) -> Outcome<impl Serialize + use<>> {
    let trace = store
        .trace(parse_trace_id(trace_id)?)
        .ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, "trace not found"))?;
    Ok(Envelope::of([trace]))
}

fn dependencies(store: &Store, params: &Params) -> Outcome<impl Serialize + use<>> {
    // Milliseconds here, other than in the search.
    let number = |name| params.number(name).map_err(Failure::bad);
    let end = number("endTs")?.map_or(u64::MAX, |millis| millis.saturating_mul(1000));
    let lookback = number("lookback")?.map_or(u64::MAX, |millis| millis.saturating_mul(1000));
    Ok(Envelope::of(
        store.dependencies(&(end.saturating_sub(lookback)..=end)),
    ))
}

fn transform(body: &[u8]) -> Outcome<impl Serialize + use<>> {
    let request = otlp_json::decode(body)
        .map_err(|error| Failure::bad(format!("the body is no OTLP/JSON: {error}")))?;
    Ok(Envelope::of(otlp::convert(request).into_document().data))
}

/// Up to 32 hex digits; leading zeros may be left out, as Jaeger allows.
fn parse_trace_id(text: &str) -> Result<[u8; 16], Failure> {
    let all_digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u128::from_str_radix(text, 16) {
        Ok(id) if all_digits => Ok(id.to_be_bytes()),
        _ => Err(Failure::bad(format!(
            "a trace id has 1 to 32 hex digits, not '{text}'"
        ))),
    }
}

fn now() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |time| {
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
    })
}

/// `body` as JSON; for the other routes of the UI's address too.
pub(super) fn json_response(body: &impl Serialize) -> Response {
    json(StatusCode::OK, body, false).unwrap_or_else(IntoResponse::into_response)
}

fn json(status: StatusCode, body: &impl Serialize, pretty: bool) -> Result<Response, Failure> {
    let text = if pretty {
        serde_json::to_vec_pretty(body)
    } else {
        serde_json::to_vec(body)
    };
    let text =
        text.map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok((status, [(header::CONTENT_TYPE, "application/json")], text).into_response())
}

impl Failure {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let envelope = Envelope::<()> {
            data: None,
            total: 0,
            limit: 0,
            offset: 0,
            errors: Some(vec![ApiError {
                code: Some(self.status.as_u16()),
                msg: self.message,
                trace_id: None,
            }]),
        };
        json(self.status, &envelope, false)
            .unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
    }
}
