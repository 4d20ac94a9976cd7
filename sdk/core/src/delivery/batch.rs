//! Spans that wait to be sent, already as bytes.
//!
//! A batch is the body of its request from the first span on: room for the
//! envelope is kept in front, so that nothing is copied when it is sent, nor when
//! it is sent again. What the legacy log needs of it is read back from the bytes,
//! which happens only when no Collector takes them.

use std::sync::Arc;
use std::time::Instant;

use opentelemetry_http::Bytes;

use crate::assembler::PhaseSpan;
use crate::decode;
use crate::encode::{self, Out};
use crate::id::SpanId;
use crate::queue::DecodedSpan;
use crate::span::{Moment, PhaseOrigin, Place, ScopeId, Source, Span};

use super::envelopes::Envelopes;

/// A Collector's usual limit on a gRPC message is 4 MiB; one span is far below
/// the rest.
const FULL_BYTES: usize = 3 << 20;

/// Spans of one process, by instrumentation scope, in the order they were finished.
pub struct Batch {
    /// Unused room, then an `ExportTraceServiceRequest`.
    buffer: Bytes,
    /// Where that begins.
    body: usize,
    entries: Vec<Entry>,
    /// Of those that are phases' spans, in their order: all of them are omnitrace's
    /// own scope's.
    origins: Vec<PhaseOrigin>,
    /// Bytes that it takes.
    memory: usize,
    /// When its first span came.
    pub(super) since: Instant,
    /// When its last span came.
    pub(super) until: Instant,
}

struct Entry {
    span_id: SpanId,
    is_phase: bool,
}

/// Bytes of what a phase's origin points to; the actions' names are the vocabulary's.
fn beside(origin: &PhaseOrigin) -> usize {
    origin.request_id.len() + origin.seen.capacity() * size_of::<Moment>()
}

/// What a batch that has gone leaves to another: pages that are there already.
#[derive(Default)]
pub(super) struct Memory {
    buffer: Vec<u8>,
    entries: Vec<Entry>,
}

/// Spans of one scope that came one after the other.
struct Run {
    scope: ScopeId,
    /// Where its bytes begin.
    bytes: usize,
    /// Where its entries begin.
    entries: usize,
}

/// A batch that still takes spans.
pub(super) struct OpenBatch {
    buffer: Out,
    room: usize,
    runs: Vec<Run>,
    entries: Vec<Entry>,
    origins: Vec<PhaseOrigin>,
    /// Bytes of what those point to.
    beside: usize,
    since: Option<Instant>,
    until: Instant,
}

impl OpenBatch {
    pub(super) fn new(envelopes: &Envelopes, memory: Memory) -> Self {
        let Memory {
            buffer,
            mut entries,
        } = memory;
        let room = envelopes.room();
        entries.clear();
        Self {
            buffer: Out::over(buffer, room),
            room,
            runs: Vec::new(),
            entries,
            origins: Vec::new(),
            beside: 0,
            since: None,
            until: Instant::now(),
        }
    }

    pub(super) fn push(&mut self, span: Span, scope: ScopeId, now: Instant) {
        self.begin(scope, now);
        encode::span(&span, &mut self.buffer);
        self.enter(span.span_id, span.origin);
    }

    pub(super) fn push_phase(&mut self, span: PhaseSpan<'_>, now: Instant) {
        self.begin(ScopeId::default(), now);
        encode::phase_span(&span, &mut self.buffer);
        self.enter(span.span_id, Some(span.origin));
    }

    pub(super) fn push_free(&mut self, span: &DecodedSpan<'_>, place: &Place, now: Instant) {
        self.begin(span.scope, now);
        encode::free_span(span, place, &mut self.buffer);
        self.enter(span.span_id, None);
    }

    fn enter(&mut self, span_id: SpanId, origin: Option<PhaseOrigin>) {
        self.entries.push(Entry {
            span_id,
            is_phase: origin.is_some(),
        });
        self.beside += origin.as_ref().map_or(0, beside);
        self.origins.extend(origin);
    }

