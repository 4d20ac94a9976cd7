//! Delivery: Collector, else legacy log, else a counted drop.
//!
//! ```text
//!  span ─► waiting ─► on the wire ─┬─► exported
//!             ▲                    └─ refused ─────────┐
//!             └── may be retried ◄─┘                   ▼
//!             └── waited too long, or too much waits ─► legacy log ─► dropped
//! ```
//! Everything here runs on the exporter thread.

pub mod otlp;
mod stats;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::assembler::LooseEvent;
use crate::config::{Config, LegacyLogMode};
use crate::legacy_log::{self, Entry, LegacyLog, LineFormatter};
use crate::span::Span;
use crate::vocabulary::Vocabulary;

use otlp::ExportError;
pub use stats::Stats;

/// Pause after the first failed attempt; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A Collector that is back is noticed within this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Retry-After is honoured up to this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// Events without a span that wait to learn whether a Collector takes the spans
/// of their time.
const MAX_LOOSE: usize = 65_536;

/// Reason for a drop: the Collector and the log both failed.
const NOT_DELIVERED: &str = "not_delivered";
/// Reason for a drop: the legacy log could not be written.
const LOG_FAILED: &str = "legacy_log_failed";

pub(crate) struct Delivery {
    vocabulary: Arc<Vocabulary>,
    has_exporter: bool,
    schedule_delay: Duration,
    export_timeout: Duration,
    max_batch: usize,
    max_waiting_spans: usize,
    max_waiting_bytes: usize,
    mode: LegacyLogMode,
    log: LegacyLog,
    lines: LineFormatter,
    buffer: Vec<u8>,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    on_wire: Vec<Waiting>,
    /// Events that no span holds share the fate of the spans of their time.
    loose: VecDeque<(Instant, LooseEvent)>,
    failing: Option<Failing>,
    log_failing: bool,
    pub(crate) stats: Stats,
}

struct Waiting {
    span: Span,
    since: Instant,
}

/// The Collector has not taken the last batch.
struct Failing {
    attempts: u32,
    next_attempt: Instant,
}

