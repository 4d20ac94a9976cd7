//! A service in front of a chat endpoint: it adds what it knows of a question, has the
//! endpoint answer, and passes the answer on as it comes.

mod chat;
mod knowledge;
mod trace;

use std::net::SocketAddr;
use std::time::Duration;

use axum::routing::{get, post};
use axum::{Router, middleware};
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// A service in front of a chat endpoint, traced by omnitrace.
#[derive(Parser)]
struct Options {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Base URL of the service that answers.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    upstream: reqwest::Url,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let tracing = omnitrace::start();
    tracing_subscriber::registry()
        .with(tracing.layer().with_filter(LevelFilter::INFO))
        .with(tracing_subscriber::fmt::layer().with_filter(LevelFilter::INFO))
        .init();
    // reqwest is built without a cryptography of its own.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let service = Router::new()
        .route("/v1/chat/completions", post(chat::complete))
        .route_layer(middleware::from_fn(trace::join))
        .route("/health", get(|| async {}))
        .with_state(chat::Upstream::new(&options.upstream)?);
    let listener = TcpListener::bind(options.listen).await?;
    axum::serve(listener, service)
        .with_graceful_shutdown(asked_to_end()?)
        .await?;
    // The last spans have so long to reach the Collector.
    tracing.shutdown(Duration::from_secs(2));
    Ok(())
}

/// Resolves at SIGTERM or Ctrl-C.
fn asked_to_end() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
