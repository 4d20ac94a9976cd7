//! `omnitrace replay`: what the logs hold, to a Collector, with its original
//! times and ids.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use omnitrace::Vocabulary;
use omnitrace::config::ExporterConfig;
use omnitrace::delivery::otlp::{ExportError, ExporterError, OtlpExporter};
use omnitrace::span::{Source, Span};
use omnitrace::value::Attribute;

use crate::assemble;
use crate::jaeger::span::service_name;
use crate::reader::Log;

/// Spans in one request.
const BATCH: usize = 512;
/// Attempts at one batch before giving up.
const ATTEMPTS: u32 = 6;
/// Longest pause between two attempts, whatever Retry-After says.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Pause after the first failed attempt; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// What to replay.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Also what a Collector has taken already.
    pub all: bool,
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
    /// The runtime cannot start.
    #[error("the replay cannot start: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Sends the spans of `log`; `progress` is told how many each time.
pub fn replay(
    vocabulary: &Arc<Vocabulary>,
    log: &Log,
    config: &ExporterConfig,
    options: Options,
    progress: &dyn Fn(usize),
) -> Result<Summary, ReplayError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut sender = Sender {
            vocabulary,
            config,
            targets: BTreeMap::new(),
            summary: Summary::default(),
            progress,
        };
        for request in &log.requests {
            let all = assemble::spans(vocabulary, request);
            let total = all.len();
            let spans = if options.all {
                all
            } else {
                assemble::undelivered(vocabulary, request)
            };
            sender.summary.skipped += total - spans.len();
            sender.send(log, options, spans).await?;
        }
        sender.send(log, options, log.spans.clone()).await?;
        sender.finish().await
    })
}

/// The exporter of one source, with the spans that wait for it.
struct Target {
    exporter: OtlpExporter,
    batch: Vec<Span>,
}

struct Sender<'a> {
    vocabulary: &'a Vocabulary,
    config: &'a ExporterConfig,
    targets: BTreeMap<Arc<Source>, Target>,
    summary: Summary,
    progress: &'a dyn Fn(usize),
}

impl Sender<'_> {
    async fn send(
        &mut self,
        log: &Log,
        options: Options,
        spans: Vec<Span>,
    ) -> Result<(), ReplayError> {
        for span in spans {
            if !options.all && log.exported.contains(&span.span_id) {
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
            if target.batch.len() >= BATCH {
                let batch = std::mem::take(&mut target.batch);
                self.export(&source, batch).await?;
            }
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Summary, ReplayError> {
        let sources: Vec<_> = self.targets.keys().cloned().collect();
        for source in sources {
            let batch = self
                .targets
                .get_mut(&source)
                .map(|t| std::mem::take(&mut t.batch));
            self.export(&source, batch.unwrap_or_default()).await?;
        }
        Ok(self.summary)
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
        Ok(())
    }
}

fn resource(vocabulary: &Vocabulary, source: &Source) -> Vec<Attribute> {
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
