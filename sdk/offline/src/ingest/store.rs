//! All requests and free spans, by trace and in the order of time.

use std::sync::{Arc, Mutex, PoisonError};

use omnitrace::SpanContext;
use omnitrace::id::{SpanId, TraceId};
use omnitrace::legacy_log::Suffix;
use omnitrace::span::{Source, Span};

use super::free;
use super::group::{self, Entry, EntryKind};
use super::names::{Names, Texts};
use super::report::Report;
use super::spill::{Piece, Spill, SpillError};
use crate::clock::Clocks;
use crate::reader::{Extra, LoggedEvent, Request};

/// Bytes put away at once.
const SEGMENT: usize = 256 << 10;
/// An entry's place in the file, not in memory.
const IN_FILE: u64 = 1 << 63;

/// What the logs hold.
#[derive(Debug)]
pub struct Store {
    /// By trace.
    entries: Vec<Entry>,
    /// By the time of the trace's earliest entry.
    traces: Vec<Trace>,
    requests: usize,
    segments: Vec<Vec<u8>>,
    spill: Spill,
    names: Names,
    clocks: Clocks,
    exported: Vec<u64>,
    report: Report,
}

/// What a store is made of.
pub(super) struct Contents {
    /// Each thread's.
    pub(super) entries: Vec<Vec<Entry>>,
    pub(super) segments: Vec<Vec<u8>>,
    pub(super) spill: Spill,
    pub(super) names: Names,
    pub(super) clocks: Clocks,
    pub(super) exported: Vec<u64>,
    pub(super) report: Report,
}

#[derive(Debug, Clone, Copy)]
struct Trace {
    time: u64,
    first: u32,
    entries: u32,
}

/// Everything of one trace.
#[derive(Debug, Default)]
pub struct TraceEvents {
    /// Its requests, the earliest first.
    pub requests: Vec<Request>,
    /// Spans that stand in the logs as they are, the earliest first.
    pub spans: Vec<Span>,
}

impl Store {
    pub(super) fn new(contents: Contents) -> Self {
        let Contents {
            entries: shares,
            segments,
            spill,
            names,
            clocks,
            exported,
            report,
        } = contents;
        let mut entries = Vec::with_capacity(shares.iter().map(Vec::len).sum());
        for share in shares {
            entries.extend(share);
        }
        // Two entries of the same trace and time may stand in any place: their content
        // must decide, and it does by the length unless they are alike.
        entries.sort_unstable_by_key(|e: &Entry| (e.trace, e.kind, e.time, e.length, e.place));
        let mut traces = Vec::with_capacity(entries.len());
        let mut first = 0;
        for trace in entries.chunk_by(|a, b| a.trace == b.trace) {
            traces.push(Trace {
                time: trace.iter().map(|e| e.time).min().unwrap_or(0),
                first,
                entries: trace.len() as u32,
            });
            first += trace.len() as u32;
        }
        traces.sort_unstable_by_key(|t| (t.time, t.first));
        let requests = entries.iter().filter(|e| e.kind == EntryKind::Request);
        Self {
            requests: requests.count(),
            entries,
            traces,
            segments,
            spill,
            names,
            clocks,
            exported,
            report,
        }
    }

    /// Traces.
    pub fn traces(&self) -> usize {
        self.traces.len()
    }

    /// Requests in them.
    pub fn requests(&self) -> usize {
        self.requests
    }

    /// What is known of the clocks.
    pub fn clocks(&self) -> &Clocks {
        &self.clocks
    }

    /// What was read and what could not be.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Whether the log says that a Collector has taken this span.
    pub fn is_exported(&self, span: SpanId) -> bool {
        self.exported.binary_search(&span.value()).is_ok()
    }

    /// One thread's way to the traces.
    pub fn reader(&self) -> Reader<'_> {
        Reader {
            store: self,
            texts: Texts::new(&self.names),
            bytes: Vec::new(),
        }
    }
}

impl Store {
    /// Where a trace stands in the order of time: logs that have grown since keep it.
    pub fn position(&self, number: usize) -> Option<(u64, TraceId)> {
        let trace = self.traces.get(number)?;
        let entry = self.entries.get(trace.first as usize)?;
        Some((trace.time, TraceId::new(entry.trace)?))
    }
}

/// Reads traces out of a [`Store`].
#[derive(Debug)]
pub struct Reader<'a> {
    store: &'a Store,
    texts: Texts,
    bytes: Vec<u8>,
}

