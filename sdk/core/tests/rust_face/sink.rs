//! A Collector that keeps what it is sent: OTLP over HTTP and gRPC on one port.

use std::sync::{Arc, Mutex};
use std::thread;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use http_body_util::{BodyExt as _, Full};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::sync::oneshot;

type Kept = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// A Collector on a thread of its own; it ends with this.
pub(crate) struct Sink {
    endpoint: String,
    kept: Kept,
    _end: oneshot::Sender<()>,
}

impl Sink {
    pub(crate) fn start() -> Self {
        let kept = Kept::default();
        let router = Router::new().fallback(take).with_state(Arc::clone(&kept));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (end, ended) = oneshot::channel::<()>();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let serve = axum::serve(listener, router);
                tokio::select! {
                    served = serve.into_future() => served.unwrap(),
                    _ = ended => {}
                }
            });
        });
        Self {
            endpoint,
            kept,
            _end: end,
        }
    }

    /// Base URL for OTLP.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What has come so far.
    pub(crate) fn received(&self) -> Received {
        Received(self.kept.lock().unwrap().clone())
    }
}

async fn take(State(kept): State<Kept>, request: Request) -> Response {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let grpc = content_type.is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    let body = to_bytes(request.into_body(), usize::MAX).await.unwrap();
    // A gRPC message has its compression flag and its length before it.
    let message = if grpc { body.slice(5..) } else { body };
    let export = ExportTraceServiceRequest::decode(message).unwrap();
    kept.lock().unwrap().push(export);
    if !grpc {
        return Response::new(Body::empty());
    }
    let status = (
        HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    );
    let ok = HeaderMap::from_iter([status]);
    let empty = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async { Some(Ok(ok)) });
    let content_type = [(header::CONTENT_TYPE, "application/grpc")];
    (content_type, Body::new(empty)).into_response()
}

/// What a Collector has got.
pub(crate) struct Received(Vec<ExportTraceServiceRequest>);

impl Received {
    /// Every span with its scope.
    pub(crate) fn scoped(&self) -> impl Iterator<Item = (&InstrumentationScope, &str, &Span)> {
        let resources = self.0.iter().flat_map(|request| &request.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|group| {
            let scope = group.scope.as_ref().unwrap();
            let with_scope = move |span| (scope, group.schema_url.as_str(), span);
            group.spans.iter().map(with_scope)
        })
    }

    pub(crate) fn spans(&self) -> impl Iterator<Item = &Span> {
        self.scoped().map(|(.., span)| span)
    }

    /// The resource, the same in all requests.
    pub(crate) fn resource(&self) -> Vec<KeyValue> {
        let resources = self.0.iter().flat_map(|request| &request.resource_spans);
        let mut all = resources.map(|each| each.resource.clone().unwrap().attributes);
        let first = all.next().unwrap();
        assert!(all.all(|other| other == first));
        first
    }
}
