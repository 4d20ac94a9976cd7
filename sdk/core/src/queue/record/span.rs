//! Free spans within a record.
//!
//! ```text
//! span: header · start · end · span id · trace id 2 · parent · extra · texts
//!       · name · request id or tracestate · error · [length of more · more] · attributes
//! extra = W3C flags (8) | error length (32)
//! ```

use crate::context::SpanContext;
use crate::encode;
use crate::event::{FreeSpan, Parent};
use crate::id::{SpanId, TraceId};
use crate::span::{ScopeId, SpanKind, StatusRef};

use super::super::sync::AtomicU64;
use super::super::writer::Writer;
use super::attributes::{Attributes, Kept, WriteAttributes};
use super::{
    Encode, KIND_SPAN, MAX_MORE_WORDS, MAX_TEXT, Measure, Reader, cut, header, kept_id, lengths,
    texts, words_of,
};

const UNSET: u64 = 0;
const OK: u64 = 1;
const ERROR: u64 = 2;
const STATUS: u64 = 3;
const PARENT_REQUEST: u64 = 4;
const PARENT_SPAN: u64 = 8;
const PARENT_IS_REMOTE: u64 = 16;
const HAS_MORE: u64 = 32;

/// A span that is ready to be written.
pub(crate) struct SpanRecord<'a, A> {
    span: &'a FreeSpan<'a>,
    name: &'a str,
    /// The request that it hangs under, else its tracestate: a request's is its own.
    second: &'a str,
    error: &'a str,
    attributes: A,
    /// Events, links and dropped counts as OTLP fields.
    more: &'a [u8],
}

impl<'a, A> SpanRecord<'a, A> {
    /// With what is kept of its attributes, and [`more`] of the span.
    #[inline(always)]
    pub(crate) fn new(span: &'a FreeSpan<'a>, attributes: A, more: &'a [u8]) -> Self {
        let name = cut(span.name, MAX_TEXT);
        let second = match span.parent {
            Parent::Request(id) => kept_id(id),
            // Half a tracestate would be another one.
            _ if span.trace_state.len() > MAX_TEXT => "",
            _ => span.trace_state,
        };
        let error = match span.status {
            StatusRef::Error(text) => cut(text, MAX_TEXT),
            _ => "",
        };
        Self {
            span,
            name,
            second,
            error,
            attributes,
            more,
        }
    }
}

/// What few spans have, as OTLP fields: as many events and links as a record has
/// room for.
pub(crate) fn more(span: &FreeSpan<'_>) -> Vec<u8> {
    let (mut events, mut links, mut dropped) = (span.events, span.links, span.dropped);
    loop {
        let bytes = encode::more(events, links, dropped);
        if words_of(bytes.len()) <= MAX_MORE_WORDS {
            return bytes;
        }
        // Half at a time: what is this long is seldom a little too long.
        let (kept_events, kept_links) = (events.len() / 2, links.len() / 2);
        dropped.events += (events.len() - kept_events) as u32;
        dropped.links += (links.len() - kept_links) as u32;
        (events, links) = (&events[..kept_events], &links[..kept_links]);
    }
}

impl Measure for SpanRecord<'_, Kept<'_>> {
    fn words(&self) -> Option<usize> {
        let texts = [self.name, self.second, self.error];
        let texts: usize = texts.iter().map(|text| words_of(text.len())).sum();
        let more = if self.more.is_empty() {
            0
        } else {
            1 + words_of(self.more.len())
        };
        Some(9 + texts + self.attributes.words()? + more)
    }
}

