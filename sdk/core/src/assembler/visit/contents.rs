//! What the span of one phase says: its times, and what was recorded of it.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::span::{Dropped, Moment, SpanEvent, Status};
use crate::value::Value;
use crate::vocabulary::{PhaseId, Vocabulary};

use super::{Bounds, Made, Seen, Visit};
use crate::assembler::PhaseValue;
use crate::assembler::keys::OWN;

/// Attribute that renames the span it lands on.
pub(in crate::assembler) const SPAN_NAME: &str = "omnitrace.span.name";

/// From where to where a span goes.
pub(in crate::assembler) struct Extent {
    pub(in crate::assembler) start: u64,
    pub(in crate::assembler) end: u64,
    pub(in crate::assembler) start_moment: Option<Moment>,
    pub(in crate::assembler) end_moment: Option<Moment>,
    pub(in crate::assembler) seen: Vec<Moment>,
    incomplete: bool,
}

/// A span's attributes; seldom more.
pub(in crate::assembler) type Attributes<'a> = SmallVec<[(&'a Arc<str>, PhaseValue<'a>); 16]>;

/// What the attributes that were recorded of a span make of it.
pub(in crate::assembler) struct Recorded<'a> {
    pub(in crate::assembler) name: &'a Arc<str>,
    pub(in crate::assembler) status: Status,
    /// How many they are.
    pub(in crate::assembler) attributes: usize,
    /// What had no room, events included.
    pub(in crate::assembler) dropped: Dropped,
}

impl Visit {
    /// Times of a phase; with an end missing, as far as its children and this
    /// visit's moments reach. None when it would end before it starts.
    pub(in crate::assembler) fn extent(
        &self,
        vocabulary: &Vocabulary,
        phase: PhaseId,
        occurrence: u16,
        Bounds { start, end }: Bounds,
    ) -> Option<Extent> {
        let is_child =
            |m: &&Made| occurrence == 0 && vocabulary.phase(m.phase).parent == Some(phase);
        let children = || self.made.iter().filter(is_child);
        let bounds = (start.map(Seen::moment), end.map(Seen::moment));
        if let (Some(start), Some(end)) = bounds {
            if start.time <= end.time {
                return Some(Extent {
                    start: start.time,
                    end: end.time,
                    start_moment: Some(start),
                    end_moment: Some(end),
                    seen: Vec::new(),
                    incomplete: false,
                });
            }
            if !vocabulary.is_main(phase) && children().next().is_none() {
                return None;
            }
        }
        let is_entry = vocabulary.role(vocabulary.phase(phase).role).entry == phase;
        let own = self.moments.iter().filter(|m| {
            let action = vocabulary.action(m.action);
            let of_it = action.span == phase || is_entry && !action.offline_only;
            !m.foreign && m.occurrence == occurrence && of_it
        });
        let times = || {
            children()
                .flat_map(|made| [made.start, made.end])
                .chain(own.clone().map(|m| m.time))
                .chain(start.or(end).map(|m| m.time))
        };
        let rest = || {
            let moments = self.moments.iter().map(|m| m.time);
            moments.chain(self.events.iter().map(|e| e.event.time))
        };
        let earliest = start.map(|m| m.time).or_else(|| times().min());
        let (earliest, latest) = match earliest {
            Some(earliest) => (earliest, times().max().unwrap_or(earliest)),
            None => (rest().min()?, rest().max()?),
        };
        let seen = self.moments.iter().filter(|m| m.occurrence == occurrence);
        Some(Extent {
            start: earliest,
            end: latest.max(earliest),
            start_moment: bounds.0,
            end_moment: bounds.1,
            seen: seen.map(|m| m.moment()).collect(),
            incomplete: true,
        })
    }

    /// Attributes of a phase's span, the recorded ones first.
    pub(in crate::assembler) fn attributes<'a>(
        &'a self,
        vocabulary: &'a Vocabulary,
        request_id: &'a Arc<str>,
        phase: PhaseId,
        occurrence: u16,
        extent: &Extent,
        attributes: &mut Attributes<'a>,
    ) -> Recorded<'a> {
        let definition = vocabulary.phase(phase);
        for (of, tried, recorded) in &self.attributes {
            if (*of, *tried) == (phase, occurrence) {
                attributes.push((&recorded.key, PhaseValue::Recorded(&recorded.value)));
            }
        }
        let mut recorded = Recorded {
            name: &definition.name,
            status: Status::Unset,
            attributes: attributes.len(),
            dropped: self.room.dropped(phase, occurrence),
        };
        if recorded.attributes > 0 {
            recorded.name = text(attributes, SPAN_NAME).unwrap_or(recorded.name);
            if text(attributes, "error.type").is_some() {
                recorded.status = Status::Error("".into());
            }
        }
        set(attributes, &OWN.request_id, PhaseValue::Text(request_id));
        if vocabulary.is_main(phase) {
            let role = &vocabulary.role(definition.role).name;
            set(attributes, &OWN.role, PhaseValue::Text(role));
        }
        for measure in &definition.measures {
            let measure = &vocabulary.measures()[*measure];
            let start = self.first(&measure.start, occurrence);
            let end = self.first(&measure.end, occurrence);
            if let (Some(start), Some(end)) = (start, end)
                && let Some(nanos) = end.time.checked_sub(start.time)
            {
                let seconds = PhaseValue::F64(nanos as f64 / 1e9);
                set(attributes, &measure.attribute, seconds);
            }
        }
        if occurrence > 0 {
            let count = PhaseValue::I64(i64::from(occurrence));
            set(attributes, &OWN.occurrence, count);
        }
        if extent.incomplete {
            set(attributes, &OWN.incomplete, PhaseValue::Bool(true));
        }
        recorded
    }

    /// Events that a phase's span shows, by time.
    pub(in crate::assembler) fn events(
        &self,
        phase: PhaseId,
        occurrence: u16,
    ) -> SmallVec<[&SpanEvent; 4]> {
        if self.events.is_empty() {
            return SmallVec::new();
        }
        let shown = self.events.iter();
        let shown = shown.filter(|e| (e.phase, e.occurrence) == (Some(phase), occurrence));
        let mut events: SmallVec<[_; 4]> = shown.map(|e| &e.event).collect();
        events.sort_by_key(|e| e.time);
        events
    }
}

/// The value of an attribute that is text.
fn text<'a>(attributes: &Attributes<'a>, key: &str) -> Option<&'a Arc<str>> {
    let (_, value) = attributes.iter().find(|(k, _)| ***k == *key)?;
    match value {
        PhaseValue::Recorded(Value::Str(text)) => Some(text),
        _ => None,
    }
}

/// Sets a key: the last value wins and keeps the first one's place.
fn set<'a>(attributes: &mut Attributes<'a>, key: &'a Arc<str>, value: PhaseValue<'a>) {
    match attributes.iter_mut().find(|(k, _)| *k == key) {
        Some((_, kept)) => *kept = value,
        None => attributes.push((key, value)),
    }
}
