//! The UI's address: the genuine Jaeger UI's files, the API it asks, `/health`
//! and `/stats`.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Uri, header};
use axum::middleware;
use axum::response::Response;
use axum::routing::get;

use super::query;
use super::store::Store;

/// The routes of the UI's address.
pub(super) fn router(store: &Arc<Store>) -> Router {
    Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/stats", get(stats))
        .nest("/api", query::router())
        .fallback_service(files())
        .with_state(Arc::clone(store))
}

async fn stats(State(store): State<Arc<Store>>) -> Response {
    query::json_response(&store.stats())
}

/// The UI's build, which `otlp_embedded` carries. That crate's own API and its
/// store, here without room for a trace, are not reached: `/api` is ours.
fn files() -> Router {
    let unused = otlp_embedded::State::new(otlp_embedded::Config {
        max_length: 0,
        max_memory_usage: 0,
    });
    otlp_embedded::ui_app(unused, "/").layer(middleware::from_fn(
        async |mut request: Request, next: middleware::Next| {
            let hashed_name = request.uri().path().starts_with("/static/");
            if !hashed_name {
                // A page such as /trace/…: the browser's side finds the way.
                // The crate would do the same, but as a redirect to nowhere.
                *request.uri_mut() = Uri::from_static("/index.html");
            }
            let mut response = next.run(request).await;
            let cache = if hashed_name && response.status().is_success() {
                "public, max-age=31536000, immutable"
            } else {
                "no-cache"
            };
            let headers = response.headers_mut();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
            response
        },
    ))
}
