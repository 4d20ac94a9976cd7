//! Delivery: Collector, else legacy log, else a counted drop.
//!
//! ```text
//!  span ─► open batch ─► waiting ─► on the wire ─┬─► exported
//!                           ▲                    └─ refused ─────────┐
//!                           └── may be retried ◄─┘                   ▼
//!                           └── waited too long, or too much waits ─► legacy log ─► dropped
//! ```
//! A batch stays together and is bytes from the start. Everything here runs on the
//! exporter thread.

mod batch;
mod console;
mod envelopes;
mod fallback;
#[cfg(test)]
mod finished_tests;
mod origins;
pub mod otlp;
pub(crate) mod own_metrics;
mod stats;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::assembler::{FinishedSpan, LooseEvent, PhaseSpan};
use crate::config::{Config, LegacyLogMode};
use crate::decode;
use crate::legacy_log::Entry;
use crate::queue::DecodedSpan;
use crate::scopes::Scopes;
use crate::span::{Place, ScopeId, Source, Span};
use crate::value::Attribute;

use batch::{Batch, Memory, OpenBatch};
use console::Console;
use envelopes::Envelopes;
use fallback::Fallback;
use otlp::{ExportError, Taken};
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

/// Batches that wait where they were made: with more, the Collector does not keep up
/// or is away, and the rest may wait for long.
const KEPT_IN_PLACE: usize = 8;

/// Spans that are made messages again at once for the legacy log.
const SPILLED_AT_ONCE: usize = 256;

/// Reason for a drop: the Collector and the log both failed.
const NOT_DELIVERED: &str = "not_delivered";
/// Reason for a drop: the Collector took the batch but not all of its spans.
const REJECTED: &str = "rejected";
/// Reason for a drop: the legacy log could not be written.
const LOG_FAILED: &str = "legacy_log_failed";

pub(crate) struct Delivery {
    has_exporter: bool,
    console: Option<Console>,
    schedule_delay: Duration,
    export_timeout: Duration,
    max_batch: usize,
    max_waiting_spans: usize,
    max_waiting_bytes: usize,
    log: Fallback,
    source: Arc<Source>,
    envelopes: Envelopes,
    open: OpenBatch,
    /// Of the last batch that a Collector has taken.
    spare: Memory,
    waiting: VecDeque<Arc<Batch>>,
    on_wire: Option<Arc<Batch>>,
    /// Events that no span holds share the fate of the spans of their time.
    loose: VecDeque<(Instant, LooseEvent)>,
    failing: Option<Failing>,
    /// The host knows that spans do not get through.
    told: bool,
    pub(crate) stats: Stats,
}

/// The Collector has not taken the last batch.
struct Failing {
    attempts: u32,
    next_attempt: Instant,
}

impl Delivery {
    pub(crate) fn new(
        config: &Config,
        source: Arc<Source>,
        resource: &[Attribute],
        scopes: Arc<Scopes>,
    ) -> Self {
        let envelopes = Envelopes::new(resource, scopes);
        Self {
            has_exporter: config.exporter.is_some(),
            console: Console::new(config.console, resource),
            schedule_delay: config.schedule_delay,
            export_timeout: config.export_timeout,
            max_batch: config.max_batch,
            max_waiting_spans: config.max_waiting_spans,
            max_waiting_bytes: config.max_waiting_bytes,
            log: Fallback::new(config),
            source,
            open: OpenBatch::new(&envelopes, Memory::default()),
            envelopes,
            spare: Memory::default(),
            waiting: VecDeque::new(),
            on_wire: None,
            loose: VecDeque::new(),
            failing: None,
            told: false,
            stats: Stats::default(),
        }
    }

    /// Whether every event is to be written as it happens.
    pub(crate) fn logs_events(&self) -> bool {
        self.log.mode == LegacyLogMode::Always
    }

    /// Keeps one line for [`Self::end_round`].
    pub(crate) fn buffer_event(&mut self, entry: Entry<'_>) {
        self.log.buffer(entry);
    }

    /// Takes a finished free span as it comes out of the queue.
    pub(crate) fn accept_free(&mut self, span: &DecodedSpan<'_>, place: &Place, now: Instant) {
        self.stats.created += 1;
        self.open.push_free(span, place, now);
        if self.logs_events() {
            // A phase's lines are written as its events come; a free span has none
            // before this.
            let scope = Some(self.envelopes.scopes().get(span.scope));
            let scope = scope.filter(|_| span.scope != ScopeId::default());
            let span = decode::free_span(span, place, scope, &self.source);
            self.log.buffer_span(&span);
        }
        self.seal_if_full(now);
    }

    /// Takes a finished span of a phase as it comes out of the assembler.
    pub(crate) fn accept_phase(&mut self, span: PhaseSpan<'_>, now: Instant) {
        self.stats.created += 1;
        self.open.push_phase(span, now);
        self.seal_if_full(now);
    }

