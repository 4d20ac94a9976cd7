//! A request as the logs have it, and all requests of logs that fit into memory.

use std::path::Path;
use std::sync::Arc;

use hashbrown::HashSet;
use omnitrace::id::SpanId;
use omnitrace::span::{Source, Span};
use omnitrace::value::Attribute;
use omnitrace::{SpanContext, Vocabulary};

use crate::ingest::{self, Settings};
pub use crate::ingest::{ReadError, Report};

/// Everything that the logs say.
#[derive(Debug, Default)]
pub struct Log {
    /// Requests with their events, in the order of their first event's time.
    pub requests: Vec<Request>,
    /// Finished free spans.
    pub spans: Vec<Span>,
    /// Those of all spans that a Collector has taken already.
    pub exported: HashSet<SpanId>,
    /// What was read and what could not be.
    pub report: Report,
}

/// One request's events, as logged.
#[derive(Debug)]
pub struct Request {
    /// Canonical id.
    pub id: Box<str>,
    /// Its events.
    pub events: Vec<LoggedEvent>,
}

/// One action line.
#[derive(Debug, Clone, PartialEq)]
pub struct LoggedEvent {
    /// Action name.
    pub action: Arc<str>,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Who recorded it.
    pub source: Arc<Source>,
    /// Which try, from 0.
    pub occurrence: u16,
    /// What only our own lines have.
    pub extra: Option<Box<Extra>>,
}

/// What the JSON object at a line's end says of an event.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extra {
    /// The context that came with the request.
    pub context: Option<SpanContext>,
    /// Attributes.
    pub attributes: Vec<Attribute>,
    /// Names of the spans ending here that no Collector has taken; none where
    /// the line was written without knowing.
    pub undelivered: Option<Vec<String>>,
    /// The host that the client asked for; of a proxy's line, if it was wanted.
    pub host: Option<Arc<str>>,
}

impl Request {
    /// Time of its first event.
    pub fn first(&self) -> u64 {
        self.events.first().map_or(0, |e| e.time)
    }
}

/// Reads every regular file below `path`, or `path` itself if it is a file, into memory.
/// `progress` is told the bytes that have been read.
pub fn read(path: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<Log, ReadError> {
    let settings = Settings {
        temporary: &std::env::temp_dir(),
        memory: ingest::MEMORY,
        exported: true,
        hosts: false,
    };
    let store = ingest::ingest(&Vocabulary::omni_vllm(), path, settings, progress)?;
    let mut log = Log {
        exported: store.exported().collect(),
        report: store.report().clone(),
        ..Log::default()
    };
    let mut reader = store.reader();
    for trace in 0..store.traces() {
        let events = reader.trace(trace)?;
        log.requests.extend(events.requests);
        log.spans.extend(events.spans);
    }
    log.requests
        .sort_by(|a, b| (a.first(), &a.id).cmp(&(b.first(), &b.id)));
    Ok(log)
}
