//! `omnitrace convert`.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use omnitrace::Vocabulary;
use omnitrace_offline::convert::{self, ConvertError, Format, Layout, Options};
use omnitrace_offline::ingest::{self, ReadError, Settings};

use crate::input;
use crate::interrupt::Watch;
use crate::say::say;

/// Convert legacy logs to a file of traces, for the Jaeger UI (its "Upload" tab) or for
/// another tool.
///
/// A file for Jaeger holds four statistics traces (average, TP90, TP95 and TP99 over the
/// complete requests) and one trace for each request.
#[derive(Args)]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    logs: input::Logs,
    /// File to write; it appears whole or not at all. "-" is stdout
    output: PathBuf,
    #[command(flatten)]
    requests: input::Requests,
    /// jaeger: JSON for the Jaeger UI; otlp: OTLP, a line of JSON for each trace;
    /// otlp-protobuf: OTLP, one TracesData message; perfetto: for ui.perfetto.dev and
    /// chrome://tracing; csv: a row for each span
    #[arg(long, value_name = "FORMAT", default_value = "jaeger", value_parser = format)]
    format: Format,
    /// tree: each phase within the one that it is part of; legacy: the chain of 45 spans
    /// of log_to_jaeger.py (with --format jaeger)
    #[arg(long, value_name = "LAYOUT", default_value = "tree", value_parser = layout)]
    layout: Layout,
    #[command(flatten)]
    clocks: input::Clocks,
}

/// Why the conversion failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Convert(#[from] ConvertError),
    #[error("cannot catch signals: {0}")]
    Signals(#[from] io::Error),
}

pub(crate) fn run(args: &ConvertArgs) -> Result<(), Error> {
    let options = Options {
        skip: args.requests.skip_req_num,
        only: args.requests.ids().map(str::to_owned).collect(),
        format: args.format,
        layout: args.layout,
    };
    if args.layout == Layout::Legacy && args.format != Format::Jaeger {
        return Err(ConvertError::Layout.into());
    }
    let _signals = Watch::begin()?;
    convert::check(&args.output)?;
    let settings = Settings {
        temporary: &args.logs.temporary(Some(&args.output)),
        memory: ingest::MEMORY,
        exported: false,
        hosts: options.needs_hosts(),
        clock: args.clocks.mode,
    };
    let store = args.logs.read(settings)?;
    let bar = input::bar(
        2 * store.traces() as u64,
        "writing {bar:40} {percent} % {eta}",
        args.logs.quiet,
    );
    let progress = |n: usize| bar.inc(n as u64);
    let vocabulary = Vocabulary::of_logs();
    let summary = convert::convert(&vocabulary, &store, &options, &args.output, &progress);
    bar.finish_and_clear();
    let summary = match summary {
        // Whoever read it has seen enough.
        Err(ConvertError::Write { path, source })
            if path == Path::new("-") && source.kind() == io::ErrorKind::BrokenPipe =>
        {
            return Ok(());
        }
        other => other?,
    };
    if !args.logs.quiet {
        for note in store.clocks().notes().iter().chain(&summary.notes) {
            say(note);
        }
        say(format_args!(
            "{} traces with {} spans of {} requests ({} counted in the statistics) in {}",
            summary.traces,
            summary.spans,
            store.requests(),
            summary.counted,
            args.output.display(),
        ));
    }
    Ok(())
}

fn format(name: &str) -> Result<Format, String> {
    let known = Format::NAMES.iter().find(|(n, _)| *n == name);
    known.map(|(_, format)| *format).ok_or_else(|| {
        let names: Vec<&str> = Format::NAMES.iter().map(|(n, _)| *n).collect();
        format!("not one of {}", names.join(", "))
    })
}

fn layout(name: &str) -> Result<Layout, &'static str> {
    match name {
        "tree" => Ok(Layout::Tree),
        "legacy" => Ok(Layout::Legacy),
        _ => Err("not tree or legacy"),
    }
}
