//! The legacy log as delivery's second way: lines, and whether they could be written.

use std::path::Path;
use std::sync::Arc;

use crate::assembler::LooseEvent;
use crate::config::{Config, LegacyLogMode};
use crate::id::SpanId;
use crate::legacy_log::{self, Entry, LegacyLog, LineFormatter};
use crate::span::Span;
use crate::vocabulary::Vocabulary;

pub(super) struct Fallback {
    pub(super) mode: LegacyLogMode,
    vocabulary: Arc<Vocabulary>,
    log: LegacyLog,
    lines: LineFormatter,
    /// Lines of events as they happen, between two writes.
    buffer: Vec<u8>,
    is_failing: bool,
    /// Lines that go with their events have been lost: a spilled span is written
    /// whole.
    has_gaps: bool,
}

impl Fallback {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            mode: config.legacy_log,
            vocabulary: Arc::clone(&config.vocabulary),
            log: LegacyLog::new(
                config.legacy_log_directory.clone(),
                config.legacy_log_max_bytes,
            ),
            lines: LineFormatter::default(),
            buffer: Vec::new(),
            is_failing: false,
            has_gaps: false,
        }
    }

    pub(super) fn directory(&self) -> &Path {
        self.log.directory()
    }

    pub(super) fn is_failing(&self) -> bool {
        self.is_failing
    }

    pub(super) fn has_gaps(&self) -> bool {
        self.has_gaps
    }

    /// Keeps one line for [`Self::flush`].
    pub(super) fn buffer(&mut self, entry: Entry<'_>) {
        self.lines.entry(entry, &mut self.buffer);
    }

    /// Keeps the lines of a whole span for [`Self::flush`].
    pub(super) fn buffer_span(&mut self, span: &Span) {
        for entry in legacy_log::span_entries(&self.vocabulary, span) {
            self.lines.entry(entry, &mut self.buffer);
        }
    }

    /// Writes the lines that were kept.
    pub(super) fn flush(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.has_gaps |= !self.append(&buffer);
        self.buffer = buffer;
        self.buffer.clear();
    }

    /// Writes the lines of spans, and events without a span among them, in the order
    /// of their times; whether that could be done.
    pub(super) fn write(&mut self, spans: &[Span], loose: &[LooseEvent]) -> bool {
        let entries = spans
            .iter()
            .flat_map(|span| legacy_log::span_entries(&self.vocabulary, span))
            .chain(loose.iter().map(legacy_log::loose_entry))
            .collect();
        let mut lines = Vec::with_capacity(spans.len() * 256);
        for entry in legacy_log::merge(entries) {
            self.lines.entry(entry, &mut lines);
        }
        self.append(&lines)
    }

    /// Notes that a Collector has these spans.
    pub(super) fn write_exported(&mut self, now: u64, spans: &[SpanId]) {
        let mut lines = Vec::new();
        self.lines.exported(now, spans, &mut lines);
        self.append(&lines);
    }

    /// What becomes of spans that no Collector takes, for a message.
    pub(super) fn fate(&self) -> String {
        match self.mode {
            LegacyLogMode::Off => "are dropped, the legacy log is off".to_owned(),
            _ if self.is_failing => {
                "are lost unless the legacy log can be written again".to_owned()
            }
            _ => format!(
                "go to the legacy log in {}, from where `omnitrace replay` can send them",
                self.directory().display()
            ),
        }
    }

    fn append(&mut self, lines: &[u8]) -> bool {
        if lines.is_empty() {
            return true;
        }
        let result = self.log.append(lines);
        let directory = self.directory().display();
        match &result {
            Ok(()) if self.is_failing => {
                tracing::warn!("legacy log in {directory} can be written again");
            }
            Err(error) if !self.is_failing => tracing::error!(
                "legacy log in {directory} cannot be written: {error}; \
                 set TRACE_OUTPUT_DIRECTORY to a writable directory"
            ),
            _ => {}
        }
        self.is_failing = result.is_err();
        !self.is_failing
    }
}