    /// Takes a finished span of a phase that has come past the assembler's visits.
    pub(crate) fn accept_finished(&mut self, span: &FinishedSpan<'_>, now: Instant) {
        self.stats.created += 1;
        self.open.push_finished(span, now);
        self.seal_if_full(now);
    }

    /// Takes an event that no span holds.
    pub(crate) fn accept_loose(&mut self, event: LooseEvent, now: Instant) {
        self.stats.events_loose += 1;
        if self.log.mode == LegacyLogMode::Fallback {
            // Without a span to go with, the oldest are let go.
            if self.loose.len() >= MAX_LOOSE {
                self.loose.pop_front();
            }
            self.loose.push_back((now, event));
        }
    }

    /// To be called when there is nothing more to take for now.
    pub(crate) fn end_round(&mut self, now: Instant) {
        self.log.flush();
        self.keep_bounds(now);
    }

    fn seal_if_full(&mut self, now: Instant) {
        if self.open.len() >= self.max_batch || self.open.is_full() {
            self.seal();
            // One round may bring many batches.
            self.log.flush();
            self.keep_bounds(now);
        }
    }

    fn seal(&mut self) {
        let memory = std::mem::take(&mut self.spare);
        let Some(batch) = self.open.seal(&mut self.envelopes, memory) else {
            return;
        };
        if let Some(console) = &mut self.console {
            console.write(&batch.decode(&self.source));
            if console.delivers() {
                self.stats.exported += batch.len() as u64;
                self.loose_until(&batch);
                return;
            }
        }
        let batch = match self.waiting.len() {
            0..KEPT_IN_PLACE => batch,
            _ => {
                let (batch, memory) = batch.moved_out();
                self.keep_spare(memory);
                batch
            }
        };
        self.waiting.push_back(Arc::new(batch));
    }

    /// Sends to the log what has waited too long or is too much.
    fn keep_bounds(&mut self, now: Instant) {
        if !self.has_exporter {
            self.spill_waiting();
            return;
        }
        while let Some(oldest) = self.waiting.front() {
            let waited = now.saturating_duration_since(oldest.since);
            let expired = self.failing.is_some() && waited >= self.export_timeout;
            let batches = || self.waiting.iter().chain(&self.on_wire);
            let spans: usize = batches().map(|b| b.len()).sum();
            let bytes: usize = batches().map(|b| b.memory()).sum();
            let too_much = spans + self.open.len() > self.max_waiting_spans
                || bytes + self.open.memory() > self.max_waiting_bytes;
            if !expired && !too_much {
                break;
            }
            self.spill_first();
        }
    }

    fn spill_first(&mut self) {
        if let Some(batch) = self.waiting.pop_front() {
            self.spill(&batch);
            self.reuse(batch);
        }
    }

    /// The next batch takes the memory of one that has gone.
    fn reuse(&mut self, batch: Arc<Batch>) {
        if let Some(batch) = Arc::into_inner(batch) {
            self.keep_spare(batch.into_memory());
        }
    }

    fn keep_spare(&mut self, memory: Memory) {
        if !memory.is_none() {
            self.spare = memory;
        }
    }

    /// Gives up on the Collector for everything that waits.
    pub(crate) fn spill_waiting(&mut self) {
        self.seal();
        while !self.waiting.is_empty() {
            self.spill_first();
        }
        let delivers = self.console.as_ref().is_some_and(Console::delivers);
        if self.failing.is_some() || !self.has_exporter && !delivers {
            let loose: Vec<_> = self.loose.drain(..).map(|(_, event)| event).collect();
            self.log.write(&[], &loose);
        }
    }

    /// Gives up on the Collector for the batch on the wire.
    pub(crate) fn spill_wire(&mut self) {
        if let Some(batch) = self.on_wire.take() {
            self.spill(&batch);
        }
    }

    /// The same, because the Collector has not answered in the time there is.
    pub(crate) fn abandon_wire(&mut self) {
        self.stats.last_error = Some("no answer in time".to_owned());
        self.spill_wire();
    }

    /// Takes out the events without a span that came before the end of `batch`.
    fn loose_until(&mut self, batch: &Batch) -> Vec<LooseEvent> {
        let count = self
            .loose
            .iter()
            .take_while(|(since, _)| *since <= batch.until)
            .count();
        self.loose.drain(..count).map(|(_, event)| event).collect()
    }

    fn spill(&mut self, batch: &Batch) {
        let loose = self.loose_until(batch);
        match self.log.mode {
            LegacyLogMode::Off => self.book(batch.len() as u64, Some(NOT_DELIVERED)),
            // Their lines were written as their events came.
            LegacyLogMode::Always if !self.log.has_gaps() => self.book(batch.len() as u64, None),
            _ => self.spill_to_log(batch, &loose),
        }
        // A log that cannot be written has been spoken of already.
        if self.has_exporter && !self.log.is_failing() && !std::mem::replace(&mut self.told, true) {
            let why = self.stats.last_error.as_deref();
            tracing::warn!(
                "spans do not reach the Collector ({}): they {}",
                why.unwrap_or("too many wait for it"),
                self.log.fate()
            );
        }
    }

