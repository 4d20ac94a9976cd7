//! Reading logs with a progress bar, and saying what could not be read.

use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use omnitrace_offline::clock::Mode;
use omnitrace_offline::reader::{self, Log, ReadError};

/// Reads the logs below `path`; problems go to stderr.
pub(crate) fn read(path: &Path, quiet: bool) -> Result<Log, ReadError> {
    let total = reader::files(path)?.iter().map(|(_, size)| size).sum();
    let bar = bar(
        total,
        "reading {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        quiet,
    );
    let log = reader::read(path, &|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let log = log?;
    for problem in log.report.problems() {
        eprintln!("omnitrace: {problem}");
    }
    Ok(log)
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

/// `--clock` of the commands that read logs.
pub(crate) fn clock_mode(text: &str) -> Result<Mode, &'static str> {
    match text {
        "auto" => Ok(Mode::Auto),
        "as-is" => Ok(Mode::AsIs),
        _ => Err("not auto or as-is"),
    }
}
