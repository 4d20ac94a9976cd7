//! `omnitrace replay`: what the logs hold, to a Collector, with its original
//! times and ids.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use omnitrace::Vocabulary;
use omnitrace::config::ExporterConfig;
use omnitrace::delivery::otlp::{ExportError, ExporterError, OtlpExporter};
use omnitrace::span::{Source, Span};
use omnitrace::value::Attribute;

use crate::assemble::{self, Bench};
use crate::ingest::{SpillError, Store};
use crate::jaeger::span::service_name;

mod progress;

pub use progress::{Position, StateError};

/// Spans in one request.
const BATCH: usize = 512;
/// Attempts at one batch before giving up.
const ATTEMPTS: u32 = 6;
/// Longest pause between two attempts, whatever Retry-After says.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Pause after the first failed attempt; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Traces after which what was sent is written down.
const CHECKPOINT: usize = 500;

/// What to replay.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Also what a Collector has taken already.
    pub all: bool,
    /// At most so many spans in a second.
    pub rate: Option<u32>,
    /// Leave out what comes before this and this itself: it has been sent.
    pub after: Option<Position>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Spans sent.
    pub sent: usize,
    /// Spans of these that the Collector has thrown away.
    pub rejected: usize,
    /// Spans left out because a Collector has taken them already.
    pub skipped: usize,
    /// Traces left out because an earlier replay had come that far.
    pub resumed: usize,
}

/// Why the replay ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The exporter cannot be made.
    #[error(transparent)]
    Exporter(#[from] ExporterError),
    /// A batch was not taken.
    #[error(
        "{sent} spans were sent, then {endpoint} did not take the next: {reason}; replaying again is safe, the ids are the same"
    )]
    Export {
        /// The endpoint.
        endpoint: String,
        /// Spans sent before.
        sent: usize,
        /// Its answer.
        reason: ExportError,
    },
    /// The events cannot be read back.
    #[error(transparent)]
    Spill(#[from] SpillError),
    /// It cannot be written down how far the replay has come.
    #[error(transparent)]
    State(#[from] StateError),
    /// The runtime cannot start.
    #[error("the replay cannot start: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Sends the spans of `store`, in the order of its traces; `progress` is told how many each
/// time, `reached` from time to time up to where all has been taken.
pub fn replay(
    vocabulary: &Arc<Vocabulary>,
    store: &Store,
    config: &ExporterConfig,
    options: Options,
    progress: &dyn Fn(usize),
    reached: &dyn Fn(Position) -> Result<(), StateError>,
) -> Result<Summary, ReplayError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut sender = Sender {
        vocabulary,
        store,
        config,
        options,
        targets: BTreeMap::new(),
        summary: Summary::default(),
        began: Instant::now(),
        progress,
    };
    runtime.block_on(async {
        let mut reader = store.reader();
        let mut bench = Bench::new(vocabulary);
        let mut unsaved = None;
        for number in 0..store.traces() {
            let position = store.position(number).map(Position::from);
            if position.is_some() && position <= options.after {
                sender.summary.resumed += 1;
                continue;
            }
            let content = reader.trace(number)?;
            for request in &content.requests {
                let mut spans = bench.spans(request);
                let total = spans.len();
                if !options.all {
                    assemble::retain_undelivered(vocabulary, request, &mut spans);
                }
                sender.summary.skipped += total - spans.len();
                sender.send(spans).await?;
            }
            sender.send(content.spans).await?;
            unsaved = position;
            if number % CHECKPOINT == CHECKPOINT - 1
                && let Some(position) = unsaved.take()
            {
                sender.flush().await?;
                reached(position)?;
            }
        }
        sender.flush().await?;
        if let Some(position) = unsaved {
            reached(position)?;
        }
        Ok(sender.summary)
    })
}

/// The exporter of one source, with the spans that wait for it.
struct Target {
    exporter: OtlpExporter,
    batch: Vec<Span>,
}

struct Sender<'a> {
    vocabulary: &'a Vocabulary,
    store: &'a Store,
    config: &'a ExporterConfig,
    options: Options,
    targets: BTreeMap<Arc<Source>, Target>,
    summary: Summary,
    began: Instant,
    progress: &'a dyn Fn(usize),
}

impl Sender<'_> {
    async fn send(&mut self, spans: Vec<Span>) -> Result<(), ReplayError> {
        let full = self
            .options
            .rate
            .map_or(BATCH, |rate| BATCH.min(rate as usize));
        for span in spans {
            if !self.options.all && self.store.is_exported(span.span_id) {
                self.summary.skipped += 1;
                continue;
            }
            let source = Arc::clone(&span.source);
            if !self.targets.contains_key(&source) {
                let resource = resource(self.vocabulary, &source);
                let exporter = OtlpExporter::new(self.config, Arc::clone(&source), &resource)?;
                self.targets.insert(
                    Arc::clone(&source),
                    Target {
                        exporter,
                        batch: Vec::new(),
                    },
                );
            }
            let Some(target) = self.targets.get_mut(&source) else {
                continue;
            };
            target.batch.push(span);
            if target.batch.len() >= full {
                let batch = std::mem::take(&mut target.batch);
                self.export(&source, batch).await?;
            }
        }
        Ok(())
    }

    /// Waits until no more than the rate has been sent since the beginning.
    async fn keep_rate(&self) {
        let Some(rate) = self.options.rate.filter(|rate| *rate > 0) else {
            return;
        };
        let due = Duration::from_secs_f64(self.summary.sent as f64 / f64::from(rate));
        tokio::time::sleep(due.saturating_sub(self.began.elapsed())).await;
    }

    /// Sends what waits.
    async fn flush(&mut self) -> Result<(), ReplayError> {
        let sources: Vec<_> = self.targets.keys().cloned().collect();
        for source in sources {
            let batch = self
                .targets
                .get_mut(&source)
                .map(|t| std::mem::take(&mut t.batch));
            self.export(&source, batch.unwrap_or_default()).await?;
        }
        Ok(())
    }

    async fn export(&mut self, source: &Arc<Source>, spans: Vec<Span>) -> Result<(), ReplayError> {
        let Some(target) = self.targets.get(source) else {
            return Ok(());
        };
        let Some(batch) = target.exporter.batch(spans) else {
            return Ok(());
        };

        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        let taken = loop {
            match target.exporter.export(&batch).await {
                Ok(taken) => break taken,
                Err(ExportError::Retryable { after, .. }) if attempt < ATTEMPTS => {
                    tokio::time::sleep(after.unwrap_or(pause).min(LONGEST_PAUSE)).await;
                    pause *= 2;
                    attempt += 1;
                }
                Err(reason) => {
                    return Err(ReplayError::Export {
                        endpoint: self.config.endpoint.clone(),
                        sent: self.summary.sent,
                        reason,
                    });
                }
            }
        };
        self.summary.rejected += usize::try_from(taken.rejected).unwrap_or(0);
        self.summary.sent += batch.len();
        (self.progress)(batch.len());
        self.keep_rate().await;
        Ok(())
    }
}

pub(crate) fn resource(vocabulary: &Vocabulary, source: &Source) -> Vec<Attribute> {
    let mut attributes = vec![Attribute::new(
        "service.name",
        service_name(vocabulary, &source.role).as_str(),
    )];
    if !source.node.is_empty() {
        attributes.push(Attribute::new("host.ip", &*source.node));
        attributes.push(Attribute::new("service.instance.id", &*source.node));
    }
    attributes.push(Attribute::new("telemetry.sdk.name", "omnitrace"));
    attributes
}
