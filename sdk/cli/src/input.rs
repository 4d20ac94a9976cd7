//! Reading logs with a progress bar, and saying what could not be read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use omnitrace::Vocabulary;
use omnitrace_offline::clock::Mode;
use omnitrace_offline::ingest::{self, ReadError, Settings, Store};

use crate::say::say;

/// Reads the logs below `path`; problems go to stderr.
pub(crate) fn ingest(path: &Path, settings: Settings<'_>, quiet: bool) -> Result<Store, ReadError> {
    let bar = reading_bar(path, quiet)?;
    let store = ingest::ingest(&Vocabulary::of_logs(), path, settings, &|bytes| {
        bar.inc(bytes)
    });
    bar.finish_and_clear();
    let store = store?;
    store.report().problems().iter().for_each(say);
    if !quiet {
        store.report().notes().iter().for_each(say);
    }
    Ok(store)
}

fn reading_bar(path: &Path, quiet: bool) -> Result<ProgressBar, ReadError> {
    let total = ingest::find(path)?.iter().map(|(_, size)| size).sum();
    Ok(bar(
        total,
        "reading {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        quiet,
    ))
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

/// `--clock` of the commands that read logs.
pub(crate) fn clock_mode(text: &str) -> Result<Mode, &'static str> {
    match text {
        "auto" => Ok(Mode::Auto),
        "as-is" => Ok(Mode::AsIs),
        _ => Err("not auto or as-is"),
    }
}

/// Where events wait that memory does not hold: the folder that was named, else that of
/// the output, which must have room for much more.
pub(crate) fn temporary(named: Option<&Path>, output: &Path) -> PathBuf {
    match (named, output.parent()) {
        (Some(folder), _) => folder.to_owned(),
        _ if output == Path::new("-") || output.exists() && !output.is_file() => {
            std::env::temp_dir()
        }
        (None, Some(folder)) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
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
