//! How a record lies in the ring: little-endian words, texts padded to words.
//!
//! ```text
//! header     = words (16) | kind (8) | flags (8) | number (16) | action, kind or phase (16)
//! texts      = first length (32) | second length (16) | attribute count (16)
//! attribute  = key length or number (16) | type (8) | value length (32) · [key] · value
//! ```

mod action;
mod attributes;
mod limited;
mod more;
mod packed;
mod phase;
mod span;

use crate::context::SpanContext;
use crate::id::{SpanId, TraceId, canonical_request_id};

use super::ring::MAX_WORDS;
use super::sync::AtomicU64;
use super::writer::Writer;

pub(crate) use action::{ActionRecord, Bind, DecodedAction};
pub(crate) use attributes::{Attributes, Cut, Kept, Literal};
pub(crate) use limited::Limited;
pub(crate) use more::More;
pub use packed::PackedAttributes;
pub(crate) use phase::{DecodedPhase, PhaseRecord};
pub(crate) use span::{DecodedSpan, SpanRecord, more};

/// Longest request id, name or key that is kept, in bytes.
const MAX_TEXT: usize = 1024;
/// Longest attribute value that is kept, in bytes.
const MAX_VALUE: usize = 16 * 1024;
/// Most attributes that are kept.
const MAX_ATTRIBUTES: usize = 128;
/// Most words that attributes may take in all.
const MAX_ATTRIBUTE_WORDS: usize = MAX_WORDS / 2;
/// Most words that a span's events and links may take in all.
const MAX_MORE_WORDS: usize = MAX_WORDS / 2 - 8 * MAX_TEXT / 8;

// 0 is the ring's own.
const KIND_ACTION: u64 = 1;
const KIND_BIND: u64 = 2;
const KIND_SPAN: u64 = 3;
const KIND_PHASE: u64 = 4;

/// Something that can be written into a ring.
pub(crate) trait Encode {
    /// Writes it; the words that it took. None: there is no room, or it has more than
    /// is kept.
    fn encode(&self, room: &[AtomicU64]) -> Option<usize>;
}

/// One that can say beforehand how long it will be.
pub(crate) trait Measure: Encode {
    /// Exactly the words that [`Self::encode`] writes. None: it has more than is kept.
    fn words(&self) -> Option<usize>;
}

/// A decoded record.
#[derive(Debug)]
pub(crate) enum Record<'a> {
    /// A moment of a request.
    Action(DecodedAction<'a>),
    /// A request's context and canonical id.
    Bind(Bind<'a>),
    /// A finished free span.
    Span(DecodedSpan<'a>),
    /// A finished phase.
    Phase(DecodedPhase<'a>),
}

/// The part of a request id that all of its records share.
#[inline]
pub(crate) fn kept_id(id: &str) -> &str {
    if id.len() <= MAX_TEXT {
        return id;
    }
    cut(canonical_request_id(id), MAX_TEXT)
}

/// The part of a text that is kept: whole characters within the limit.
#[inline]
fn cut(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    &text[..text.floor_char_boundary(limit)]
}

#[inline]
fn words_of(bytes: usize) -> usize {
    bytes.div_ceil(8)
}

/// Without the words, see [`First::finish`](super::writer::First::finish).
#[inline]
fn header(kind: u64, flags: u64, number: u16, action: u64) -> u64 {
    kind << 16 | flags << 24 | u64::from(number) << 32 | action << 48
}

#[inline]
fn texts(first: &str, second: &str, attributes: usize) -> u64 {
    first.len() as u64 | (second.len() as u64) << 32 | (attributes as u64) << 48
}

/// Splits what [`texts`] joined.
fn lengths(word: u64) -> (usize, usize, usize) {
    (
        (word & 0xffff_ffff) as usize,
        (word >> 32 & 0xffff) as usize,
        (word >> 48) as usize,
    )
}

#[inline]
fn write_context<'w>(writer: Writer<'w>, context: &SpanContext) -> Option<Writer<'w>> {
    writer.words([
        (context.trace_id.value() >> 64) as u64,
        context.trace_id.value() as u64,
        context.span_id.value(),
        u64::from(context.flags),
    ])
}

/// Reads words and texts off a record's bytes.
#[derive(Debug, Clone)]
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.bytes.split_first_chunk::<8>()?;
        self.bytes = rest;
        Some(u64::from_le_bytes(*word))
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (padded, rest) = self.bytes.split_at_checked(words_of(len) * 8)?;
        self.bytes = rest;
        padded.get(..len)
    }

    fn text(&mut self, len: usize) -> Option<&'a str> {
        std::str::from_utf8(self.bytes(len)?).ok()
    }

    fn context(&mut self) -> Option<SpanContext> {
        let trace = u128::from(self.word()?) << 64 | u128::from(self.word()?);
        Some(SpanContext {
            trace_id: TraceId::new(trace)?,
            span_id: SpanId::new(self.word()?)?,
            flags: self.word()? as u8,
        })
    }
}

/// None only for bytes that no [`Encode`] wrote.
pub(super) fn decode(bytes: &[u8]) -> Option<Record<'_>> {
    let mut reader = Reader { bytes };
    let header = reader.word()?;
    match header >> 16 & 0xff {
        KIND_ACTION => action::decode(header, reader).map(Record::Action),
        KIND_BIND => action::decode_bind(header, reader).map(Record::Bind),
        KIND_SPAN => span::decode(header, reader).map(Record::Span),
        KIND_PHASE => phase::decode(header, reader).map(Record::Phase),
        _ => None,
    }
}
