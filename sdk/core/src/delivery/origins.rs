//! Where phases' spans came from, as bytes: kept as they are, each would hold several
//! small pieces of memory for as long as its batch waits.

use crate::context::SpanContext;
use crate::id::{SpanId, TraceId};
use crate::span::{Moment, PhaseOrigin, PhaseOriginRef};
use crate::vocabulary::{ActionId, PhaseId};

/// Which of the parts that may be missing are there.
const CONTEXT: u8 = 1;
const ENTERED: u8 = 1 << 1;
const START: u8 = 1 << 2;
const END: u8 = 1 << 3;

/// Origins, one after the other.
#[derive(Default)]
pub(super) struct Origins(Vec<u8>);

impl Origins {
    pub(super) fn push(&mut self, origin: PhaseOriginRef<'_>) {
        let PhaseOriginRef {
            request_id,
            phase,
            occurrence,
            context,
            entered,
            start,
            end,
            seen,
            recorded_attributes,
        } = origin;
        let parts = [
            (CONTEXT, context.is_some()),
            (ENTERED, entered.is_some()),
            (START, start.is_some()),
            (END, end.is_some()),
        ];
        let there = parts.iter().filter(|(_, is_there)| *is_there);
        let there = there.fold(0, |all, (part, _)| all | part);
        let head = [phase.0.to_le_bytes(), occurrence.to_le_bytes()];
        let lengths = [request_id.len(), recorded_attributes, seen.len()];
        let lengths = lengths.map(|len| (len as u32).to_le_bytes());
        self.0.push(there);
        self.0.extend_from_slice(head.as_flattened());
        self.0.extend_from_slice(lengths.as_flattened());
        self.0.extend_from_slice(request_id.as_bytes());
        if let Some(context) = context {
            self.0.extend(context.trace_id.value().to_le_bytes());
            self.0.extend(context.span_id.value().to_le_bytes());
            self.0.push(context.flags);
        }
        let bounds = [entered, start, end].into_iter().flatten();
        for moment in bounds.chain(seen.iter().copied()) {
            self.0.extend(moment.action.0.to_le_bytes());
            self.0.extend(moment.time.to_le_bytes());
        }
    }

    /// All of them, for [`read`].
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Bytes of memory, in use or not.
    pub(super) fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Forgets them; their memory stays for others.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The origins in their order.
pub(super) fn read(bytes: &[u8]) -> impl Iterator<Item = PhaseOrigin> {
    let mut reader = Reader(bytes);
    std::iter::from_fn(move || reader.origin())
}

/// What is left to be read.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    /// None: that was the last one.
    fn origin(&mut self) -> Option<PhaseOrigin> {
        let there = u8::from_le_bytes(self.take()?);
        let (phase, occurrence) = (self.take()?, self.take()?);
        let (id, recorded, seen) = (self.length()?, self.length()?, self.length()?);
        let (id, rest) = self.0.split_at_checked(id)?;
        self.0 = rest;
        Some(PhaseOrigin {
            request_id: std::str::from_utf8(id).ok()?.into(),
            phase: PhaseId(u16::from_le_bytes(phase)),
            occurrence: u16::from_le_bytes(occurrence),
            context: self.read_if(there & CONTEXT != 0, Self::context)?,
            entered: self.read_if(there & ENTERED != 0, Self::moment)?,
            start: self.read_if(there & START != 0, Self::moment)?,
            end: self.read_if(there & END != 0, Self::moment)?,
            seen: (0..seen).map(|_| self.moment()).collect::<Option<_>>()?,
            recorded_attributes: recorded,
        })
    }

    /// The outer None: it cannot be read.
    fn read_if<T>(
        &mut self,
        is_there: bool,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<Option<T>> {
        match is_there {
            true => read(self).map(Some),
            false => Some(None),
        }
    }

    fn context(&mut self) -> Option<SpanContext> {
        Some(SpanContext {
            trace_id: TraceId::new(u128::from_le_bytes(self.take()?))?,
            span_id: SpanId::new(u64::from_le_bytes(self.take()?))?,
            flags: u8::from_le_bytes(self.take()?),
        })
    }

    fn moment(&mut self) -> Option<Moment> {
        Some(Moment {
            action: ActionId(u16::from_le_bytes(self.take()?)),
            time: u64::from_le_bytes(self.take()?),
        })
    }

    fn length(&mut self) -> Option<usize> {
        self.take().map(|bytes| u32::from_le_bytes(bytes) as usize)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn moments()(action: u16, time: u64) -> Moment {
            Moment { action: ActionId(action), time }
        }
    }

    prop_compose! {
        fn contexts()(trace_id in 1..u128::MAX, span_id in 1..u64::MAX, flags: u8) -> SpanContext {
            SpanContext {
                trace_id: TraceId::new(trace_id).unwrap(),
                span_id: SpanId::new(span_id).unwrap(),
                flags,
            }
        }
    }

    prop_compose! {
        fn origins()(
            request_id in ".{0,40}",
            (phase, occurrence, recorded_attributes) in (any::<u16>(), any::<u16>(), 0..1000usize),
            context in option::of(contexts()),
            (entered, start, end) in (
                option::of(moments()),
                option::of(moments()),
                option::of(moments()),
            ),
            seen in prop::collection::vec(moments(), 0..5),
        ) -> PhaseOrigin {
            PhaseOrigin {
                request_id: request_id.into(),
                phase: PhaseId(phase),
                occurrence,
                context,
                entered,
                start,
                end,
                seen,
                recorded_attributes,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_was_packed_comes_out_as_it_was(
            before in prop::collection::vec(origins(), 0..6),
            after in prop::collection::vec(origins(), 0..6),
        ) {
            let mut packed = Origins::default();
            before.iter().for_each(|origin| packed.push(origin.as_ref()));
            prop_assert_eq!(read(packed.bytes()).collect::<Vec<_>>(), before);
            packed.clear();
            after.iter().for_each(|origin| packed.push(origin.as_ref()));
            prop_assert_eq!(read(packed.bytes()).collect::<Vec<_>>(), after);
        }
    }
}