impl Delivery {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            vocabulary: Arc::clone(&config.vocabulary),
            has_exporter: config.exporter.is_some(),
            schedule_delay: config.schedule_delay,
            export_timeout: config.export_timeout,
            max_batch: config.max_batch,
            max_waiting_spans: config.max_waiting_spans,
            max_waiting_bytes: config.max_waiting_bytes,
            mode: config.legacy_log,
            log: LegacyLog::new(
                config.legacy_log_directory.clone(),
                config.legacy_log_max_bytes,
            ),
            lines: LineFormatter::default(),
            buffer: Vec::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            on_wire: Vec::new(),
            loose: VecDeque::new(),
            failing: None,
            log_failing: false,
            stats: Stats::default(),
        }
    }

    /// Whether every event is to be written as it happens.
    pub(crate) fn logs_events(&self) -> bool {
        self.mode == LegacyLogMode::Always
    }

    /// Puts one line in the buffer; [`Self::write_events`] writes them.
    pub(crate) fn buffer_event(&mut self, entry: Entry<'_>) {
        self.lines.entry(entry, &mut self.buffer);
    }

    /// Writes the buffered event lines. Losing them loses no span: the books
    /// speak of spans, and these lines are a second copy.
    pub(crate) fn write_events(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.append(&buffer);
        self.buffer = buffer;
        self.buffer.clear();
    }

    /// Takes finished spans and events that no span holds.
    pub(crate) fn accept(&mut self, spans: Vec<Span>, loose: Vec<LooseEvent>, now: Instant) {
        self.stats.created += spans.len() as u64;
        self.stats.events_loose += loose.len() as u64;
        for span in spans {
            if self.mode == LegacyLogMode::Always && span.origin.is_none() {
                // A phase's lines were written as its events came; a free span
                // has none before this.
                for entry in legacy_log::span_entries(&self.vocabulary, &span) {
                    self.lines.entry(entry, &mut self.buffer);
                }
            }
            self.waiting_bytes += span.memory();
            self.waiting.push_back(Waiting { span, since: now });
        }
        if self.mode == LegacyLogMode::Fallback {
            self.loose
                .extend(loose.into_iter().map(|event| (now, event)));
            // Without a span to go with, the oldest are let go.
            let surplus = self.loose.len().saturating_sub(MAX_LOOSE);
            self.loose.drain(..surplus);
        }
        self.write_events();
        self.keep_bounds(now);
    }

    /// Sends to the log what has waited too long or is too much.
    fn keep_bounds(&mut self, now: Instant) {
        if !self.has_exporter {
            self.spill_waiting();
            return;
        }
        if self.failing.is_some() {
            let expired = self
                .waiting
                .iter()
                .take_while(|w| now.saturating_duration_since(w.since) >= self.export_timeout)
                .count();
            self.spill_first(expired);
        }
        let too_many = self.waiting.len().saturating_sub(self.max_waiting_spans);
        self.spill_first(too_many);
        if self.waiting_bytes > self.max_waiting_bytes {
            // Half at once: spilling span by span would open and close the log.
            self.spill_first(self.waiting.len().div_ceil(2));
        }
    }

    fn spill_first(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let spans: Vec<Waiting> = self.waiting.drain(..count).collect();
        self.waiting_bytes -= spans.iter().map(|w| w.span.memory()).sum::<usize>();
        self.spill(&spans);
    }

    /// Gives up on the Collector for everything that waits.
    pub(crate) fn spill_waiting(&mut self) {
        self.spill_first(self.waiting.len());
    }

    /// Gives up on the Collector for the batch on the wire.
    pub(crate) fn spill_wire(&mut self) {
        let spans = std::mem::take(&mut self.on_wire);
        self.spill(&spans);
    }

    /// Takes out the events without a span up to the latest of `spans`.
    fn loose_until(&mut self, spans: &[Waiting]) -> Vec<LooseEvent> {
        let latest = spans.iter().map(|w| w.since).max();
        let count = self
            .loose
            .iter()
            .take_while(|(since, _)| Some(*since) <= latest)
            .count();
        self.loose.drain(..count).map(|(_, event)| event).collect()
    }

    fn spill(&mut self, spans: &[Waiting]) {
        if spans.is_empty() {
            return;
        }
        let loose = self.loose_until(spans);
        let count = spans.len() as u64;
        let reason = match self.mode {
            LegacyLogMode::Off => Some(NOT_DELIVERED),
            LegacyLogMode::Always if self.log_failing => Some(LOG_FAILED),
            LegacyLogMode::Always => None,
            LegacyLogMode::Fallback => {
                let mut lines = Vec::with_capacity(spans.len() * 256);
                let entries = spans
                    .iter()
                    .flat_map(|w| legacy_log::span_entries(&self.vocabulary, &w.span))
                    .chain(loose.iter().map(legacy_log::loose_entry))
                    .collect();
                for entry in legacy_log::merge(entries) {
                    self.lines.entry(entry, &mut lines);
                }
                (!self.append(&lines)).then_some(LOG_FAILED)
            }
        };
        match reason {
            None => self.stats.logged += count,
            Some(reason) => *self.stats.dropped.entry(reason).or_default() += count,
        }
    }

    fn append(&mut self, lines: &[u8]) -> bool {
        if lines.is_empty() {
            return true;
        }
        let result = self.log.append(lines);
        let directory = self.log.directory().display();
        match result {
            Ok(()) => {
                if std::mem::take(&mut self.log_failing) {
                    tracing::warn!("legacy log in {directory} can be written again");
                }
                true
            }
            Err(error) => {
                if !self.log_failing {
                    tracing::error!(
                        "legacy log in {directory} cannot be written: {error}; set TRACE_OUTPUT_DIRECTORY to a writable directory"
                    );
                }
                self.log_failing = true;
                false
            }
        }
    }

    /// The next batch to send, if it is time; `all` asks for it at once. The
    /// spans stay here until [`Self::settle`].
    pub(crate) fn next_batch(&mut self, now: Instant, all: bool) -> Option<Vec<Span>> {
        let oldest = self.waiting.front()?;
        if !self.has_exporter || !self.on_wire.is_empty() {
            return None;
        }
        let due = all
            || self.waiting.len() >= self.max_batch
            || now.saturating_duration_since(oldest.since) >= self.schedule_delay;
        let paused = self.failing.as_ref().is_some_and(|f| now < f.next_attempt);
        if !due || (paused && !all) {
            return None;
        }
        let count = self.waiting.len().min(self.max_batch);
        self.on_wire = self.waiting.drain(..count).collect();
        self.waiting_bytes -= self.on_wire.iter().map(|w| w.span.memory()).sum::<usize>();
        Some(self.on_wire.iter().map(|w| w.span.clone()).collect())
    }

    /// Books the outcome of the batch on the wire.
    pub(crate) fn settle(&mut self, result: Result<(), ExportError>, now: Instant, wall: u64) {
        match result {
            Ok(()) => {
                let taken = std::mem::take(&mut self.on_wire);
                self.stats.exported += taken.len() as u64;
                self.loose_until(&taken);
                self.stats.last_error = None;
                if let Some(failing) = self.failing.take()
                    && failing.attempts > 1
                {
                    tracing::warn!(
                        "the Collector takes spans again after {} failed attempts; {} spans are in the legacy log in {}",
                        failing.attempts,
                        self.stats.logged,
                        self.log.directory().display(),
                    );
                }
                if self.mode == LegacyLogMode::Always {
                    let ids: Vec<_> = taken.iter().map(|w| w.span.span_id).collect();
                    let mut lines = Vec::new();
                    self.lines.exported(wall, &ids, &mut lines);
                    self.append(&lines);
                }
            }
            Err(ExportError::Refused { reason }) => {
                tracing::error!(
                    "{} spans were refused for good: {reason}; they go to the legacy log",
                    self.on_wire.len()
                );
                self.stats.last_error = Some(reason);
                self.spill_wire();
            }
            Err(ExportError::Retryable { reason, after }) => {
                let attempts = self
                    .failing
                    .as_ref()
                    .map_or(1, |f| f.attempts.saturating_add(1));
                let pause = after
                    .map(|a| a.min(LONGEST_RETRY_AFTER))
                    .unwrap_or_else(|| jittered(attempts, wall));
                if attempts == 2 {
                    tracing::warn!(
                        "the Collector cannot be reached: {reason}; spans wait up to {:?} and then go to the legacy log in {}",
                        self.export_timeout,
                        self.log.directory().display(),
                    );
                }
                self.stats.last_error = Some(reason);
                self.failing = Some(Failing {
                    attempts,
                    next_attempt: now + pause,
                });
                let again = std::mem::take(&mut self.on_wire);
                self.waiting_bytes += again.iter().map(|w| w.span.memory()).sum::<usize>();
                for waiting in again.into_iter().rev() {
                    self.waiting.push_front(waiting);
                }
                self.keep_bounds(now);
            }
        }
    }

    /// When there is next something to do without new spans.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let oldest = self.waiting.front()?;
        if !self.on_wire.is_empty() {
            return None;
        }
        let due = oldest.since + self.schedule_delay;
        Some(
            self.failing
                .as_ref()
                .map_or(due, |f| f.next_attempt.max(due)),
        )
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// Spans that are neither exported nor logged nor dropped.
    pub(crate) fn in_flight(&self) -> usize {
        self.waiting.len() + self.on_wire.len()
    }
}

/// Exponential back-off with up to half of it taken off at random, so that many
/// processes do not come back at the same moment.
fn jittered(attempts: u32, seed: u64) -> Duration {
    let full = FIRST_PAUSE
        .saturating_mul(1 << attempts.min(10).saturating_sub(1))
        .min(LONGEST_PAUSE);
    let random = xxhash_rust::xxh3::xxh3_64(&seed.to_le_bytes()) % 1000;
    full.mul_f64(1.0 - random as f64 / 2000.0)
}
