//! How a record lies in the ring: little-endian words, texts padded to words.
//!
//! ```text
//! action: header · time · texts · [context 4] · request id · [name] · attributes
//! bind:   header · texts · [context 4] · request id · canonical id
//! span:   header · start · end · span id · parent 4 · texts · name · [request id] · [error] · attributes
//! header = words (16) | kind (8) | flags (8) | occurrence (16) | action (16)
//! texts  = first length (32) | second length (16) | attribute count (16)
//! attribute = key length (16) | tag (8) | value length (32) · key · value
//! ```

use std::sync::Arc;

use crate::context::SpanContext;
use crate::event::{Action, ActionName, Attributes, FreeSpan, Parent};
use crate::id::{SpanId, TraceId, canonical_request_id};
use crate::span::{Place, Source, Span, SpanKind, Status};
use crate::value::{Attribute, ValueRef};
use crate::vocabulary::ActionId;

use super::ring::Writer;

/// The longest record; texts are cut to make theirs fit.
pub(super) const MAX_WORDS: usize = u16::MAX as usize;
/// Longest request id, name or key that is kept, in bytes.
const MAX_TEXT: usize = 1024;
/// Longest attribute value that is kept, in bytes.
const MAX_VALUE: usize = 16 * 1024;
/// Most attributes that are kept.
const MAX_ATTRIBUTES: usize = 128;
/// Most words that attributes may take in all.
const MAX_ATTRIBUTE_WORDS: usize = MAX_WORDS - 4 * MAX_TEXT / 8;

const KIND_ACTION: u64 = 1;
const KIND_BIND: u64 = 2;
const KIND_SPAN: u64 = 3;

const HAS_CONTEXT: u64 = 1;
const CARRIED: u64 = 2;
const HAS_ERROR: u64 = 4;
const PARENT_REQUEST: u64 = 8;
const PARENT_SPAN: u64 = 16;

const CUSTOM_ACTION: u64 = 0xffff;

/// Something that can be written into a ring.
pub(crate) trait Encode {
    /// Exactly the words that [`Self::encode`] writes.
    fn words(&self) -> usize;
    fn encode(&self, writer: &mut Writer<'_>);
}

/// An action with its name looked up.
pub(crate) struct ActionRecord<'a> {
    pub(crate) id: Option<ActionId>,
    pub(crate) carried: bool,
    pub(crate) action: Action<'a>,
}

/// Ties a request to the context and the canonical id that came with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bind<'a> {
    pub(crate) request_id: &'a str,
    pub(crate) canonical: &'a str,
    pub(crate) context: Option<SpanContext>,
}

/// A decoded record.
#[derive(Debug)]
pub(crate) enum Record<'a> {
    /// A moment of a request.
    Action(DecodedAction<'a>),
    /// A request's context and canonical id.
    Bind {
        /// The id that this process uses.
        request_id: &'a str,
        /// The id that all processes share.
        canonical: &'a str,
        /// The context that came with the request.
        context: Option<SpanContext>,
    },
    /// A finished free span.
    Span(DecodedSpan<'a>),
}

/// A moment of a request, out of the ring.
#[derive(Debug)]
pub(crate) struct DecodedAction<'a> {
    /// What happened.
    pub(crate) name: ActionName<'a>,
    /// Nanoseconds since 1970.
    pub(crate) time: u64,
    /// Request id as recorded.
    pub(crate) request_id: &'a str,
    /// Which try, from 0.
    pub(crate) occurrence: u16,
    /// It happened in another process.
    pub(crate) carried: bool,
    /// The context that came with it.
    pub(crate) context: Option<SpanContext>,
    /// Attributes.
    pub(crate) attributes: Vec<(&'a str, ValueRef<'a>)>,
}

/// A finished free span, out of the ring.
#[derive(Debug)]
pub(crate) struct DecodedSpan<'a> {
    /// Span name.
    pub(crate) name: &'a str,
    /// Nanoseconds since 1970.
    pub(crate) start: u64,
    /// Nanoseconds since 1970.
    pub(crate) end: u64,
    /// Its id.
    pub(crate) span_id: SpanId,
    /// Where it hangs.
    pub(crate) parent: Parent<'a>,
    /// Its kind.
    pub(crate) kind: SpanKind,
    /// Description of the failure.
    pub(crate) error: Option<&'a str>,
    /// Attributes.
    pub(crate) attributes: Vec<(&'a str, ValueRef<'a>)>,
}

