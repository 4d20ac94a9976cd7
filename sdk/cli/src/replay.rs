//! `omnitrace replay`.

use std::path::PathBuf;

use clap::Args;
use omnitrace::Vocabulary;
use omnitrace::config::{self, Config, ExporterConfig, Protocol};
use omnitrace_offline::clock::Mode;
use omnitrace_offline::ingest::{self, ReadError, Settings};
use omnitrace_offline::replay::{self, Options, Position, ReplayError, StateError};

use crate::input;
use crate::say::say;

/// Send what legacy logs hold to a Collector, with the original times and ids.
///
/// What a Collector has taken already is left out. Sending again does no harm:
/// the ids are the same.
#[derive(Args)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    logs: input::Logs,
    /// OTLP base endpoint, such as http://localhost:4318 (HTTP) or, with
    /// --protocol grpc, http://localhost:4317; default: OTEL_EXPORTER_OTLP_*
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// http/protobuf, http/json or grpc
    #[arg(long, value_parser = |name: &str| Protocol::named(name).ok_or("not http/protobuf, http/json or grpc"))]
    protocol: Option<Protocol>,
    /// Also send what a Collector has taken already
    #[arg(long)]
    all: bool,
    /// Send at most N spans in a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Write down in FILE how far the replay has come, and go on from there if an
    /// earlier one has done so
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
}

/// Why the replay failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("--endpoint {0} {1}")]
    Endpoint(String, String),
    #[error("there is no endpoint to send to: give --endpoint")]
    NoEndpoint,
}

pub(crate) fn run(args: &ReplayArgs) -> Result<(), Error> {
    let exporter = exporter(args)?;
    let after = args
        .state
        .as_deref()
        .map(Position::load)
        .transpose()?
        .flatten();
    let settings = Settings {
        temporary: &args.logs.temporary(None),
        memory: ingest::MEMORY,
        exported: true,
        hosts: false,
        // The ids of what was recorded live depend on its times.
        clock: Mode::AsIs,
    };
    let store = args.logs.read(settings)?;
    let bar = input::bar(0, "sent {pos} spans {per_sec}", args.logs.quiet);
    let progress = |n: usize| bar.inc(n as u64);
    let options = Options {
        all: args.all,
        rate: args.rate,
        after,
    };
    let reached = |position: Position| match &args.state {
        Some(path) => position.save(path),
        None => Ok(()),
    };
    let summary = replay::replay(
        &Vocabulary::of_logs(),
        &store,
        &exporter,
        options,
        &progress,
        &reached,
    );
    bar.finish_and_clear();
    let summary = summary?;
    if summary.rejected > 0 {
        say(format_args!(
            "the Collector has thrown away {} of these spans (partial success)",
            summary.rejected
        ));
    }
    if !args.logs.quiet {
        if summary.resumed > 0 {
            say(format_args!(
                "{} traces left out that an earlier replay has sent",
                summary.resumed
            ));
        }
        say(format_args!(
            "{} spans sent to {}, {} left out that a Collector has already",
            summary.sent, exporter.endpoint, summary.skipped
        ));
    }
    Ok(())
}

/// What the environment says, changed by what the command line says of it. Path and
/// certificates depend on protocol and endpoint, so the core takes them together, as the
/// variables that would have said the same.
fn exporter(args: &ReplayArgs) -> Result<ExporterConfig, Error> {
    let protocol = args.protocol.map(Protocol::name);
    let mut whole = false;
    if let Some(endpoint) = &args.endpoint {
        config::check_endpoint(endpoint)
            .map_err(|reason| Error::Endpoint(endpoint.clone(), reason))?;
        // A URL that already names the traces path is taken as it is.
        whole = endpoint.trim_end_matches('/').ends_with("/v1/traces");
    }
    let (config, warnings) = Config::from_vars(|name| match (name, &args.endpoint) {
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", _) if protocol.is_some() => {
            protocol.map(str::to_owned)
        }
        ("OTEL_TRACES_EXPORTER", Some(_)) => None,
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", Some(url)) => whole.then(|| url.clone()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", Some(url)) => Some(url.clone()),
        _ => config::variable(name),
    });
    warnings.iter().for_each(say);
    config.exporter.ok_or(Error::NoEndpoint)
}
