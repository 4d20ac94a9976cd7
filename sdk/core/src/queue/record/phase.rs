//! Finished phases within a record.
//!
//! ```text
//! header · actions · start · end · entered · texts · [context 4] · request id · attributes
//! actions = start (16) | end (16) | entry (16) | measures (8) | count (8)
//! ```

use crate::context::SpanContext;
use crate::event::FinishedPhase;
use crate::vocabulary::{ActionId, KnownPhase, PhaseId};

use super::super::sync::AtomicU64;
use super::super::writer::Writer;
use super::attributes::{Attributes, Kept, WriteAttributes};
use super::{
    Encode, KIND_PHASE, Measure, Reader, header, kept_id, lengths, texts, words_of, write_context,
};

const HAS_CONTEXT: u64 = 1;

/// A finished phase with its attributes cut to what fits.
pub(crate) struct PhaseRecord<'a> {
    phase: &'a FinishedPhase<'a>,
    request_id: &'a str,
    attributes: Kept<'a>,
}

impl<'a> PhaseRecord<'a> {
    #[inline]
    pub(crate) fn new(phase: &'a FinishedPhase<'a>, attributes: Kept<'a>) -> Self {
        Self {
            phase,
            request_id: kept_id(phase.request_id),
            attributes,
        }
    }
}

impl Measure for PhaseRecord<'_> {
    fn words(&self) -> Option<usize> {
        let context = if self.phase.context.is_some() { 4 } else { 0 };
        Some(6 + context + words_of(self.request_id.len()) + self.attributes.words()?)
    }
}

impl Encode for PhaseRecord<'_> {
    #[inline]
    fn encode(&self, room: &[AtomicU64]) -> Option<usize> {
        let (first, mut writer) = Writer::after_first(room)?;
        let FinishedPhase { phase, entry, .. } = *self.phase;
        let flags = if self.phase.context.is_some() {
            HAS_CONTEXT
        } else {
            0
        };
        let id = u64::from(phase.phase.0);
        let occurrence = self.phase.occurrence;
        writer = writer.words([
            u64::from(phase.start.0)
                | u64::from(phase.end.0) << 16
                | u64::from(entry.start.0) << 32
                | u64::from(phase.measures) << 48
                | u64::from(phase.actions) << 56,
            self.phase.start,
            self.phase.end,
            self.phase.entered,
            texts(self.request_id, "", self.attributes.count()),
        ])?;
        if let Some(context) = &self.phase.context {
            writer = write_context(writer, context)?;
        }
        writer = writer.bytes(self.request_id.as_bytes())?;
        writer = self.attributes.write(writer)?;
        Some(first.finish(header(KIND_PHASE, flags, occurrence, id), writer))
    }
}

/// A finished phase, out of the ring.
#[derive(Debug)]
pub(crate) struct DecodedPhase<'a> {
    /// Which one.
    pub(crate) phase: KnownPhase,
    /// Which try of it, from 0.
    pub(crate) occurrence: u16,
    /// Nanoseconds since 1970.
    pub(crate) start: u64,
    /// Nanoseconds since 1970, never before `start`.
    pub(crate) end: u64,
    /// The action by which the request entered the role, and when that was.
    pub(crate) entry: ActionId,
    pub(crate) entered: u64,
    /// Request id as recorded.
    pub(crate) request_id: &'a str,
    /// The context that came with it.
    pub(crate) context: Option<SpanContext>,
    /// Attributes.
    pub(crate) attributes: Attributes<'a>,
}

pub(super) fn decode(header: u64, mut reader: Reader<'_>) -> Option<DecodedPhase<'_>> {
    let actions = reader.word()?;
    let (start, end, entered) = (reader.word()?, reader.word()?, reader.word()?);
    let (id_len, _, count) = lengths(reader.word()?);
    let context = match header >> 24 & HAS_CONTEXT {
        0 => None,
        _ => Some(reader.context()?),
    };
    Some(DecodedPhase {
        phase: KnownPhase {
            phase: PhaseId((header >> 48) as u16),
            start: ActionId(actions as u16),
            end: ActionId((actions >> 16) as u16),
            measures: (actions >> 48) as u8,
            actions: (actions >> 56) as u8,
        },
        occurrence: (header >> 32) as u16,
        start,
        end: end.max(start),
        entry: ActionId((actions >> 32) as u16),
        entered,
        request_id: reader.text(id_len)?,
        context,
        attributes: Attributes::new(reader, count),
    })
}
