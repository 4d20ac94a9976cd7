//! The way out: an exporter on a runtime of its own, which runs only while a batch
//! is on it.
//!
//! A host that becomes a daemon may close every descriptor there is, ours too, and
//! what it opens next has our numbers. So before anything uses one, a descriptor
//! that nobody else has tells whether ours are still ours. If they are not, all of
//! them are left alone, unclosed, and new ones are made.

use std::fs::{File, Metadata};
use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Runtime;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;

use crate::config::ExporterConfig;
use crate::delivery::otlp::{
    Batch, ExportError, ExporterError, MetricsExporter, OtlpExporter, Taken,
};
use crate::diagnostics;
use crate::span::Source;
use crate::value::Attribute;

type Outcome = Result<Taken, ExportError>;
type Sending = Pin<Box<dyn Future<Output = Outcome> + Send>>;

pub(super) struct Wire {
    config: ExporterConfig,
    metrics: Option<ExporterConfig>,
    source: Arc<Source>,
    resource: Vec<Attribute>,
    line: Line,
}

/// Everything that has descriptors.
struct Line {
    sending: Option<Sending>,
    exporter: Arc<OtlpExporter>,
    reporting: Option<Sending>,
    metrics: Option<Arc<MetricsExporter>>,
    runtime: Runtime,
    sentinel: Sentinel,
}