impl Reader<'_> {
    /// The trace with this number, from 0 in the order of time; nothing beyond the last.
    pub fn trace(&mut self, number: usize) -> Result<TraceEvents, SpillError> {
        let mut events = TraceEvents::default();
        let store = self.store;
        let Some(trace) = store.traces.get(number) else {
            return Ok(events);
        };
        let from = trace.first as usize;
        for entry in &store.entries[from..from + trace.entries as usize] {
            self.bytes.clear();
            let length = entry.length as usize;
            let bytes = if entry.place & IN_FILE == 0 {
                let from = (entry.place & u64::from(u32::MAX)) as usize;
                &store.segments[(entry.place >> 32) as usize][from..from + length]
            } else {
                let offset = entry.place & !IN_FILE;
                store.spill.read(offset, length, &mut self.bytes)?;
                &self.bytes[..]
            };
            match entry.kind {
                EntryKind::Request => {
                    events
                        .requests
                        .extend(request(bytes, &self.texts, &store.clocks));
                }
                EntryKind::Span => events.spans.extend(free::read(bytes)),
            }
        }
        Ok(events)
    }

    /// Marks the spans of one trace whose clocks were put right, and cuts each to its parent.
    pub(crate) fn settle(&self, spans: &mut [Span]) {
        let number = |source: &Arc<Source>| self.texts.number(source);
        self.store.clocks.settle(spans, &number);
    }
}

fn request(bytes: &[u8], texts: &Texts, clocks: &Clocks) -> Option<Request> {
    let (id, events) = group::read(bytes)?;
    let event = |kept: group::Kept<'_>| LoggedEvent {
        action: Arc::clone(texts.action(kept.action)),
        time: clocks.put_right(kept.source.into(), kept.time),
        source: Arc::clone(texts.source(kept.source)),
        occurrence: kept.occurrence,
        extra: extra(kept.suffix).map(Box::new),
    };
    let mut events: Vec<LoggedEvent> = events.map(event).collect();
    if clocks.move_times() {
        events.sort_by_key(|event| event.time);
    }
    Some(Request {
        id: id.into(),
        events,
    })
}

fn extra(json: &[u8]) -> Option<Extra> {
    if json.is_empty() {
        return None;
    }
    if json[0] != b'{' {
        let host = String::from_utf8_lossy(json);
        return Some(Extra {
            host: Some(host.as_ref().into()),
            ..Extra::default()
        });
    }
    // It was read once already.
    let suffix: Suffix = serde_json::from_slice(json).ok()?;
    let traceparent = suffix.traceparent.as_deref();
    let extra = Extra {
        context: traceparent.and_then(|t| SpanContext::parse(t.as_bytes())),
        attributes: suffix.attributes.0,
        undelivered: suffix.undelivered,
        host: None,
    };
    (extra != Extra::default()).then_some(extra)
}

/// Takes the bytes of all threads.
pub(super) struct Writer<'a> {
    spill: &'a Spill,
    segments: Mutex<Vec<Vec<u8>>>,
}

/// One thread's way to the store.
pub(super) struct Share<'a> {
    writer: &'a Writer<'a>,
    entries: Vec<Entry>,
    /// Entries whose place is not yet known: those of the segment.
    placed: usize,
    segment: Vec<u8>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(spill: &'a Spill) -> Self {
        Self {
            spill,
            segments: Mutex::default(),
        }
    }

    pub(super) fn share(&'a self) -> Share<'a> {
        Share {
            writer: self,
            entries: Vec::new(),
            placed: 0,
            segment: Vec::new(),
        }
    }

    pub(super) fn into_segments(self) -> Vec<Vec<u8>> {
        (self.segments.into_inner()).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share<'_> {
    pub(super) fn put(&mut self, entry: Entry, bytes: &[u8]) -> Result<(), SpillError> {
        self.entries.push(Entry {
            place: self.segment.len() as u64,
            ..entry
        });
        self.segment.extend_from_slice(bytes);
        if self.segment.len() >= SEGMENT {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SpillError> {
        if self.segment.is_empty() {
            return Ok(());
        }
        let base = match self.writer.spill.put(&mut self.segment)? {
            Piece::File { offset, .. } => offset | IN_FILE,
            Piece::Memory(bytes) => {
                let segments = self.writer.segments.lock();
                let mut segments = segments.unwrap_or_else(PoisonError::into_inner);
                segments.push(bytes);
                ((segments.len() - 1) as u64) << 32
            }
        };
        for entry in &mut self.entries[self.placed..] {
            entry.place += base;
        }
        self.placed = self.entries.len();
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Vec<Entry>, SpillError> {
        self.flush()?;
        Ok(self.entries)
    }
}
