//! Actions and bindings within a record.
//!
//! ```text
//! action: header · time · texts · [context 4] · request id · [name] · attributes
//! bind:   header · texts · [context 4] · request id · canonical id
//! ```

use std::sync::Arc;

use crate::context::SpanContext;
use crate::event::{Action, ActionName, Event};
use crate::key::KeyRef;
use crate::span::Source;
use crate::value::ValueRef;
use crate::vocabulary::ActionId;

use super::super::sync::AtomicU64;
use super::super::writer::Writer;
use super::attributes::{Attributes, Kept, WriteAttributes};
use super::{
    Encode, KIND_ACTION, KIND_BIND, MAX_TEXT, Measure, Reader, cut, header, kept_id, lengths,
    texts, words_of, write_context,
};

const HAS_CONTEXT: u64 = 1;
const CARRIED: u64 = 2;
const LAST: u64 = 4;

const CUSTOM_ACTION: u64 = 0xffff;

/// An action with its name looked up.
pub(crate) struct ActionRecord<'a> {
    id: Option<ActionId>,
    carried: bool,
    last: bool,
    time: u64,
    occurrence: u16,
    context: Option<SpanContext>,
    request_id: &'a str,
    /// Only of an action outside the vocabulary.
    name: &'a str,
    attributes: Kept<'a>,
}

impl<'a> ActionRecord<'a> {
    /// `carried`: it happened in another process of the node.
    #[inline]
    pub(crate) fn new(
        id: Option<ActionId>,
        carried: bool,
        action: &Action<'a>,
        attributes: Kept<'a>,
    ) -> Self {
        Self {
            id,
            carried,
            last: false,
            time: action.time,
            occurrence: action.occurrence,
            context: action.context,
            request_id: kept_id(action.request_id),
            name: match id {
                Some(_) => "",
                None => cut(action.name, MAX_TEXT),
            },
            attributes,
        }
    }

    /// Nothing more will come of its request.
    #[inline]
    pub(crate) fn last(self, last: bool) -> Self {
        Self { last, ..self }
    }
}

impl Measure for ActionRecord<'_> {
    fn words(&self) -> Option<usize> {
        let context = if self.context.is_some() { 4 } else { 0 };
        let texts = words_of(self.request_id.len()) + words_of(self.name.len());
        Some(3 + context + texts + self.attributes.words()?)
    }
}

impl Encode for ActionRecord<'_> {
    #[inline]
    fn encode(&self, room: &[AtomicU64]) -> Option<usize> {
        let (first, mut writer) = Writer::after_first(room)?;
        let context = if self.context.is_some() {
            HAS_CONTEXT
        } else {
            0
        };
        let carried = if self.carried { CARRIED } else { 0 };
        let last = if self.last { LAST } else { 0 };
        let action = self.id.map_or(CUSTOM_ACTION, |id| u64::from(id.0));
        let flags = context | carried | last;
        let count = self.attributes.count();
        writer = writer.words([self.time, texts(self.request_id, self.name, count)])?;
        if let Some(context) = &self.context {
            writer = write_context(writer, context)?;
        }
        writer = writer.bytes(self.request_id.as_bytes())?;
        writer = writer.bytes(self.name.as_bytes())?;
        writer = self.attributes.write(writer)?;
        Some(first.finish(header(KIND_ACTION, flags, self.occurrence, action), writer))
    }
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
    /// Nothing more will come of its request.
    pub(crate) last: bool,
    /// The context that came with it.
    pub(crate) context: Option<SpanContext>,
    /// Attributes.
    pub(crate) attributes: Attributes<'a>,
}

impl DecodedAction<'_> {
    /// It as the assembler takes it, recorded by a source.
    pub(crate) fn event<'e>(
        &'e self,
        attributes: &'e [(KeyRef<'e>, ValueRef<'e>)],
        source: &'e Arc<Source>,
    ) -> Event<'e> {
        Event {
            action: self.name,
            time: self.time,
            request_id: self.request_id,
            occurrence: self.occurrence,
            context: self.context,
            attributes,
            source,
            carried: self.carried,
        }
    }
}

fn context(header: u64, reader: &mut Reader<'_>) -> Option<Option<SpanContext>> {
    if header >> 24 & HAS_CONTEXT == 0 {
        return Some(None);
    }
    reader.context().map(Some)
}

pub(super) fn decode(header: u64, mut reader: Reader<'_>) -> Option<DecodedAction<'_>> {
    let time = reader.word()?;
    let (id_len, name_len, count) = lengths(reader.word()?);
    let context = context(header, &mut reader)?;
    let request_id = reader.text(id_len)?;
    let name = reader.text(name_len)?;
    Some(DecodedAction {
        name: match header >> 48 {
            CUSTOM_ACTION => ActionName::Custom(name),
            id => ActionName::Known(ActionId(id as u16)),
        },
        time,
        request_id,
        occurrence: (header >> 32 & 0xffff) as u16,
        carried: header >> 24 & CARRIED != 0,
        last: header >> 24 & LAST != 0,
        context,
        attributes: Attributes::new(reader, count),
    })
}

/// Ties a request to the context and the canonical id that came with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bind<'a> {
    /// The id that this process uses.
    pub(crate) request_id: &'a str,
    /// The id that all processes share.
    pub(crate) canonical: &'a str,
    /// The context that came with the request.
    pub(crate) context: Option<SpanContext>,
}

impl Measure for Bind<'_> {
    fn words(&self) -> Option<usize> {
        let context = if self.context.is_some() { 4 } else { 0 };
        let id = words_of(cut(self.request_id, MAX_TEXT).len());
        let canonical = words_of(cut(self.canonical, MAX_TEXT).len());
        Some(2 + context + id + canonical)
    }
}

impl Encode for Bind<'_> {
    fn encode(&self, room: &[AtomicU64]) -> Option<usize> {
        let (first, mut writer) = Writer::after_first(room)?;
        let id = cut(self.request_id, MAX_TEXT);
        let canonical = cut(self.canonical, MAX_TEXT);
        let flags = if self.context.is_some() {
            HAS_CONTEXT
        } else {
            0
        };
        writer = writer.words([texts(id, canonical, 0)])?;
        if let Some(context) = &self.context {
            writer = write_context(writer, context)?;
        }
        writer = writer.bytes(id.as_bytes())?;
        writer = writer.bytes(canonical.as_bytes())?;
        Some(first.finish(header(KIND_BIND, flags, 0, 0), writer))
    }
}

pub(super) fn decode_bind(header: u64, mut reader: Reader<'_>) -> Option<Bind<'_>> {
    let (id_len, canonical_len, _) = lengths(reader.word()?);
    let context = context(header, &mut reader)?;
    Some(Bind {
        request_id: reader.text(id_len)?,
        canonical: reader.text(canonical_len)?,
        context,
    })
}
