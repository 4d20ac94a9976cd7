//! One role's share of a request on one node: its moments, and the phases that
//! can be made of them.

mod contents;
mod due;
mod loose;
mod room;

use std::sync::Arc;

use crate::context::SpanContext;
use crate::event::{ActionName, Event};
use crate::id::{PhaseKey, TraceId};
use crate::span::{Moment, Source, SpanEvent};
use crate::value::Attribute;
use crate::vocabulary::{ActionId, Phase, PhaseId, Role, RoleId, Vocabulary};

use super::keys::Keys;
pub(super) use contents::{Attributes, SPAN_NAME};
use room::Room;

/// Longest list whose memory another visit takes over.
const MAX_SPARE_ENTRIES: usize = 32;

pub(super) struct Visit {
    pub(super) role: Option<RoleId>,
    pub(super) source: Arc<Source>,
    pub(super) context: Option<SpanContext>,
    /// Main phases that have ended and wait for the round's end.
    pub(super) closing: Vec<(PhaseId, u16)>,
    /// Phases already made.
    made: Vec<Made>,
    first_made: FirstTries,
    /// Phases that would have ended before they began.
    refused: Vec<(PhaseId, u16)>,
    /// In the order in which they were recorded.
    moments: Vec<Seen>,
    first_seen: FirstTries,
    attributes: Vec<(PhaseId, u16, Attribute)>,
    events: Vec<Shown>,
    room: Room,
    /// Process kinds of this node whose events are recorded here.
    processes: u64,
}

/// An action of the vocabulary that has happened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    action: ActionId,
    occurrence: u16,
    /// Recorded by another process, or lent by another visit.
    foreign: bool,
    time: u64,
}

impl Seen {
    fn moment(self) -> Moment {
        Moment {
            action: self.action,
            time: self.time,
        }
    }
}

/// The moments between which a phase is, as far as they are known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    start: Option<Seen>,
    end: Option<Seen>,
}

/// A phase whose span was made, with its times.
#[derive(Debug, Clone, Copy)]
struct Made {
    phase: PhaseId,
    occurrence: u16,
    start: u64,
    end: u64,
}

/// An event to be shown on a phase's span.
struct Shown {
    phase: Option<PhaseId>,
    occurrence: u16,
    known: Option<ActionId>,
    event: SpanEvent,
}

/// Which of the first 64 actions or phases of the vocabulary a list holds with
/// occurrence 0, so that most look-ups need not go through the list.
#[derive(Debug, Clone, Copy, Default)]
struct FirstTries(u64);

impl FirstTries {
    fn bit(index: u16, occurrence: u16) -> Option<u64> {
        (index < 64 && occurrence == 0).then(|| 1 << index)
    }

    fn insert(&mut self, index: u16, occurrence: u16) {
        self.0 |= Self::bit(index, occurrence).unwrap_or(0);
    }

    /// None: the list must be asked.
    fn holds(self, index: u16, occurrence: u16) -> Option<bool> {
        Some(self.0 & Self::bit(index, occurrence)? != 0)
    }

    /// Whether the list lacks all of one of these sets.
    fn lacks(self, bits: Option<(u64, u64)>, occurrence: u16) -> bool {
        bits.is_some_and(|(a, b)| occurrence == 0 && (self.0 & a == 0 || self.0 & b == 0))
    }
}

impl Visit {
    /// A visit without events, in the memory of one that is over.
    pub(super) fn enter(
        spare: Option<Self>,
        role: Option<RoleId>,
        source: &Arc<Source>,
        context: Option<SpanContext>,
    ) -> Self {
        let mut visit = spare.unwrap_or_else(|| Self {
            role: None,
            source: Arc::clone(source),
            context: None,
            closing: Vec::new(),
            made: Vec::new(),
            first_made: FirstTries::default(),
            refused: Vec::new(),
            moments: Vec::new(),
            first_seen: FirstTries::default(),
            attributes: Vec::new(),
            events: Vec::new(),
            room: Room::default(),
            processes: 0,
        });
        if !Arc::ptr_eq(&visit.source, source) {
            visit.source = Arc::clone(source);
        }
        (visit.role, visit.context) = (role, context);
        visit
    }

