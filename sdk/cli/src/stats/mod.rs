//! `omnitrace stats`.

mod table;

use std::io::{self, BufWriter, Write};

use clap::Args;
use omnitrace::Vocabulary;
use omnitrace::id::canonical_request_id;
use omnitrace_offline::ingest::{self, ReadError, Settings, SpillError};
use omnitrace_offline::statistics::{self, Options, Summary};

use crate::input;
use crate::say::say;

/// Show where the time of the requests in legacy logs goes.
///
/// Count, average, minimum, maximum and percentiles of every phase, on every node and
/// between nodes; times to the first token and per token; throughput; each phase's share
/// of the critical path; the slowest requests with what made them slow; where incomplete
/// requests stop. Percentiles are exact, by linear interpolation, as numpy's.
#[derive(Args)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    logs: input::Logs,
    #[command(flatten)]
    requests: input::Requests,
    /// How many of the slowest requests to show
    #[arg(long, value_name = "N", default_value_t = 10)]
    slowest: usize,
    /// One line for each phase, in the columns of analyze_jaeger_all_spans_to_csv.py
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Everything, for programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    clocks: input::Clocks,
}

/// Why there are no statistics.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Spill(#[from] SpillError),
    #[error("--filter-reqids: none of these requests is in the logs: {0}")]
    NoSuchRequest(String),
    #[error("cannot write the result: {0}")]
    Write(#[from] io::Error),
}

pub(crate) fn run(args: &StatsArgs) -> Result<(), Error> {
    let ids: Vec<&str> = args.requests.ids().collect();
    let options = Options {
        skip: args.requests.skip_req_num,
        slowest: args.slowest,
        only: ids
            .iter()
            .map(|id| canonical_request_id(id).to_owned())
            .collect(),
    };
    let summary = summary(args, options)?;
    let found = |id: &&&str| {
        let canonical = canonical_request_id(id);
        summary.chosen.iter().any(|r| r.id == canonical)
    };
    let missing: Vec<&str> = ids.iter().filter(|id| !found(id)).copied().collect();
    if !ids.is_empty() && missing.len() == ids.len() {
        return Err(Error::NoSuchRequest(missing.join(", ")));
    }
    if !missing.is_empty() {
        say(format_args!(
            "--filter-reqids: not in the logs: {}",
            missing.join(", ")
        ));
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let written = if args.csv {
        summary.csv(&mut out)
    } else if args.json {
        serde_json::to_writer_pretty(&mut out, &summary)
            .map_err(io::Error::from)
            .and_then(|()| out.write_all(b"\n"))
    } else {
        table::write(&summary, &mut out)
    };
    match written.and_then(|()| out.flush()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn summary(args: &StatsArgs, options: Options) -> Result<Summary, Error> {
    let settings = Settings {
        temporary: &args.logs.temporary(None),
        memory: ingest::MEMORY,
        exported: false,
        hosts: false,
        clock: args.clocks.mode,
    };
    let store = args.logs.read(settings)?;
    let skip = options.skip;
    let bar = input::bar(
        store.traces() as u64,
        "counting {bar:40} {pos}/{len} traces {eta}",
        args.logs.quiet,
    );
    let progress = |n: usize| bar.inc(n as u64);
    let summary = statistics::over(&Vocabulary::of_logs(), &store, options, &progress);
    bar.finish_and_clear();
    let summary = summary?;
    if !args.logs.quiet {
        for note in store.clocks().notes() {
            say(note);
        }
        if summary.complete > 0 && summary.skipped_at_each_end < skip {
            say(format_args!(
                "--skip-req_num {skip} would leave none of the {} complete requests: the statistics count them all",
                summary.complete
            ));
        }
    }
    Ok(summary)
}
