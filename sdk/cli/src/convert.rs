//! `omnitrace convert`.

use std::path::PathBuf;

use clap::Args;
use omnitrace::Vocabulary;
use omnitrace_offline::clock::{Clocks, Mode};
use omnitrace_offline::convert::{self, ConvertError, Options};
use omnitrace_offline::reader::ReadError;

use crate::input;

/// Convert legacy logs to a file for the Jaeger UI (its "Upload" tab).
///
/// The file holds four statistics traces (average, TP90, TP95 and TP99 over the
/// complete requests) and one trace for each request.
#[derive(Args)]
pub(crate) struct ConvertArgs {
    /// Directory with the logs (all files below it are read, .gz included), or
    /// one log file
    log_dir: PathBuf,
    /// File to write; it appears whole or not at all. "-" is stdout
    output: PathBuf,
    /// Leave the first and the last N complete requests out of the statistics
    #[arg(long = "skip-req_num", value_name = "N", default_value_t = 1)]
    skip_req_num: usize,
    /// Write only the traces of these requests (ids separated by commas, with or
    /// without "chatcmpl-"); the statistics are over all requests
    #[arg(
        long = "filter-reqids",
        visible_alias = "select-reqids",
        value_name = "ID,ID",
        value_delimiter = ','
    )]
    filter_reqids: Vec<String>,
    /// Put clocks right (auto): times since boot become wall clock, and hosts whose
    /// clocks differ are brought onto the proxy's. as-is leaves all times alone
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = input::clock_mode)]
    clock: Mode,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// Why the conversion failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Convert(#[from] ConvertError),
}

pub(crate) fn run(args: &ConvertArgs) -> Result<(), Error> {
    let mut log = input::read(&args.log_dir, args.quiet)?;
    let vocabulary = Vocabulary::omni_vllm();
    let clocks = Clocks::repair(&vocabulary, &mut log, args.clock);
    let options = Options {
        skip: args.skip_req_num,
        only: args
            .filter_reqids
            .iter()
            .map(|id| id.trim().to_owned())
            .filter(|id| !id.is_empty())
            .collect(),
    };
    let bar = input::bar(
        log.requests.len() as u64,
        "writing {bar:40} {pos}/{len} requests {eta}",
        args.quiet,
    );
    let progress = |n: usize| bar.inc(n as u64);
    let summary = convert::convert(
        &vocabulary,
        &log,
        &clocks,
        &options,
        &args.output,
        &progress,
    );
    bar.finish_and_clear();
    let summary = summary?;
    if !args.quiet {
        for note in clocks.notes().iter().chain(&summary.notes) {
            eprintln!("omnitrace: {note}");
        }
        eprintln!(
            "omnitrace: {} traces with {} spans of {} requests ({} counted in the statistics) in {}",
            summary.traces,
            summary.spans,
            log.requests.len(),
            summary.counted,
            args.output.display(),
        );
    }
    Ok(())
}