    /// A few spans at a time: as such they take many times their bytes.
    fn spill_to_log(&mut self, batch: &Batch, mut loose: &[LooseEvent]) {
        let source = Arc::clone(&self.source);
        let mut spans = batch.spans(&source);
        let mut left = batch.len();
        while left > 0 {
            let some: Vec<Span> = spans.by_ref().take(SPILLED_AT_ONCE).collect();
            let written = self.log.write(&some, loose) && !some.is_empty();
            // What cannot be read again is as lost as what cannot be written.
            let count = if some.is_empty() { left } else { some.len() };
            self.book(count as u64, (!written).then_some(LOG_FAILED));
            loose = &[];
            left -= count;
        }
    }

    /// Books spans as logged, or as dropped for a reason.
    fn book(&mut self, spans: u64, dropped: Option<&'static str>) {
        match dropped {
            None => self.stats.logged += spans,
            Some(reason) => *self.stats.dropped.entry(reason).or_default() += spans,
        }
    }

    /// The next batch to send, if it is time; `all` asks for it at once. It is
    /// kept here too until [`Self::settle`].
    pub(crate) fn next_batch(&mut self, now: Instant, all: bool) -> Option<Arc<Batch>> {
        if !self.has_exporter || self.on_wire.is_some() {
            return None;
        }
        let paused = self.failing.as_ref().is_some_and(|f| now < f.next_attempt);
        if paused && !all {
            return None;
        }
        let due = self.open.since().is_some_and(|since| {
            all || now.saturating_duration_since(since) >= self.schedule_delay
        });
        if due && self.waiting.is_empty() {
            self.seal();
        }
        self.on_wire = self.waiting.pop_front();
        self.on_wire.clone()
    }

    /// Books the outcome of the batch on the wire.
    pub(crate) fn settle(&mut self, result: Result<Taken, ExportError>, now: Instant, wall: u64) {
        let Some(batch) = self.on_wire.take() else {
            return;
        };
        match result {
            Ok(taken) => {
                self.book_taken(&batch, &taken, wall);
                self.reuse(batch);
            }
            Err(ExportError::Refused { reason }) => {
                self.stats.last_error = Some(reason);
                self.spill(&batch);
            }
            Err(ExportError::Retryable { reason, after }) => {
                let attempts = self
                    .failing
                    .as_ref()
                    .map_or(1, |f| f.attempts.saturating_add(1));
                let pause = after
                    .map(|a| a.min(LONGEST_RETRY_AFTER))
                    .unwrap_or_else(|| jittered(attempts, wall));
                if attempts == 2 && !std::mem::replace(&mut self.told, true) {
                    tracing::warn!(
                        "the Collector cannot be reached ({reason}): spans wait up to {:?}, then they {}",
                        self.export_timeout,
                        self.log.fate(),
                    );
                }
                self.stats.last_error = Some(reason);
                self.failing = Some(Failing {
                    attempts,
                    next_attempt: now + pause,
                });
                self.waiting.push_front(batch);
                self.keep_bounds(now);
            }
        }
    }

    fn book_taken(&mut self, batch: &Batch, taken: &Taken, wall: u64) {
        let spans = batch.len() as u64;
        let rejected = taken.rejected.min(spans);
        self.stats.exported += spans - rejected;
        if rejected > 0 {
            // Which ones it does not say; sending them again is forbidden (OTLP
            // specification, "Partial Success").
            tracing::warn!(
                "the Collector has rejected {rejected} spans: {}",
                taken.reason
            );
            self.book(rejected, Some(REJECTED));
        }
        self.loose_until(batch);
        self.stats.last_error = None;
        self.failing = None;
        if std::mem::take(&mut self.told) {
            tracing::warn!(
                "the Collector takes spans again; {} spans are in the legacy log in {}",
                self.stats.logged,
                self.log.directory().display(),
            );
        }
        if self.logs_events() {
            self.log.write_exported(wall, &batch.span_ids());
        }
    }

    /// When there is next something to do without new spans.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        if self.on_wire.is_some() {
            return None;
        }
        let due = match self.waiting.front() {
            Some(batch) => batch.since,
            None => self.open.since()? + self.schedule_delay,
        };
        Some(
            self.failing
                .as_ref()
                .map_or(due, |f| f.next_attempt.max(due)),
        )
    }

    /// Spans that wait for an answer.
    pub(crate) fn on_wire(&self) -> u64 {
        self.on_wire.as_ref().map_or(0, |batch| batch.len() as u64)
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// Spans that are neither exported nor logged nor dropped.
    pub(crate) fn in_flight(&self) -> usize {
        let batches = self.waiting.iter().chain(&self.on_wire);
        self.open.len() + batches.map(|b| b.len()).sum::<usize>()
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

#[cfg(test)]
mod tests;
