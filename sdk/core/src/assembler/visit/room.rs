//! How much of what was recorded one visit keeps, and how much it has left out.

use crate::span::Dropped;
use crate::value::{Array, Attribute, Value};
use crate::vocabulary::PhaseId;

/// Most events of a visit.
const MAX_EVENTS: usize = 256;
/// Most bytes of attributes and events of a visit: any of its spans stays below a quarter
/// of the 4 MiB that a Collector takes in one request.
const MAX_BYTES: usize = 512 << 10;
/// What an attribute or an event takes beside its texts, at most: tags, lengths, numbers.
const FRAME_BYTES: usize = 32;

/// The room that is taken, and by phase and try what had none.
#[derive(Default)]
pub(super) struct Room {
    events: usize,
    bytes: usize,
    dropped: Vec<(PhaseId, u16, Dropped)>,
}

impl Room {
    /// Takes as much as one more attribute needs. False: there is not so much left.
    pub(super) fn take_attribute(&mut self, attribute: &Attribute) -> bool {
        self.take(of_attribute(attribute))
    }

    /// Takes what an attribute's new value needs more than the old one. False: there is
    /// not so much left.
    pub(super) fn take_change(&mut self, old: &Value, new: &Value) -> bool {
        let before = self.bytes;
        self.bytes = before.saturating_sub(of_value(old));
        let taken = self.take(of_value(new));
        if !taken {
            self.bytes = before;
        }
        taken
    }

    /// Takes as much as an event needs. False: there is not so much left.
    pub(super) fn take_event(&mut self, name: &str, attributes: &[Attribute]) -> bool {
        let attributes: usize = attributes.iter().map(of_attribute).sum();
        let taken = self.events < MAX_EVENTS && self.take(FRAME_BYTES + name.len() + attributes);
        self.events += usize::from(taken);
        taken
    }

    fn take(&mut self, bytes: usize) -> bool {
        let fits = self.bytes + bytes <= MAX_BYTES;
        if fits {
            self.bytes += bytes;
        }
        fits
    }

    /// What had no room in the span of a phase.
    pub(super) fn dropped(&self, phase: PhaseId, occurrence: u16) -> Dropped {
        let of = self.dropped.iter();
        let mut of = of.filter(|(p, o, _)| (*p, *o) == (phase, occurrence));
        of.next()
            .map_or_else(Dropped::default, |(.., dropped)| *dropped)
    }

    /// The same, to be added to.
    #[cold]
    pub(super) fn dropped_mut(&mut self, phase: PhaseId, occurrence: u16) -> &mut Dropped {
        let same = |(p, o, _): &(PhaseId, u16, Dropped)| (*p, *o) == (phase, occurrence);
        let at = self.dropped.iter().position(same).unwrap_or_else(|| {
            self.dropped.push((phase, occurrence, Dropped::default()));
            self.dropped.len() - 1
        });
        &mut self.dropped[at].2
    }
}

fn of_attribute(attribute: &Attribute) -> usize {
    FRAME_BYTES + attribute.key.len() + of_value(&attribute.value)
}

fn of_value(value: &Value) -> usize {
    match value {
        Value::Str(text) => text.len(),
        Value::Array(array) => Array::as_ref(array).0.len(),
        Value::I64(_) | Value::F64(_) | Value::Bool(_) => 0,
    }
}
