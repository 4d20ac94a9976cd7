//! Reading logs with a progress bar, and saying what could not be read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use omnitrace::Vocabulary;
use omnitrace_offline::clock::Mode;
use omnitrace_offline::ingest::{self, ReadError, Settings, Store};

use crate::say::say;

/// The logs of a command, and how it reads them.
#[derive(Args)]
pub(crate) struct Logs {
    /// Directory with the logs (all files below it are read, compressed ones
    /// included), or one log file; "-" is stdin
    log_dir: PathBuf,
    /// Folder for a temporary file with the events that memory does not hold, about
    /// a third of the logs' size [default: the output's folder, else the system's]
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
    /// Say nothing but errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

impl Logs {
    /// Where events wait that memory does not hold: the folder that was named, else that of
    /// the output, which must have room for much more.
    pub(crate) fn temporary(&self, output: Option<&Path>) -> PathBuf {
        let output = output.filter(|o| *o != Path::new("-") && (o.is_file() || !o.exists()));
        match (&self.temp_dir, output.and_then(Path::parent)) {
            (Some(folder), _) => folder.clone(),
            (None, None) => std::env::temp_dir(),
            (None, Some(folder)) if folder == Path::new("") => PathBuf::from("."),
            (None, Some(folder)) => folder.to_owned(),
        }
    }

    /// Reads them; problems go to stderr.
    pub(crate) fn read(&self, settings: Settings<'_>) -> Result<Store, ReadError> {
        let total = ingest::find(&self.log_dir)?
            .iter()
            .map(|(_, size)| size)
            .sum();
        let template = "reading {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = bar(total, template, self.quiet);
        let store = ingest::ingest(&Vocabulary::of_logs(), &self.log_dir, settings, &|bytes| {
            bar.inc(bytes)
        });
        bar.finish_and_clear();
        let store = store?;
        store.report().problems().iter().for_each(say);
        if !self.quiet {
            store.report().notes().iter().for_each(say);
        }
        Ok(store)
    }
}

/// What is done about the clocks behind the logs' times.
#[derive(Args)]
pub(crate) struct Clocks {
    /// Put clocks right (auto): times since boot become wall clock, and hosts whose
    /// clocks differ are brought onto the proxy's. as-is leaves all times alone
    #[arg(long = "clock", value_name = "MODE", default_value = "auto", value_parser = clock_mode)]
    pub(crate) mode: Mode,
}

/// Which requests count, and which are chosen.
#[derive(Args)]
pub(crate) struct Requests {
    /// Leave the first and the last N complete requests out of the statistics
    #[arg(long = "skip-req_num", value_name = "N", default_value_t = 1)]
    pub(crate) skip_req_num: usize,
    /// Show these requests (ids separated by commas, with or without "chatcmpl-"):
    /// convert writes only their traces, stats lists them one by one; the statistics
    /// are over all requests
    #[arg(
        long = "filter-reqids",
        visible_alias = "select-reqids",
        value_name = "ID,ID",
        value_delimiter = ','
    )]
    filter_reqids: Vec<String>,
}

impl Requests {
    /// The ids that were chosen.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &str> {
        let ids = self.filter_reqids.iter().map(|id| id.trim());
        ids.filter(|id| !id.is_empty())
    }
}

fn clock_mode(text: &str) -> Result<Mode, &'static str> {
    match text {
        "auto" => Ok(Mode::Auto),
        "as-is" => Ok(Mode::AsIs),
        _ => Err("not auto or as-is"),
    }
}

/// A progress bar on stderr; nothing where stderr is no terminal.
pub(crate) fn bar(total: u64, template: &str, quiet: bool) -> ProgressBar {
    let target = if quiet {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    // The templates are ours; a wrong one would show the default bar.
    bar.set_style(ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