    fn begin(&mut self, scope: ScopeId, now: Instant) {
        if self.runs.last().is_none_or(|run| run.scope != scope) {
            self.runs.push(Run {
                scope,
                bytes: self.buffer.len(),
                entries: self.entries.len(),
            });
        }
        self.since.get_or_insert(now);
        self.until = now;
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn memory(&self) -> usize {
        self.buffer.capacity()
            + self.entries.capacity() * size_of::<Entry>()
            + self.origins.capacity() * size_of::<PhaseOrigin>()
            + self.beside
    }

    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    pub(super) fn is_full(&self) -> bool {
        self.buffer.len() >= FULL_BYTES
    }

    /// The batch, and an empty one in its place. None: there is no span in it.
    pub(super) fn seal(&mut self, envelopes: &mut Envelopes, mut memory: Memory) -> Option<Batch> {
        let since = self.since?;
        if memory.buffer.capacity() == 0 {
            // Nothing comes back while no Collector takes any: as much as this one
            // and a little more, for growing would end with up to twice of it.
            let bytes = self.buffer.len();
            memory.buffer.reserve_exact(bytes + bytes / 8);
            memory.entries.reserve_exact(self.entries.len());
        }
        let next = Self::new(envelopes, memory);
        let mut full = std::mem::replace(self, next);
        let (until, beside) = (full.until, full.beside);
        let origins = std::mem::take(&mut full.origins);
        self.origins.reserve(origins.len());
        let (buffer, body, entries) = full.close(envelopes);
        Some(Batch {
            memory: buffer.capacity()
                + entries.capacity() * size_of::<Entry>()
                + origins.capacity() * size_of::<PhaseOrigin>()
                + beside,
            buffer: buffer.into(),
            body,
            entries,
            origins,
            since,
            until,
        })
    }

    /// The request's bytes, where they begin, and what belongs to each span.
    fn close(mut self, envelopes: &mut Envelopes) -> (Vec<u8>, usize, Vec<Entry>) {
        if let [run] = &self.runs[..] {
            let (head, tail) = envelopes.around(run.scope, self.buffer.len() - self.room);
            if let Some(body) = self.room.checked_sub(head.len()) {
                self.buffer.written_mut()[body..self.room].copy_from_slice(&head);
                self.buffer.copy(tail);
                return (self.buffer.finish(), body, self.entries);
            }
        }
        let mut groups: Vec<Group<'_>> = Vec::new();
        let mut end = self.buffer.len();
        for run in self.runs.iter().rev() {
            let entries = self.entries.split_off(run.entries);
            let bytes = &self.buffer.written()[run.bytes..end];
            end = run.bytes;
            match groups.iter_mut().find(|group| group.scope == run.scope) {
                Some(group) => {
                    group.first = run.bytes;
                    group.runs.insert(0, bytes);
                    group.entries.splice(0..0, entries);
                }
                None => groups.push(Group {
                    scope: run.scope,
                    first: run.bytes,
                    runs: vec![bytes],
                    entries,
                }),
            }
        }
        groups.sort_by_key(|group| group.first);
        let mut entries = Vec::new();
        let mut parts = Vec::new();
        for group in groups {
            entries.extend(group.entries);
            parts.push((group.scope, group.runs));
        }
        (envelopes.whole(parts), 0, entries)
    }
}

/// All runs of one scope.
struct Group<'a> {
    scope: ScopeId,
    /// Where the first one begins.
    first: usize,
    runs: Vec<&'a [u8]>,
    entries: Vec<Entry>,
}

impl Batch {
    /// A batch of these spans; none if there are none.
    pub(super) fn of(spans: Vec<Span>, envelopes: &mut Envelopes) -> Option<Self> {
        let mut open = OpenBatch::new(envelopes, Memory::default());
        let now = Instant::now();
        for span in spans {
            let scope = span.scope.as_deref();
            let scope = scope.map(|scope| envelopes.scopes().number(scope));
            open.push(span, scope.unwrap_or_default(), now);
        }
        open.seal(envelopes, Memory::default())
    }

    /// Number of spans, never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    pub(super) fn span_ids(&self) -> Vec<SpanId> {
        self.entries.iter().map(|e| e.span_id).collect()
    }

    /// An `ExportTraceServiceRequest`.
    pub(super) fn body(&self) -> Bytes {
        self.buffer.slice(self.body..)
    }

    /// Its memory, where nobody else has a part of it.
    pub(super) fn into_memory(self) -> Memory {
        let buffer = self.buffer.try_into_mut().map(Vec::from);
        Memory {
            buffer: buffer.unwrap_or_default(),
            entries: self.entries,
        }
    }

    /// The spans as they were before they became bytes, one at a time.
    pub(super) fn spans(&self, source: &Arc<Source>) -> impl Iterator<Item = Span> {
        // The bytes are our own: what cannot be read was never written.
        let spans = decode::spans(&self.buffer[self.body..]);
        let mut origins = self.origins.iter().cloned();
        spans
            .zip(&self.entries)
            .filter_map(move |((span, scope), entry)| {
                let origin = entry.is_phase.then(|| origins.next()).flatten();
                decode::span(span, scope, origin, source)
            })
    }

    /// All of them.
    pub(super) fn decode(&self, source: &Arc<Source>) -> Vec<Span> {
        self.spans(source).collect()
    }
}
