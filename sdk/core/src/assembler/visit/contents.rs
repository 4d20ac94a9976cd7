//! What the span of one phase says: its times, and what was recorded of it.

use std::sync::Arc;

use crate::span::{Moment, SpanEvent, Status};
use crate::value::{Attribute, Value, set_attribute};
use crate::vocabulary::{PhaseId, Vocabulary};

use super::{Visit, named};

/// Attribute that renames the span it lands on.
const SPAN_NAME: &str = "omnitrace.span.name";

/// From where to where a span goes.
pub(in crate::assembler) struct Extent {
    pub(in crate::assembler) start: u64,
    pub(in crate::assembler) end: u64,
    pub(in crate::assembler) start_moment: Option<Moment>,
    pub(in crate::assembler) end_moment: Option<Moment>,
    pub(in crate::assembler) seen: Vec<Moment>,
    incomplete: bool,
}

/// What a span says besides its times.
pub(in crate::assembler) struct Contents {
    pub(in crate::assembler) name: Arc<str>,
    pub(in crate::assembler) status: Status,
    pub(in crate::assembler) attributes: Vec<Attribute>,
    pub(in crate::assembler) recorded_attributes: usize,
    pub(in crate::assembler) events: Vec<SpanEvent>,
}

impl Visit {
    /// Times of a phase; with an end missing, as far as its children and this
    /// visit's moments reach. None when it would end before it starts.
    pub(in crate::assembler) fn extent(
        &self,
        vocabulary: &Vocabulary,
        phase: PhaseId,
        occurrence: u16,
    ) -> Option<Extent> {
        let definition = vocabulary.phase(phase);
        let named = |seen| named(vocabulary, seen);
        let start = self.first(&definition.start, occurrence);
        let end = self.first(&definition.end, occurrence);
        let children = || {
            self.emitted
                .iter()
                .filter(|(p, ..)| vocabulary.phase(*p).parent == Some(phase) && occurrence == 0)
        };
        if let (Some(start), Some(end)) = (start, end) {
            if start.time <= end.time {
                return Some(Extent {
                    start: start.time,
                    end: end.time,
                    start_moment: Some(named(start)),
                    end_moment: Some(named(end)),
                    seen: Vec::new(),
                    incomplete: false,
                });
            }
            if !vocabulary.is_main(phase) && children().next().is_none() {
                return None;
            }
        }
        let own = self.moments.iter().filter(|m| {
            let action = vocabulary.action(m.action);
            !m.foreign && m.occurrence == occurrence && action.span == phase
        });
        let times: Vec<u64> = children()
            .flat_map(|(_, _, start, end)| [*start, *end])
            .chain(own.map(|m| m.time))
            .chain(start.or(end).map(|m| m.time))
            .collect();
        let earliest = start.map(|m| m.time).or(times.iter().copied().min())?;
        let latest = times.iter().copied().max().unwrap_or(earliest);
        Some(Extent {
            start: earliest,
            end: latest.max(earliest),
            start_moment: start.map(named),
            end_moment: end.map(named),
            seen: self
                .moments
                .iter()
                .filter(|m| m.occurrence == occurrence)
                .map(|m| named(*m))
                .collect(),
            incomplete: true,
        })
    }

    /// Name, status, attributes and events of a phase's span.
    pub(in crate::assembler) fn contents(
        &self,
        vocabulary: &Vocabulary,
        request_id: &Arc<str>,
        phase: PhaseId,
        occurrence: u16,
        extent: &Extent,
    ) -> Contents {
        let definition = vocabulary.phase(phase);
        let mut attributes: Vec<Attribute> = self
            .attributes
            .iter()
            .filter(|(p, o, _)| (*p, *o) == (phase, occurrence))
            .map(|(_, _, attribute)| attribute.clone())
            .collect();
        let recorded_attributes = attributes.len();
        let text = |key: &str| {
            attributes
                .iter()
                .find(|a| &*a.key == key)
                .and_then(|a| match &a.value {
                    Value::Str(text) => Some(Arc::clone(text)),
                    _ => None,
                })
        };
        let name = text(SPAN_NAME).unwrap_or_else(|| Arc::clone(&definition.name));
        let status = text("error.type").map_or(Status::Unset, |_| Status::Error("".into()));
        set_attribute(
            &mut attributes,
            "gen_ai.request.id",
            Value::Str(Arc::clone(request_id)),
        );
        if vocabulary.is_main(phase) {
            let role = Arc::clone(&vocabulary.role(definition.role).name);
            set_attribute(&mut attributes, "omnitrace.role", Value::Str(role));
        }
        for measure in vocabulary.measures().iter().filter(|m| m.span == phase) {
            let start = self.first(&measure.start, occurrence);
            let end = self.first(&measure.end, occurrence);
            if let (Some(start), Some(end)) = (start, end)
                && let Some(nanos) = end.time.checked_sub(start.time)
            {
                set_attribute(
                    &mut attributes,
                    &measure.attribute,
                    Value::F64(nanos as f64 / 1e9),
                );
            }
        }
        if occurrence > 0 {
            let count = Value::I64(i64::from(occurrence));
            set_attribute(&mut attributes, "omnitrace.occurrence", count);
        }
        if extent.incomplete {
            set_attribute(&mut attributes, "omnitrace.incomplete", Value::Bool(true));
        }
        let mut events: Vec<SpanEvent> = self
            .events
            .iter()
            .filter(|e| (e.phase, e.occurrence) == (Some(phase), occurrence))
            .map(|e| e.event.clone())
            .collect();
        events.sort_by_key(|e| e.time);
        Contents {
            name,
            status,
            attributes,
            recorded_attributes,
            events,
        }
    }
}