impl DecodedSpan<'_> {
    /// The span, in its place.
    pub(crate) fn to_span(&self, place: &Place, source: &Arc<Source>) -> Span {
        Span {
            trace_id: place.trace_id,
            span_id: self.span_id,
            parent_span_id: place.parent,
            flags: place.flags,
            name: self.name.into(),
            kind: self.kind,
            start: self.start,
            end: self.end.max(self.start),
            status: self
                .error
                .map_or(Status::Unset, |text| Status::Error(text.into())),
            attributes: self
                .attributes
                .iter()
                .map(|(key, value)| Attribute::new(*key, value.to_value()))
                .collect(),
            events: Vec::new(),
            links: Vec::new(),
            source: Arc::clone(source),
            origin: None,
        }
    }
}

/// The part of a request id that all of its records share.
pub(crate) fn kept_id(id: &str) -> &str {
    if id.len() <= MAX_TEXT {
        return id;
    }
    cut(canonical_request_id(id), MAX_TEXT)
}

/// The part of a text that is kept: whole characters within the limit.
fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

fn words_of(bytes: usize) -> usize {
    bytes.div_ceil(8)
}

fn header(words: usize, kind: u64, flags: u64, occurrence: u16, action: u64) -> u64 {
    words as u64 | kind << 16 | flags << 24 | u64::from(occurrence) << 32 | action << 48
}

/// Words of the record that starts with this header.
pub(super) fn length(header: u64) -> usize {
    // Never 0, or a reader would not get past it.
    ((header & 0xffff) as usize).max(1)
}

fn texts(first: &str, second: &str, attributes: usize) -> u64 {
    first.len() as u64 | (second.len() as u64) << 32 | (attributes as u64) << 48
}

fn write_context(writer: &mut Writer<'_>, context: &SpanContext) {
    writer.word((context.trace_id.value() >> 64) as u64);
    writer.word(context.trace_id.value() as u64);
    writer.word(context.span_id.value());
    writer.word(u64::from(context.flags));
}

fn value_len(value: &ValueRef<'_>) -> usize {
    match value {
        ValueRef::Str(text) => cut(text, MAX_VALUE).len(),
        _ => 8,
    }
}

/// The attributes that fit, and the words they take.
fn fitting(attributes: Attributes<'_>) -> (usize, usize) {
    let mut total = 0;
    for (i, (key, value)) in attributes.iter().enumerate().take(MAX_ATTRIBUTES) {
        let words = 1 + words_of(cut(key, MAX_TEXT).len()) + words_of(value_len(value));
        if total + words > MAX_ATTRIBUTE_WORDS {
            return (i, total);
        }
        total += words;
    }
    (attributes.len().min(MAX_ATTRIBUTES), total)
}

fn write_attributes(writer: &mut Writer<'_>, attributes: Attributes<'_>) {
    for (key, value) in attributes {
        let key = cut(key, MAX_TEXT);
        let (tag, scalar) = match value {
            ValueRef::Str(_) => (0, 0),
            ValueRef::I64(n) => (1, *n as u64),
            ValueRef::F64(n) => (2, n.to_bits()),
            ValueRef::Bool(b) => (3, u64::from(*b)),
        };
        writer.word(key.len() as u64 | tag << 16 | (value_len(value) as u64) << 24);
        writer.bytes(key.as_bytes());
        match value {
            ValueRef::Str(text) => writer.bytes(cut(text, MAX_VALUE).as_bytes()),
            _ => writer.word(scalar),
        }
    }
}

impl ActionRecord<'_> {
    fn custom_name(&self) -> &str {
        if self.id.is_some() {
            ""
        } else {
            cut(self.action.name, MAX_TEXT)
        }
    }
}

