//! A Collector that counts spans and keeps nothing: OTLP over HTTP and gRPC on
//! one port, in a process of its own so that its CPU time is nobody's.
//!
//! It prints its base URL; each line it is sent is answered with the spans so
//! far; it ends when its stdin does.

use std::io::{self, BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;

/// A sink in a child process; it ends with this.
pub(crate) struct Sink {
    child: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    endpoint: String,
}

impl Sink {
    pub(crate) fn start() -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("sink")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(questions), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the sink has no pipes"));
        };
        let mut answers = BufReader::new(answers);
        let mut endpoint = String::new();
        answers.read_line(&mut endpoint)?;
        let endpoint = endpoint.trim_end().to_owned();
        Ok(Self {
            child,
            questions: Some(questions),
            answers,
            endpoint,
        })
    }

    /// Base URL for OTLP.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Spans that have arrived so far.
    pub(crate) fn spans(&mut self) -> io::Result<u64> {
        let mut answer = String::new();
        if let Some(questions) = &mut self.questions {
            writeln!(questions)?;
        }
        self.answers.read_line(&mut answer)?;
        answer.trim_end().parse().map_err(io::Error::other)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.questions = None;
        // It has nothing left to do but end.
        let _ = self.child.wait();
    }
}

/// The sink itself.
pub(crate) fn serve() -> io::Result<()> {
    let spans = Arc::new(AtomicU64::new(0));
    let router = Router::new().fallback(take).with_state(Arc::clone(&spans));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("http://{}", listener.local_addr()?);
        std::thread::spawn(move || {
            for _ in io::stdin().lines().map_while(Result::ok) {
                println!("{}", spans.load(Ordering::Relaxed));
            }
            std::process::exit(0);
        });
        axum::serve(listener, router).await
    })
}

async fn take(State(spans): State<Arc<AtomicU64>>, request: Request) -> Response {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let grpc = content_type.is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    let Ok(body) = to_bytes(request.into_body(), usize::MAX).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    // A gRPC message has its compression flag and its length before it.
    let message = if grpc {
        body.slice(5.min(body.len())..)
    } else {
        body
    };
    let Ok(export) = Export::decode(message) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    spans.fetch_add(export.spans(), Ordering::Relaxed);
    if grpc {
        let status = (
            HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        );
        let ok = HeaderMap::from_iter([status]);
        let empty = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async { Some(Ok(ok)) });
        return (
            [(header::CONTENT_TYPE, "application/grpc")],
            Body::new(empty),
        )
            .into_response();
    }
    (
        [(header::CONTENT_TYPE, "application/x-protobuf")],
        Body::empty(),
    )
        .into_response()
}

/// An ExportTraceServiceRequest as far as its spans, which stay bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceSpans {
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeSpans {
    #[prost(bytes = "bytes", repeated, tag = "2")]
    spans: Vec<Bytes>,
}

impl Export {
    fn spans(&self) -> u64 {
        let scopes = self.resources.iter().flat_map(|resource| &resource.scopes);
        scopes.map(|scope| scope.spans.len() as u64).sum()
    }
}
