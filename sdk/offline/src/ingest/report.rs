//! What was read and what could not be.

use std::collections::BTreeMap;

use omnitrace::legacy_log::LineError;

/// Why a line that looks like one of ours was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Reason {
    /// It is cut off, or not one.
    #[error(transparent)]
    Line(#[from] LineError),
    /// A finished span without valid ids.
    #[error("a span without valid trace and span ids")]
    BadSpan,
    /// More names than any log has.
    #[error("more than 60000 different action names or nodes")]
    TooManyNames,
    /// A request id of more than 64 kB.
    #[error("the request id is too long")]
    TooLong,
}

/// What was read and what could not be.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Files read.
    pub files: usize,
    /// Lines in them.
    pub lines: u64,
    /// Bytes in them, uncompressed.
    pub bytes: u64,
    /// Action lines taken.
    pub events: u64,
    /// Lines that look like actions and are not: how many, and the first one.
    pub unreadable: BTreeMap<Reason, (u64, String)>,
    /// Files that could not be read to their end, with the reason.
    pub failed: Vec<String>,
    /// Chrome traces, as SGLang's logger writes them beside its lines: how many, and the
    /// first one.
    pub skipped: Option<(usize, String)>,
}

impl Report {
    /// What a person should know, a line each.
    pub fn problems(&self) -> Vec<String> {
        let unreadable = self.unreadable.iter().map(|(error, (count, first))| {
            let lines = if *count == 1 { "line" } else { "lines" };
            format!("{count} {lines} left out: {error} (first at {first})")
        });
        unreadable.chain(self.failed.iter().cloned()).collect()
    }

    /// What is as it should be and may surprise nevertheless, a line each.
    pub fn notes(&self) -> Vec<String> {
        let note = |(count, first): &(usize, String)| {
            let files = if *count == 1 {
                "Chrome trace"
            } else {
                "Chrome traces"
            };
            format!(
                "{count} {files} left out, which only show what other files hold (first: {first})"
            )
        };
        self.skipped.iter().map(note).collect()
    }
}