impl Encode for ActionRecord<'_> {
    fn words(&self) -> usize {
        3 + if self.action.context.is_some() { 4 } else { 0 }
            + words_of(cut(self.action.request_id, MAX_TEXT).len())
            + words_of(self.custom_name().len())
            + fitting(self.action.attributes).1
    }

    fn encode(&self, writer: &mut Writer<'_>) {
        let request_id = cut(self.action.request_id, MAX_TEXT);
        let flags = if self.action.context.is_some() {
            HAS_CONTEXT
        } else {
            0
        } | if self.carried { CARRIED } else { 0 };
        let action = self.id.map_or(CUSTOM_ACTION, |id| u64::from(id.0));
        let (count, _) = fitting(self.action.attributes);
        writer.word(header(
            self.words(),
            KIND_ACTION,
            flags,
            self.action.occurrence,
            action,
        ));
        writer.word(self.action.time);
        writer.word(texts(request_id, self.custom_name(), count));
        if let Some(context) = &self.action.context {
            write_context(writer, context);
        }
        writer.bytes(request_id.as_bytes());
        writer.bytes(self.custom_name().as_bytes());
        write_attributes(writer, &self.action.attributes[..count]);
    }
}

impl Encode for Bind<'_> {
    fn words(&self) -> usize {
        2 + if self.context.is_some() { 4 } else { 0 }
            + words_of(cut(self.request_id, MAX_TEXT).len())
            + words_of(cut(self.canonical, MAX_TEXT).len())
    }

    fn encode(&self, writer: &mut Writer<'_>) {
        let (id, canonical) = (
            cut(self.request_id, MAX_TEXT),
            cut(self.canonical, MAX_TEXT),
        );
        let flags = if self.context.is_some() {
            HAS_CONTEXT
        } else {
            0
        };
        writer.word(header(self.words(), KIND_BIND, flags, 0, 0));
        writer.word(texts(id, canonical, 0));
        if let Some(context) = &self.context {
            write_context(writer, context);
        }
        writer.bytes(id.as_bytes());
        writer.bytes(canonical.as_bytes());
    }
}

impl FreeSpan<'_> {
    fn request_id(&self) -> &str {
        match self.parent {
            Parent::Request(id) => kept_id(id),
            _ => "",
        }
    }

    fn kept_error(&self) -> &str {
        cut(self.error.unwrap_or_default(), MAX_TEXT)
    }
}

impl Encode for FreeSpan<'_> {
    fn words(&self) -> usize {
        9 + words_of(cut(self.name, MAX_TEXT).len())
            + words_of(self.request_id().len())
            + words_of(self.kept_error().len())
            + fitting(self.attributes).1
    }

    fn encode(&self, writer: &mut Writer<'_>) {
        let name = cut(self.name, MAX_TEXT);
        let (count, _) = fitting(self.attributes);
        let (parent_flag, trace, span, w3c_flags) = match self.parent {
            Parent::Span(c) => (PARENT_SPAN, c.trace_id.value(), c.span_id.value(), c.flags),
            Parent::Request(_) => (PARENT_REQUEST, 0, 0, 0),
            Parent::Root(trace) => (0, trace.value(), 0, SpanContext::SAMPLED),
        };
        let flags = parent_flag | if self.error.is_some() { HAS_ERROR } else { 0 };
        writer.word(header(self.words(), KIND_SPAN, flags, 0, self.kind as u64));
        writer.word(self.start);
        writer.word(self.end);
        writer.word(self.span_id.value());
        writer.word((trace >> 64) as u64);
        writer.word(trace as u64);
        writer.word(span);
        writer.word(u64::from(w3c_flags) | (self.kept_error().len() as u64) << 8);
        writer.word(texts(name, self.request_id(), count));
        writer.bytes(name.as_bytes());
        writer.bytes(self.request_id().as_bytes());
        writer.bytes(self.kept_error().as_bytes());
        write_attributes(writer, &self.attributes[..count]);
    }
}

