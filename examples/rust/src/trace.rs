//! How the service joins its caller's trace and how its callees join it: all that a
//! service needs beside omnitrace's layer.

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::stream::{self, Stream, StreamExt as _};
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

/// Handles a request in a span of its caller's trace.
pub(crate) async fn join(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().as_str(), request.uri().path());
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or(path, MatchedPath::as_str);
    let span = info_span!(
        "request",
        otel.name = %format_args!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        url.path = path,
        url.scheme = "http",
    );
    omnitrace::layer::extract(&span, |name| single(request.headers(), name));
    let response = next.run(request).instrument(span.clone()).await;
    // A client's mistake is no failure of this service.
    record_status(&span, response.status(), StatusCode::is_server_error);
    // The span lasts until the answer has been passed on.
    response.map(|body| Body::from_stream(within(span, body.into_data_stream())))
}

/// Calls another service in a span of this trace. The span lasts until the whole answer
/// has been read.
pub(crate) async fn call(
    client: &reqwest::Client,
    mut request: reqwest::Request,
) -> reqwest::Result<(
    Head,
    impl Stream<Item = reqwest::Result<axum::body::Bytes>> + use<>,
)> {
    let (method, url) = (request.method().clone(), request.url().clone());
    let span = info_span!(
        "call",
        otel.name = method.as_str(),
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = method.as_str(),
        http.response.status_code = Empty,
        server.address = url.host_str(),
        server.port = url.port_or_known_default(),
        url.full = url.as_str(),
    );
    omnitrace::layer::inject(&span, |name, value| {
        if let Ok(value) = HeaderValue::from_str(value) {
            request.headers_mut().insert(name, value);
        }
    });
    let response = client.execute(request).instrument(span.clone()).await;
    let response = response.inspect_err(|_| {
        span.record("otel.status_code", "ERROR");
    })?;
    let failed = |status: &StatusCode| status.is_client_error() || status.is_server_error();
    record_status(&span, response.status(), failed);
    let head = Head {
        status: response.status(),
        headers: response.headers().clone(),
    };
    Ok((head, within(span, response.bytes_stream())))
}

/// What comes before an answer's body.
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
}

/// The value of a header that came once.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn record_status(span: &Span, status: StatusCode, is_failure: impl Fn(&StatusCode) -> bool) {
    span.record("http.response.status_code", status.as_u16());
    if is_failure(&status) {
        span.record("otel.status_code", "ERROR");
    }
}

/// Enters the span whenever the next part of a body is asked for.
fn within<S: Stream + Unpin>(span: Span, mut parts: S) -> impl Stream<Item = S::Item> + use<S> {
    stream::poll_fn(move |context| span.in_scope(|| parts.poll_next_unpin(context)))
}
