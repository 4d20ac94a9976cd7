//! Spans that wait to be sent, already as bytes.
//!
//! A batch is the body of its request from the first span on: room for the
//! envelope is kept in front, so that nothing is copied when it is sent, nor when
//! it is sent again. What the legacy log needs of it is read back from the bytes,
//! which happens only when no Collector takes them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use memmap2::MmapMut;
use opentelemetry_http::Bytes;

use crate::assembler::{FinishedSpan, PhaseSpan};
use crate::decode;
use crate::encode::{self, Out};
use crate::id::SpanId;
use crate::queue::DecodedSpan;
use crate::span::{PhaseOrigin, PhaseOriginRef, Place, ScopeId, Source, Span};

use super::envelopes::Envelopes;
use super::origins::{self, Origins};

/// A Collector's usual limit on a gRPC message is 4 MiB; one span is below the rest: a
/// record and what the assembler keeps are at most half a MiB.
const FULL_BYTES: usize = 3 << 20;

/// A batch that takes less stays where it is when it has to wait.
const MOVED_BYTES: usize = 128 << 10;
/// What the system gives memory in, nearly everywhere.
const PAGE_BYTES: usize = 4 << 10;

/// Spans of one process, by instrumentation scope, in the order they were finished.
///
/// ```text
/// buffer: unused room · ExportTraceServiceRequest · entries · origins
/// ```
/// The origins are those of phases' spans, which are all of omnitrace's own scope.
pub struct Batch {
    buffer: Bytes,
    /// Where the request is.
    body: Range<usize>,
    /// Number of spans, and so of entries.
    len: usize,
    /// Bytes that it takes.
    memory: usize,
    /// When its first span came.
    pub(super) since: Instant,
    /// When its last span came.
    pub(super) until: Instant,
}

/// A span's id, and whether it is a phase's.
type Entry = [u8; 9];

fn entry(span_id: SpanId, is_phase: bool) -> Entry {
    let mut entry = [u8::from(is_phase); 9];
    entry[..8].copy_from_slice(&span_id.value().to_le_bytes());
    entry
}

/// What a batch that has gone leaves to another: pages that are there already.
#[derive(Default)]
pub(super) struct Memory(Vec<u8>);

impl Memory {
    pub(super) fn is_none(&self) -> bool {
        self.0.capacity() == 0
    }
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
    origins: Origins,
    since: Option<Instant>,
    until: Instant,
}

impl OpenBatch {
    pub(super) fn new(envelopes: &Envelopes, memory: Memory) -> Self {
        let room = envelopes.room();
        Self {
            buffer: Out::over(memory.0, room),
            room,
            runs: Vec::new(),
            entries: Vec::new(),
            origins: Origins::default(),
            since: None,
            until: Instant::now(),
        }
    }

    pub(super) fn push(&mut self, span: Span, scope: ScopeId, now: Instant) {
        self.begin(scope, now);
        encode::span(&span, &mut self.buffer);
        self.enter(span.span_id, span.origin.as_ref().map(PhaseOrigin::as_ref));
    }

    pub(super) fn push_phase(&mut self, span: PhaseSpan<'_>, now: Instant) {
        self.begin(ScopeId::default(), now);
        encode::phase_span(&span, &mut self.buffer);
        self.enter(span.span_id, Some(span.origin.as_ref()));
    }

    pub(super) fn push_finished(&mut self, span: &FinishedSpan<'_>, now: Instant) {
        self.begin(ScopeId::default(), now);
        encode::finished_span(span, &mut self.buffer);
        self.enter(span.span_id, Some(span.origin));
    }

    pub(super) fn push_free(&mut self, span: &DecodedSpan<'_>, place: &Place, now: Instant) {
        self.begin(span.scope, now);
        encode::free_span(span, place, &mut self.buffer);
        self.enter(span.span_id, None);
    }

    fn enter(&mut self, span_id: SpanId, origin: Option<PhaseOriginRef<'_>>) {
        self.entries.push(entry(span_id, origin.is_some()));
        if let Some(origin) = origin {
            self.origins.push(origin);
        }
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
            + self.origins.capacity()
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
        let tail = self.entries.len() * size_of::<Entry>() + self.origins.bytes().len();
        let bytes = self.buffer.len() + tail;
        if memory.0.capacity() < bytes {
            // The next one is likely to be like this one.
            memory.0 = Vec::with_capacity(bytes + bytes / 8);
        }
        let next = Self::new(envelopes, memory);
        let full = std::mem::replace(self, next);
        let (len, until) = (full.len(), full.until);
        let (buffer, body, entries, origins) = full.close(envelopes);
        // They are in the buffer now, their memory serves again.
        (self.entries, self.origins) = (entries, origins);
        self.entries.clear();
        self.origins.clear();
        Some(Batch {
            memory: buffer.capacity(),
            buffer: buffer.into(),
            body,
            len,
            since,
            until,
        })
    }

