//! An OTLP endpoint for all protocols that answers as it is told.

use std::collections::VecDeque;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, Request, Response, StatusCode};
use axum::response::IntoResponse as _;
use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message as _;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tonic::Status;
use tonic::codec::CompressionEncoding;
use tonic::codegen::Service as _;

const METRICS: &str = "/v1/metrics";
const METRICS_METHOD: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

/// What the endpoint answers to one request.
pub(crate) enum Reply {
    /// As a Collector that has taken everything.
    Ok,
    /// As one that has thrown some of it away.
    Partial(i64, &'static str),
    /// A gRPC status.
    Grpc(Status),
    /// This HTTP answer, to gRPC too.
    Http(Response<Body>),
    /// Nothing.
    Silence,
}

/// An HTTP answer.
pub(crate) fn http(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Reply {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    Reply::Http(response.body(body.into()).unwrap())
}

/// One request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) request: ExportTraceServiceRequest,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

#[derive(Default)]
struct Shared {
    script: Mutex<VecDeque<Reply>>,
    received: Mutex<Vec<Received>>,
    metrics: Mutex<Vec<ExportMetricsServiceRequest>>,
    takes_metrics: AtomicBool,
    connections: AtomicUsize,
}

/// A running endpoint on 127.0.0.1.
pub(crate) struct Receiver {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Answers these, one to a request, and after them [`Reply::Ok`].
    pub(crate) fn new(script: impl IntoIterator<Item = Reply>) -> Self {
        Self::start(script, None, 0)
    }

    /// On a port that another one has left.
    pub(crate) fn on(port: u16) -> Self {
        Self::start([], None, port)
    }

    pub(crate) fn with_tls(config: Arc<ServerConfig>) -> Self {
        Self::start([], Some(config), 0)
    }

    fn start(
        script: impl IntoIterator<Item = Reply>,
        tls: Option<Arc<ServerConfig>>,
        port: u16,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        shared.script.lock().unwrap().extend(script);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = std::sync::mpsc::channel();
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&shared));
        let connections = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let tcp = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
                bound.send(tcp.local_addr().unwrap()).unwrap();
                let listener = Listener {
                    tcp,
                    tls: tls.map(TlsAcceptor::from),
                    shared: connections,
                };
                tokio::select! {
                    ended = axum::serve(listener, router) => ended.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self {
            address: address.recv().unwrap(),
            scheme,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Where the spans of a protocol go.
    pub(crate) fn endpoint(&self, protocol: &str) -> String {
        match protocol {
            "grpc" => format!("{}/", self.url()),
            _ => format!("{}/v1/traces", self.url()),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Everything that has come so far.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    /// From now on it takes metrics; as most, it takes none.
    pub(crate) fn take_metrics(&self) {
        self.shared.takes_metrics.store(true, Ordering::SeqCst);
    }

    /// All metrics that have come so far.
    pub(crate) fn metrics(&self) -> Vec<ExportMetricsServiceRequest> {
        self.shared.metrics.lock().unwrap().clone()
    }

    /// Connections made so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let kind = head.headers.get(CONTENT_TYPE).unwrap().to_str().unwrap();
    let kind = kind.to_owned();
    let grpc = kind == "application/grpc";
    if [METRICS, METRICS_METHOD].contains(&head.uri.path()) {
        return take_metrics(&shared, Request::from_parts(head, body)).await;
    }
    let reply = shared.script.lock().unwrap().pop_front();
    let reply = reply.unwrap_or(Reply::Ok);
    let decoded = decode(&head.headers, &body);
    shared.received.lock().unwrap().push(Received {
        path: head.uri.path().to_owned(),
        headers: head.headers.clone(),
        request: decoded,
    });
    let result = match reply {
        Reply::Http(response) => return response,
        Reply::Silence => std::future::pending().await,
        Reply::Ok => Ok(ExportTraceServiceResponse::default()),
        Reply::Partial(rejected_spans, message) => Ok(ExportTraceServiceResponse {
            partial_success: Some(ExportTracePartialSuccess {
                rejected_spans,
                error_message: message.to_owned(),
            }),
        }),
        Reply::Grpc(status) => Err(status),
    };
    if grpc {
        // Tonic's own server answers, so that the wire is what a server makes of it.
        let request = Request::from_parts(head, tonic::body::Body::new(Body::from(body)));
        let mut server = TraceServiceServer::new(Scripted(Mutex::new(Some(result))))
            .accept_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Gzip);
        return server.call(request).await.unwrap().map(Body::new);
    }
    let message = result.unwrap();
    let body = match kind.as_str() {
        // As the Collector does it: 64-bit numbers are text.
        "application/json" => match &message.partial_success {
            Some(partial) => serde_json::json!({"partialSuccess": {
                "rejectedSpans": partial.rejected_spans.to_string(),
                "errorMessage": partial.error_message,
            }})
            .to_string()
            .into_bytes(),
            None => b"{}".to_vec(),
        },
        _ => message.encode_to_vec(),
    };
    ([(CONTENT_TYPE, kind)], body).into_response()
}

/// The message of a request of any protocol.
fn decode<T: prost::Message + Default + DeserializeOwned>(headers: &HeaderMap, body: &Bytes) -> T {
    match headers.get(CONTENT_TYPE).unwrap().to_str().unwrap() {
        "application/grpc" => T::decode(grpc_message(headers, body)).unwrap(),
        "application/json" => serde_json::from_slice(&plain(headers, body)).unwrap(),
        "application/x-protobuf" => T::decode(plain(headers, body)).unwrap(),
        other => panic!("a body of type {other}"),
    }
}

async fn take_metrics(shared: &Shared, request: Request<Bytes>) -> Response<Body> {
    let takes = shared.takes_metrics.load(Ordering::SeqCst);
    if takes {
        let metrics = decode(request.headers(), request.body());
        shared.metrics.lock().unwrap().push(metrics);
    }
    let kind = request.headers()[CONTENT_TYPE].clone();
    if kind == "application/grpc" {
        let request = request.map(|body| tonic::body::Body::new(Body::from(body)));
        let mut server = MetricsServiceServer::new(Metrics { takes })
            .accept_compressed(CompressionEncoding::Gzip);
        return server.call(request).await.unwrap().map(Body::new);
    }
    // What the Collector says where no pipeline has metrics.
    let status = if takes { 200 } else { 404 };
    let body = if kind == "application/json" { "{}" } else { "" };
    (
        StatusCode::from_u16(status).unwrap(),
        [(CONTENT_TYPE, kind)],
        body,
    )
        .into_response()
}

struct Metrics {
    takes: bool,
}

#[tonic::async_trait]
impl MetricsService for Metrics {
    async fn export(
        &self,
        _: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, Status> {
        match self.takes {
            true => Ok(tonic::Response::new(ExportMetricsServiceResponse::default())),
            false => Err(Status::unimplemented("unknown service")),
        }
    }
}

fn plain(headers: &HeaderMap, body: &Bytes) -> Bytes {
    match headers.get(CONTENT_ENCODING) {
        None => body.clone(),
        Some(encoding) => {
            assert_eq!(encoding, "gzip");
            gunzip(body)
        }
    }
}

fn gunzip(body: &[u8]) -> Bytes {
    let mut plain = Vec::new();
    GzDecoder::new(body).read_to_end(&mut plain).unwrap();
    plain.into()
}

/// The one message of a call: a flag, its length, and it.
fn grpc_message(headers: &HeaderMap, body: &Bytes) -> Bytes {
    let length = u32::from_be_bytes(body[1..5].try_into().unwrap());
    assert_eq!(body.len(), 5 + length as usize);
    let compressed = headers.get("grpc-encoding").is_some_and(|v| v == "gzip");
    assert_eq!(body[0], u8::from(compressed));
    match compressed {
        true => gunzip(&body[5..]),
        false => body.slice(5..),
    }
}

struct Scripted(Mutex<Option<Result<ExportTraceServiceResponse, Status>>>);

#[tonic::async_trait]
impl TraceService for Scripted {
    async fn export(
        &self,
        _: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        let result = self.0.lock().unwrap().take();
        result.unwrap().map(tonic::Response::new)
    }
}

struct Listener {
    tcp: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
}

/// A connection, encrypted or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    async fn wrap(&self, stream: TcpStream) -> std::io::Result<Box<dyn Stream>> {
        Ok(match &self.tls {
            Some(tls) => Box::new(tls.accept(stream).await?),
            None => Box::new(stream),
        })
    }
}

impl axum::serve::Listener for Listener {
    type Io = Box<dyn Stream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.tcp.accept().await.unwrap();
            self.shared.connections.fetch_add(1, Ordering::SeqCst);
            // A handshake that fails is the client's to speak of.
            if let Ok(stream) = self.wrap(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}