/// Why there is no way out.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error(transparent)]
    Exporter(#[from] ExporterError),
    #[error("the exporter's runtime cannot be made: {0}")]
    Runtime(#[from] std::io::Error),
}

impl Wire {
    pub(super) fn new(
        config: ExporterConfig,
        metrics: Option<ExporterConfig>,
        source: Arc<Source>,
        resource: Vec<Attribute>,
    ) -> Result<Self, WireError> {
        let line = Line::new(&config, metrics.as_ref(), &source, &resource)?;
        Ok(Self {
            config,
            metrics,
            source,
            resource,
            line,
        })
    }

    pub(super) fn is_busy(&self) -> bool {
        self.line.sending.is_some()
    }

    /// Whether there is something to carry on with.
    pub(super) fn is_moving(&self) -> bool {
        self.is_busy() || self.line.reporting.is_some()
    }

    /// Puts metrics on the wire, beside a batch that may be there; nothing moves until
    /// [`Self::carry_on`]. One request at a time: while there is one, this does nothing.
    pub(super) fn report(&mut self, request: ExportMetricsServiceRequest) {
        if !self.line.sentinel.is_there() {
            self.replace();
        }
        let line = &mut self.line;
        if let (Some(exporter), None) = (&line.metrics, &line.reporting) {
            let exporter = Arc::clone(exporter);
            line.reporting = Some(Box::pin(async move {
                look_after_connections().await;
                exporter.export(&request).await
            }));
        }
    }

    /// Puts a batch on the wire; nothing moves until [`Self::carry_on`].
    pub(super) fn send(&mut self, batch: Arc<Batch>) {
        if !self.line.sentinel.is_there() {
            self.replace();
        }
        let exporter = Arc::clone(&self.line.exporter);
        self.line.sending = Some(Box::pin(async move {
            // That a connection was closed meanwhile has not been seen yet.
            look_after_connections().await;
            exporter.export(&batch).await
        }));
    }

    /// Runs the connections, at most so long; the outcome if there is one.
    pub(super) fn carry_on(&mut self, longest: Duration) -> Option<Arrived> {
        if !self.line.sentinel.is_there() {
            let lost = self.line.sending.is_some();
            let error = Err(self.replace());
            return Some(if lost {
                Arrived::Batch(error)
            } else {
                Arrived::Metrics(error)
            });
        }
        let Line {
            sending,
            reporting,
            runtime,
            ..
        } = &mut self.line;
        let arrived = runtime.block_on(async {
            let either = poll_fn(|context| {
                if let Some(outcome) = poll(sending, context) {
                    return Poll::Ready(Arrived::Batch(outcome));
                }
                match poll(reporting, context) {
                    Some(outcome) => Poll::Ready(Arrived::Metrics(outcome)),
                    None => Poll::Pending,
                }
            });
            tokio::time::timeout(longest, either).await
        });
        let arrived = arrived.ok()?;
        if arrived.has_failed() {
            runtime.block_on(look_after_connections());
        }
        Some(arrived)
    }

    /// Gives up on what is on the wire.
    pub(super) fn hang_up(&mut self) {
        if self.line.sentinel.is_there() {
            self.line.sending = None;
            self.line.runtime.block_on(look_after_connections());
        } else {
            self.replace();
        }
    }

    fn replace(&mut self) -> ExportError {
        let reason = match Line::new(
            &self.config,
            self.metrics.as_ref(),
            &self.source,
            &self.resource,
        ) {
            Ok(line) => {
                // To drop the old one would close what the host has opened.
                std::mem::forget(std::mem::replace(&mut self.line, line));
                "the host program has closed the connection".to_owned()
            }
            Err(error) => error.to_string(),
        };
        ExportError::Retryable {
            reason,
            after: None,
        }
    }

    /// Waits for nothing that hangs in a connection.
    pub(super) fn end(self) {
        let Line {
            sending,
            exporter,
            reporting,
            metrics,
            runtime,
            sentinel,
        } = self.line;
        if sentinel.is_there() {
            drop((sending, exporter, reporting, metrics));
            runtime.shutdown_background();
        } else {
            std::mem::forget((sending, exporter, reporting, metrics, runtime, sentinel));
        }
    }
}

impl Line {
    fn new(
        config: &ExporterConfig,
        metrics: Option<&ExporterConfig>,
        source: &Arc<Source>,
        resource: &[Attribute],
    ) -> Result<Self, WireError> {
        // First, so that it has the lowest number of ours: who closes a range of
        // numbers closes it.
        let sentinel = Sentinel::new()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Those that look up host names.
            .on_thread_start(diagnostics::mark_own_thread)
            // Threads that look up names end with that: a fork wants none.
            .thread_keep_alive(Duration::ZERO)
            .build()?;
        let (exporter, metrics) = {
            let _inside = runtime.enter();
            let exporter = OtlpExporter::new(config, Arc::clone(source), resource)?;
            (exporter, metrics.map(MetricsExporter::new).transpose()?)
        };
        Ok(Self {
            sending: None,
            exporter: Arc::new(exporter),
            reporting: None,
            metrics: metrics.map(Arc::new),
            runtime,
            sentinel,
        })
    }
}

/// The outcome of something that was on the wire.
pub(super) enum Arrived {
    Batch(Outcome),
    Metrics(Outcome),
}

impl Arrived {
    fn has_failed(&self) -> bool {
        let (Self::Batch(outcome) | Self::Metrics(outcome)) = self;
        outcome.is_err()
    }
}

/// Its outcome, which ends it.
fn poll(sending: &mut Option<Sending>, context: &mut Context<'_>) -> Option<Outcome> {
    let Poll::Ready(outcome) = sending.as_mut()?.as_mut().poll(context) else {
        return None;
    };
    *sending = None;
    Some(outcome)
}

/// Lets connections do what they have to, such as be closed where nobody waits for
/// an answer any more.
async fn look_after_connections() {
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
}

/// An end of a pipe of ours.
struct Sentinel {
    end: File,
    identity: (u64, u64),
}

impl Sentinel {
    fn new() -> std::io::Result<Self> {
        let (reader, _) = std::io::pipe()?;
        let end = File::from(OwnedFd::from(reader));
        let identity = identity(&end.metadata()?);
        Ok(Self { end, identity })
    }

    fn is_there(&self) -> bool {
        self.end
            .metadata()
            .is_ok_and(|now| identity(&now) == self.identity)
    }
}

/// What tells one open file from another.
fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