impl<A: WriteAttributes> Encode for SpanRecord<'_, A> {
    #[inline(always)]
    fn encode(&self, room: &[AtomicU64]) -> Option<usize> {
        let (first, mut writer) = Writer::after_first(room)?;
        let span = self.span;
        let (parent_kind, trace, parent, w3c_flags) = match span.parent {
            Parent::Span(c) => (PARENT_SPAN, c.trace_id.value(), c.span_id.value(), c.flags),
            Parent::Request(_) => (PARENT_REQUEST, 0, 0, 0),
            Parent::Root(trace) => (0, trace.value(), 0, SpanContext::SAMPLED),
        };
        let status = match span.status {
            StatusRef::Unset => UNSET,
            StatusRef::Ok => OK,
            StatusRef::Error(_) => ERROR,
        };
        let remote = if span.parent_is_remote {
            PARENT_IS_REMOTE
        } else {
            0
        };
        let more = if self.more.is_empty() { 0 } else { HAS_MORE };
        let flags = parent_kind | status | remote | more;
        let kind = span.kind as u64;
        writer = writer.words([
            span.start,
            span.end,
            span.span_id.value(),
            (trace >> 64) as u64,
            trace as u64,
            parent,
            u64::from(w3c_flags) | (self.error.len() as u64) << 8,
            texts(self.name, self.second, self.attributes.count()),
        ])?;
        writer = writer.bytes(self.name.as_bytes())?;
        writer = writer.bytes(self.second.as_bytes())?;
        writer = writer.bytes(self.error.as_bytes())?;
        if !self.more.is_empty() {
            writer = writer.words([self.more.len() as u64])?;
            writer = writer.bytes(self.more)?;
        }
        writer = self.attributes.write(writer)?;
        Some(first.finish(header(KIND_SPAN, flags, span.scope.0, kind), writer))
    }
}

/// A finished free span, out of the ring. Texts are bytes: most go on as such.
#[derive(Debug)]
pub(crate) struct DecodedSpan<'a> {
    /// Span name.
    pub(crate) name: &'a [u8],
    /// Nanoseconds since 1970.
    pub(crate) start: u64,
    /// Nanoseconds since 1970.
    pub(crate) end: u64,
    /// Its id.
    pub(crate) span_id: SpanId,
    /// Where it hangs.
    pub(crate) parent: Parent<'a>,
    /// The parent is in another process.
    pub(crate) parent_is_remote: bool,
    /// W3C `tracestate`.
    pub(crate) trace_state: &'a [u8],
    /// Its kind.
    pub(crate) kind: SpanKind,
    /// Status code of OTLP, and description.
    pub(crate) status: Option<(u8, &'a [u8])>,
    /// Attributes.
    pub(crate) attributes: Attributes<'a>,
    /// Events, links and dropped counts as OTLP fields.
    pub(crate) more: &'a [u8],
    /// The library that made it.
    pub(crate) scope: ScopeId,
}

pub(super) fn decode(header: u64, mut reader: Reader<'_>) -> Option<DecodedSpan<'_>> {
    let flags = header >> 24 & 0xff;
    let (start, end) = (reader.word()?, reader.word()?);
    let span_id = SpanId::new(reader.word()?)?;
    let trace = u128::from(reader.word()?) << 64 | u128::from(reader.word()?);
    let parent_span = reader.word()?;
    let extra = reader.word()?;
    let (name_len, second_len, count) = lengths(reader.word()?);
    let name = reader.bytes(name_len)?;
    let second = reader.bytes(second_len)?;
    let error = reader.bytes((extra >> 8) as usize)?;
    let more = if flags & HAS_MORE != 0 {
        let len = reader.word()? as usize;
        reader.bytes(len)?
    } else {
        &[]
    };
    let (parent, trace_state) = if flags & PARENT_REQUEST != 0 {
        (Parent::Request(std::str::from_utf8(second).ok()?), &[][..])
    } else if flags & PARENT_SPAN != 0 {
        let context = SpanContext {
            trace_id: TraceId::new(trace)?,
            span_id: SpanId::new(parent_span)?,
            flags: extra as u8,
        };
        (Parent::Span(context), second)
    } else {
        (Parent::Root(TraceId::new(trace)?), second)
    };
    Some(DecodedSpan {
        name,
        start,
        end,
        span_id,
        parent,
        parent_is_remote: flags & PARENT_IS_REMOTE != 0,
        trace_state,
        kind: match header >> 48 {
            1 => SpanKind::Server,
            2 => SpanKind::Client,
            3 => SpanKind::Producer,
            4 => SpanKind::Consumer,
            _ => SpanKind::Internal,
        },
        status: match flags & STATUS {
            OK => Some((1, &[])),
            ERROR => Some((2, error)),
            _ => None,
        },
        attributes: Attributes::new(reader, count),
        more,
        scope: ScopeId((header >> 32 & 0xffff) as u16),
    })
}
