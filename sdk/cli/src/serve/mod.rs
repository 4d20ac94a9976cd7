//! `omnitrace serve`: an OTLP receiver with the Jaeger UI, in one process and
//! in memory. For a desk or a test, where no Collector and no Jaeger run.
//!
//! ```text
//!  OTLP/gRPC ─┐                                ┌─► /api/… ─► Jaeger UI
//!             ├─► receiver ─► Store (memory) ──┤
//!  OTLP/HTTP ─┘                                └─► /stats
//! ```

mod endpoint;
mod query;
mod receiver;
mod search;
mod store;
mod ui;

use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::say::say;
use endpoint::{Endpoint, ListenError};
use store::Store;

/// How long open connections may take to end after SIGINT or SIGTERM.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);

/// Receive OTLP traces and show them in the Jaeger UI
///
/// All is kept in memory, up to a limit, and is gone when the command ends.
/// There is no authentication: whoever reaches the addresses can read and add
/// traces, so the defaults are reached from this machine only. Port 0 takes any
/// free port. Once all is ready the addresses are printed, one a line:
/// "otlp-grpc HOST:PORT", "otlp-http HOST:PORT", "jaeger-ui http://HOST:PORT".
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Address for OTLP/gRPC
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:4317", value_parser = endpoint::parse)]
    pub(crate) otlp_grpc_endpoint: SocketAddr,

    /// Address for OTLP/HTTP; traces are posted to /v1/traces
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:4318", value_parser = endpoint::parse)]
    pub(crate) otlp_http_endpoint: SocketAddr,

    /// Address for the Jaeger UI, its query API, /health and /stats
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:16686", value_parser = endpoint::parse)]
    pub(crate) ui_endpoint: SocketAddr,

    /// Memory for traces; when it is full, those that have gone longest without
    /// a new span make room
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) memory_limit_mib: u32,
}

/// Why `omnitrace serve` failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// An address cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The OTLP/gRPC server broke down after it had started.
    #[error("the server of --otlp-grpc-endpoint broke down: {0}")]
    Grpc(#[from] tonic::transport::Error),
    /// The system refused threads, signals, sockets or the standard output.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// If an address cannot be had, or a server breaks down.
pub(crate) fn run(args: ServeArgs) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(system("start threads"))?;
    let outcome = runtime.block_on(serve(args));
    // Not a plain drop: a long search must not hold up the exit.
    runtime.shutdown_background();
    outcome
}

async fn serve(args: ServeArgs) -> Result<(), ServeError> {
    let grpc = Endpoint::bind("otlp-grpc-endpoint", args.otlp_grpc_endpoint)?;
    let http = Endpoint::bind("otlp-http-endpoint", args.otlp_http_endpoint)?;
    let ui = Endpoint::bind("ui-endpoint", args.ui_endpoint)?;
    // Caught before the addresses are out: a script may stop us right after.
    let signal = stop_signal().map_err(system("catch signals"))?;
    announce(&grpc, &http, &ui).map_err(system("print the addresses"))?;

    let store = Arc::new(Store::new(u64::from(args.memory_limit_mib) << 20));
    let (stop, stopped) = watch::channel(());
    // Ready when `stop` is dropped.
    let stopped = || {
        let mut stopped = stopped.clone();
        async move {
            let _ = stopped.changed().await;
        }
    };
    let mut servers = JoinSet::new();
    servers.spawn(receiver::grpc::serve(grpc, Arc::clone(&store), stopped()));
    servers.spawn(http_server(http, receiver::http::router(&store), stopped()));
    servers.spawn(http_server(ui, ui::router(&store), stopped()));

    let broken = tokio::select! {
        () = signal => None,
        ended = servers.join_next() => ended,
    };
    drop(stop);
    // What is still open after the limit is cut off with the runtime.
    let _ = tokio::time::timeout(SHUTDOWN_LIMIT, async {
        while servers.join_next().await.is_some() {}
    })
    .await;
    match broken {
        None => Ok(()),
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) if error.is_panic() => resume_unwind(error.into_panic()),
        Some(Err(_cancelled)) => Ok(()),
    }
}

async fn http_server(
    endpoint: Endpoint,
    router: axum::Router,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    axum::serve(endpoint.listener, router)
        .with_graceful_shutdown(stopped)
        .await
        .map_err(system("serve HTTP"))
}

fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

fn announce(grpc: &Endpoint, http: &Endpoint, ui: &Endpoint) -> io::Result<()> {
    for warning in [grpc, http, ui].into_iter().filter_map(Endpoint::warning) {
        say(warning);
    }
    let mut out = io::stdout().lock();
    writeln!(out, "otlp-grpc {}", grpc.address)?;
    writeln!(out, "otlp-http {}", http.address)?;
    writeln!(out, "jaeger-ui http://{}", ui.address)?;
    out.flush()
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::System { action, source }
}