/// Reads words and texts off a record's bytes.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.bytes.split_first_chunk::<8>()?;
        self.bytes = rest;
        Some(u64::from_le_bytes(*word))
    }

    fn text(&mut self, len: usize) -> Option<&'a str> {
        let (padded, rest) = self.bytes.split_at_checked(words_of(len) * 8)?;
        self.bytes = rest;
        std::str::from_utf8(padded.get(..len)?).ok()
    }

    fn context(&mut self) -> Option<SpanContext> {
        let trace = u128::from(self.word()?) << 64 | u128::from(self.word()?);
        Some(SpanContext {
            trace_id: TraceId::new(trace)?,
            span_id: SpanId::new(self.word()?)?,
            flags: self.word()? as u8,
        })
    }

    fn attributes(&mut self, count: usize) -> Option<Vec<(&'a str, ValueRef<'a>)>> {
        let mut attributes = Vec::with_capacity(count);
        for _ in 0..count {
            let head = self.word()?;
            let key = self.text((head & 0xffff) as usize)?;
            let value = match head >> 16 & 0xff {
                0 => ValueRef::Str(self.text((head >> 24) as usize)?),
                1 => ValueRef::I64(self.word()? as i64),
                2 => ValueRef::F64(f64::from_bits(self.word()?)),
                _ => ValueRef::Bool(self.word()? != 0),
            };
            attributes.push((key, value));
        }
        Some(attributes)
    }
}

/// Splits what [`texts`] joined.
fn lengths(word: u64) -> (usize, usize, usize) {
    (
        (word & 0xffff_ffff) as usize,
        (word >> 32 & 0xffff) as usize,
        (word >> 48) as usize,
    )
}

/// None only for bytes that no [`Encode`] wrote.
pub(super) fn decode(bytes: &[u8]) -> Option<Record<'_>> {
    let mut reader = Reader { bytes };
    let header = reader.word()?;
    let flags = header >> 24 & 0xff;
    match header >> 16 & 0xff {
        KIND_ACTION => {
            let time = reader.word()?;
            let (id_len, name_len, count) = lengths(reader.word()?);
            let context = if flags & HAS_CONTEXT != 0 {
                Some(reader.context()?)
            } else {
                None
            };
            let request_id = reader.text(id_len)?;
            let name = reader.text(name_len)?;
            Some(Record::Action(DecodedAction {
                name: match header >> 48 {
                    CUSTOM_ACTION => ActionName::Custom(name),
                    id => ActionName::Known(ActionId(id as u16)),
                },
                time,
                request_id,
                occurrence: (header >> 32 & 0xffff) as u16,
                carried: flags & CARRIED != 0,
                context,
                attributes: reader.attributes(count)?,
            }))
        }
        KIND_BIND => {
            let (id_len, canonical_len, _) = lengths(reader.word()?);
            let context = if flags & HAS_CONTEXT != 0 {
                Some(reader.context()?)
            } else {
                None
            };
            let request_id = reader.text(id_len)?;
            Some(Record::Bind {
                request_id,
                canonical: reader.text(canonical_len)?,
                context,
            })
        }
        KIND_SPAN => {
            let (start, end) = (reader.word()?, reader.word()?);
            let span_id = SpanId::new(reader.word()?)?;
            let trace = u128::from(reader.word()?) << 64 | u128::from(reader.word()?);
            let parent_span = reader.word()?;
            let extra = reader.word()?;
            let (name_len, request_len, count) = lengths(reader.word()?);
            let name = reader.text(name_len)?;
            let request_id = reader.text(request_len)?;
            let error = reader.text((extra >> 8) as usize)?;
            let parent = if flags & PARENT_REQUEST != 0 {
                Parent::Request(request_id)
            } else if flags & PARENT_SPAN != 0 {
                Parent::Span(SpanContext {
                    trace_id: TraceId::new(trace)?,
                    span_id: SpanId::new(parent_span)?,
                    flags: extra as u8,
                })
            } else {
                Parent::Root(TraceId::new(trace)?)
            };
            Some(Record::Span(DecodedSpan {
                name,
                start,
                end,
                span_id,
                parent,
                kind: match header >> 48 {
                    1 => SpanKind::Server,
                    2 => SpanKind::Client,
                    3 => SpanKind::Producer,
                    4 => SpanKind::Consumer,
                    _ => SpanKind::Internal,
                },
                error: (flags & HAS_ERROR != 0).then_some(error),
                attributes: reader.attributes(count)?,
            }))
        }
        _ => None,
    }
}