    /// A batch's buffer, where the request is in it, and what has been written behind.
    fn close(mut self, envelopes: &mut Envelopes) -> (Vec<u8>, Range<usize>, Vec<Entry>, Origins) {
        if let [run] = &self.runs[..] {
            let (head, tail) = envelopes.around(run.scope, self.buffer.len() - self.room);
            if let Some(body) = self.room.checked_sub(head.len()) {
                self.buffer.written_mut()[body..self.room].copy_from_slice(&head);
                self.buffer.copy(tail);
                let body = body..self.buffer.len();
                self.buffer.copy(self.entries.as_flattened());
                self.buffer.copy(self.origins.bytes());
                return (self.buffer.finish(), body, self.entries, self.origins);
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
        let mut buffer = envelopes.whole(parts);
        let body = 0..buffer.len();
        let tail = [entries.as_flattened(), self.origins.bytes()];
        buffer.reserve_exact(tail[0].len() + tail[1].len());
        tail.iter().for_each(|part| buffer.extend_from_slice(part));
        (buffer, body, entries, self.origins)
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
        self.len
    }

    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    pub(super) fn span_ids(&self) -> Vec<SpanId> {
        let ids = self.entries().map(|(span_id, _)| span_id);
        ids.flatten().collect()
    }

    /// Each span's id, and whether it is a phase's.
    fn entries(&self) -> impl Iterator<Item = (Option<SpanId>, bool)> {
        let entries = self.buffer[self.body.end..].as_chunks().0;
        entries[..self.len].iter().map(|entry: &Entry| {
            let [id @ .., is_phase] = entry;
            (SpanId::new(u64::from_le_bytes(*id)), *is_phase != 0)
        })
    }

    /// An `ExportTraceServiceRequest`.
    pub(super) fn body(&self) -> Bytes {
        self.buffer.slice(self.body.clone())
    }

    /// Its memory, where nobody else has a part of it.
    pub(super) fn into_memory(self) -> Memory {
        let buffer = self.buffer.try_into_mut().map(Vec::from);
        Memory(buffer.unwrap_or_default())
    }

    /// Bytes that it needs: its body and what is known of its spans' origins.
    pub(super) fn needed(&self) -> &[u8] {
        &self.buffer[self.body.start..]
    }

    /// The same, ready to wait for long: in pages of its own, as many as it needs, which
    /// go back to the system when it has gone. Batches of all sizes that come and go for
    /// hours would leave gaps in the heap. And the memory that it was in.
    pub(super) fn moved_out(self) -> (Self, Memory) {
        let bytes = self.needed();
        // The system may refuse; then it stays.
        let pages = (bytes.len() >= MOVED_BYTES)
            .then(|| MmapMut::map_anon(bytes.len()).ok())
            .flatten();
        let Some(mut pages) = pages else {
            return (self, Memory::default());
        };
        pages.copy_from_slice(bytes);
        let moved = Self {
            body: 0..self.body.len(),
            memory: pages.len().next_multiple_of(PAGE_BYTES),
            buffer: Bytes::from_owner(pages),
            len: self.len,
            since: self.since,
            until: self.until,
        };
        (moved, self.into_memory())
    }

    /// The spans as they were before they became bytes, one at a time.
    pub(super) fn spans(&self, source: &Arc<Source>) -> impl Iterator<Item = Span> {
        // The bytes are our own: what cannot be read was never written.
        let spans = decode::spans(&self.buffer[self.body.clone()]);
        let origins = self.body.end + self.len * size_of::<Entry>();
        let mut origins = origins::read(&self.buffer[origins..]);
        spans
            .zip(self.entries())
            .filter_map(move |((span, scope), (_, is_phase))| {
                let origin = is_phase.then(|| origins.next()).flatten();
                decode::span(span, scope, origin, source)
            })
    }

    /// All of them.
    pub(super) fn decode(&self, source: &Arc<Source>) -> Vec<Span> {
        self.spans(source).collect()
    }
}
