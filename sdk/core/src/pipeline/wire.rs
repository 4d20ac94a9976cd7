//! The way out: an exporter on a runtime of its own, which runs only while a batch
//! is on it.
//!
//! A host that becomes a daemon may close every descriptor there is, ours too, and
//! what it opens next has our numbers. So before anything uses one, a descriptor
//! that nobody else has tells whether ours are still ours. If they are not, all of
//! them are left alone, unclosed, and new ones are made.

use std::fs::{File, Metadata};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::config::ExporterConfig;
use crate::delivery::otlp::{Batch, ExportError, ExporterError, OtlpExporter, Taken};
use crate::diagnostics;
use crate::span::Source;
use crate::value::Attribute;

type Sending = Pin<Box<dyn Future<Output = Result<Taken, ExportError>> + Send>>;

pub(super) struct Wire {
    config: ExporterConfig,
    source: Arc<Source>,
    resource: Vec<Attribute>,
    line: Line,
}

/// Everything that has descriptors.
struct Line {
    sending: Option<Sending>,
    exporter: Arc<OtlpExporter>,
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
        source: Arc<Source>,
        resource: Vec<Attribute>,
    ) -> Result<Self, WireError> {
        let line = Line::new(&config, &source, &resource)?;
        Ok(Self {
            config,
            source,
            resource,
            line,
        })
    }

    pub(super) fn is_busy(&self) -> bool {
        self.line.sending.is_some()
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
    pub(super) fn carry_on(&mut self, longest: Duration) -> Option<Result<Taken, ExportError>> {
        if !self.line.sentinel.is_there() {
            return Some(Err(self.replace()));
        }
        let line = &mut self.line;
        let sending = line.sending.as_mut()?;
        let outcome = line
            .runtime
            .block_on(async { tokio::time::timeout(longest, sending).await });
        let outcome = outcome.ok()?;
        line.sending = None;
        if outcome.is_err() {
            line.runtime.block_on(look_after_connections());
        }
        Some(outcome)
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
        let reason = match Line::new(&self.config, &self.source, &self.resource) {
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
            runtime,
            sentinel,
        } = self.line;
        if sentinel.is_there() {
            drop((sending, exporter));
            runtime.shutdown_background();
        } else {
            std::mem::forget((sending, exporter, runtime, sentinel));
        }
    }
}

impl Line {
    fn new(
        config: &ExporterConfig,
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
        let exporter = {
            let _inside = runtime.enter();
            OtlpExporter::new(config, Arc::clone(source), resource)?
        };
        Ok(Self {
            sending: None,
            exporter: Arc::new(exporter),
            runtime,
            sentinel,
        })
    }
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