    /// Ready to be another one; what it has taken beyond the usual is given back.
    pub(super) fn emptied(mut self) -> Self {
        fn empty<T>(list: &mut Vec<T>) {
            list.clear();
            list.shrink_to(MAX_SPARE_ENTRIES);
        }
        empty(&mut self.closing);
        empty(&mut self.made);
        empty(&mut self.refused);
        empty(&mut self.moments);
        empty(&mut self.attributes);
        empty(&mut self.events);
        self.first_made = FirstTries::default();
        self.first_seen = FirstTries::default();
        self.room = Room::default();
        self.processes = 0;
        self
    }

    pub(super) fn is_on_node_of(&self, source: &Arc<Source>) -> bool {
        Arc::ptr_eq(&self.source, source) || self.source.node == source.node
    }

    pub(super) fn is_called_by(&self, context: SpanContext) -> bool {
        self.context
            .is_some_and(|c| (c.trace_id, c.span_id) == (context.trace_id, context.span_id))
    }

    /// What tells the spans of a role's phases from all others.
    pub(super) fn key<'a>(
        &'a self,
        trace_id: TraceId,
        request_id: &'a str,
        role: &'a Role,
        entered: Option<Moment>,
    ) -> PhaseKey<'a> {
        PhaseKey {
            trace_id,
            request_id,
            remote_parent: self.context.map(|c| c.span_id),
            entered: entered.map_or(0, |moment| moment.time),
            role: &role.name,
            node: &self.source.node,
            phase: "",
            occurrence: 0,
        }
    }

    /// When the request entered the role, if span ids depend on it.
    pub(super) fn entered(&self, vocabulary: &Vocabulary, role: &Role) -> Option<Moment> {
        if !role.timed {
            return None;
        }
        let entry = vocabulary.phase(role.entry);
        self.first(&entry.start, 0).map(Seen::moment)
    }

    /// Whether this event enters the role anew: the request id has come again.
    pub(super) fn is_entered_again(&self, vocabulary: &Vocabulary, event: &Event<'_>) -> bool {
        let (Some(role), ActionName::Known(action)) = (self.role, event.action) else {
            return false;
        };
        let entry = vocabulary.phase(vocabulary.role(role).entry);
        entry.start.contains(&action)
            && self
                .moment(action, event.occurrence)
                .is_some_and(|m| m.time != event.time)
    }

    /// Notes the event. False: there is no room for it, nor a span that could say so.
    pub(super) fn record(
        &mut self,
        vocabulary: &Vocabulary,
        keys: &mut Keys,
        event: &Event<'_>,
    ) -> bool {
        let attributes = event.attributes.iter().map(|(key, value)| Attribute {
            key: keys.get(*key),
            value: keys.value(*value),
        });
        let id = match event.action {
            ActionName::Custom(name) => {
                let phase = self.role.map(|role| vocabulary.role(role).entry);
                let shown = SpanEvent {
                    time: event.time,
                    name: name.into(),
                    attributes: attributes.collect(),
                    dropped_attributes: 0,
                };
                return self.show(phase, event.occurrence, None, shown);
            }
            ActionName::Known(id) => id,
        };
        let action = vocabulary.action(id);
        if !event.carried {
            self.processes |= 1 << action.process.min(63);
        }
        if action.event {
            let shown = SpanEvent {
                time: event.time,
                name: Arc::clone(&action.name),
                attributes: attributes.collect(),
                dropped_attributes: 0,
            };
            self.show(Some(action.span), event.occurrence, Some(id), shown);
        } else {
            attributes.for_each(|a| self.describe(action.span, event.occurrence, a));
        }
        match self.position(id, event.occurrence) {
            // Of repeated actions the earliest counts.
            Some(at) => {
                let moment = &mut self.moments[at];
                moment.foreign &= event.carried;
                moment.time = moment.time.min(event.time);
            }
            None => self.note_seen(Seen {
                action: id,
                occurrence: event.occurrence,
                foreign: event.carried,
                time: event.time,
            }),
        }
        true
    }

    /// Sets an attribute of a phase.
    fn describe(&mut self, phase: PhaseId, occurrence: u16, attribute: Attribute) {
        let same = |(p, o, a): &&mut (PhaseId, u16, Attribute)| {
            (*p, *o) == (phase, occurrence) && a.key == attribute.key
        };
        match self.attributes.iter_mut().find(same) {
            Some((_, _, kept)) if self.room.take_change(&kept.value, &attribute.value) => {
                kept.value = attribute.value;
            }
            None if self.room.take_attribute(&attribute) => {
                self.attributes.push((phase, occurrence, attribute));
            }
            _ => self.room.dropped_mut(phase, occurrence).attributes += 1,
        }
    }

    /// Adds an event to the span of a phase. False: there is no room for it, and no such
    /// span.
    fn show(
        &mut self,
        phase: Option<PhaseId>,
        occurrence: u16,
        known: Option<ActionId>,
        event: SpanEvent,
    ) -> bool {
        let same = self.events.iter_mut().find(|e| {
            known.is_some() && e.known == known && e.occurrence == occurrence
                || e.event.time == event.time && e.event.name == event.name
        });
        match same {
            Some(shown) => shown.event.time = shown.event.time.min(event.time),
            None if self.room.take_event(&event.name, &event.attributes) => {
                self.events.push(Shown {
                    phase,
                    occurrence,
                    known,
                    event,
                });
            }
            None => match phase {
                Some(phase) => self.room.dropped_mut(phase, occurrence).events += 1,
                None => return false,
            },
        }
        true
    }

    fn position(&self, action: ActionId, occurrence: u16) -> Option<usize> {
        if self.first_seen.holds(action.0, occurrence) == Some(false) {
            return None;
        }
        self.moments
            .iter()
            .position(|m| (m.action, m.occurrence) == (action, occurrence))
    }

    /// When an action of this visit happened, if it did.
    pub(super) fn moment(&self, action: ActionId, occurrence: u16) -> Option<Seen> {
        self.position(action, occurrence).map(|at| self.moments[at])
    }

    fn first(&self, actions: &[ActionId], occurrence: u16) -> Option<Seen> {
        actions.iter().find_map(|a| self.moment(*a, occurrence))
    }

    /// From where to where a phase goes, as far as it is known.
    pub(super) fn bounds(&self, phase: &Phase, occurrence: u16) -> Bounds {
        Bounds {
            start: self.first(&phase.start, occurrence),
            end: self.first(&phase.end, occurrence),
        }
    }

    fn note_seen(&mut self, moment: Seen) {
        self.first_seen.insert(moment.action.0, moment.occurrence);
        self.moments.push(moment);
    }

    /// Makes another visit's moment known here.
    pub(super) fn lend(&mut self, moment: Seen) {
        self.note_seen(Seen {
            foreign: true,
            ..moment
        });
    }

    /// Notes that the span of a phase was made, or would have been if sampled.
    pub(super) fn note_made(&mut self, phase: PhaseId, occurrence: u16, start: u64, end: u64) {
        self.first_made.insert(phase.0, occurrence);
        self.made.push(Made {
            phase,
            occurrence,
            start,
            end,
        });
    }

    /// Whether an action is an end of a phase of this role. Some are recorded for what they say of
    /// a phase, some by a role that has no phase for them.
    fn is_part(&self, vocabulary: &Vocabulary, action: ActionId) -> bool {
        let mut phases = vocabulary.action(action).phases.iter();
        phases.any(|phase| Some(vocabulary.phase(*phase).role) == self.role)
    }

    /// Whether there is anything here that a span should show.
    pub(super) fn has_parts(&self, vocabulary: &Vocabulary) -> bool {
        let mut own = self.moments.iter().filter(|m| !m.foreign);
        !self.events.is_empty() || own.any(|m| self.is_part(vocabulary, m.action))
    }

    /// Notes that a phase would end before it begins. False: it was noted.
    pub(super) fn note_refused(&mut self, phase: PhaseId, occurrence: u16) -> bool {
        let is_new = !self.refused.contains(&(phase, occurrence));
        if is_new {
            self.refused.push((phase, occurrence));
        }
        is_new
    }

    pub(super) fn has_made_spans(&self) -> bool {
        !self.made.is_empty()
    }

    fn is_made(&self, phase: PhaseId, occurrence: u16) -> bool {
        self.first_made
            .holds(phase.0, occurrence)
            .unwrap_or_else(|| {
                let same = |m: &Made| (m.phase, m.occurrence) == (phase, occurrence);
                self.made.iter().any(same)
            })
    }
}
