//! One role's share of a request on one node: its moments, and the phases that
//! can be made of them.

mod contents;

use std::sync::Arc;

use crate::context::SpanContext;
use crate::event::{ActionName, Event};
use crate::id::{PhaseKey, SpanId, TraceId};
use crate::span::{Moment, Source, SpanEvent};
use crate::value::Attribute;
use crate::vocabulary::{ActionId, PhaseId, RoleId, Vocabulary};

use super::{LooseEvent, Scope};

/// Most events kept for one visit beyond the vocabulary's own.
const MAX_EVENTS: usize = 256;

pub(super) struct Visit {
    pub(super) role: Option<RoleId>,
    pub(super) source: Arc<Source>,
    pub(super) context: Option<SpanContext>,
    /// Main phases that have ended and wait for the round's end.
    pub(super) closing: Vec<(PhaseId, u16)>,
    /// Phases already made, with their times.
    pub(super) emitted: Vec<(PhaseId, u16, u64, u64)>,
    moments: Vec<Seen>,
    attributes: Vec<(PhaseId, u16, Attribute)>,
    events: Vec<Shown>,
    /// Process kinds of this node whose events are recorded here.
    processes: u64,
}

/// An action of the vocabulary that has happened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    action: ActionId,
    occurrence: u16,
    time: u64,
    /// Recorded by another process, or lent by another visit.
    foreign: bool,
}

/// An event to be shown on a phase's span.
struct Shown {
    phase: Option<PhaseId>,
    occurrence: u16,
    known: Option<ActionId>,
    event: SpanEvent,
}

impl Visit {
    pub(super) fn new(
        role: Option<RoleId>,
        source: Arc<Source>,
        context: Option<SpanContext>,
    ) -> Self {
        Self {
            role,
            source,
            context,
            closing: Vec::new(),
            emitted: Vec::new(),
            moments: Vec::new(),
            attributes: Vec::new(),
            events: Vec::new(),
            processes: 0,
        }
    }

    pub(super) fn is_called_by(&self, context: SpanContext) -> bool {
        self.context
            .is_some_and(|c| (c.trace_id, c.span_id) == (context.trace_id, context.span_id))
    }

    /// W3C flags of its spans: the caller's decision, else sampled.
    pub(super) fn flags(&self) -> u8 {
        self.context.map_or(SpanContext::SAMPLED, |c| c.flags)
    }

    pub(super) fn span_id(
        &self,
        vocabulary: &Vocabulary,
        trace_id: TraceId,
        request_id: &str,
        phase: PhaseId,
        occurrence: u16,
    ) -> SpanId {
        let phase = vocabulary.phase(phase);
        let role = vocabulary.role(phase.role);
        let entered = self.entered_at(vocabulary, phase.role);
        PhaseKey {
            trace_id,
            request_id,
            remote_parent: self.context.map(|c| c.span_id),
            entered: entered.map_or(0, |moment| moment.time),
            role: &role.name,
            node: &self.source.node,
            phase: &phase.name,
            occurrence,
        }
        .span_id()
    }

    /// When the request entered the role, if span ids depend on it.
    fn entered_at(&self, vocabulary: &Vocabulary, role: RoleId) -> Option<Seen> {
        let role = vocabulary.role(role);
        let entry = vocabulary.phase(role.entry);
        role.timed.then(|| self.first(&entry.start, 0)).flatten()
    }

    /// The same as a named moment, for a phase of this visit.
    pub(super) fn entered(&self, vocabulary: &Vocabulary, phase: PhaseId) -> Option<Moment> {
        let seen = self.entered_at(vocabulary, vocabulary.phase(phase).role)?;
        Some(named(vocabulary, seen))
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

    /// Notes the event and names the phases whose ends may now be known.
    pub(super) fn record(&mut self, vocabulary: &Vocabulary, event: &Event<'_>) -> Vec<PhaseId> {
        let attributes = || {
            event
                .attributes
                .iter()
                .map(|(k, v)| Attribute::new(*k, v.to_value()))
                .collect()
        };
        let id = match event.action {
            ActionName::Custom(name) => {
                let phase = self.role.map(|role| vocabulary.role(role).entry);
                let shown = SpanEvent {
                    time: event.time,
                    name: name.into(),
                    attributes: attributes(),
                    dropped_attributes: 0,
                };
                self.show(phase, event.occurrence, None, shown);
                return Vec::new();
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
                attributes: attributes(),
                dropped_attributes: 0,
            };
            self.show(Some(action.span), event.occurrence, Some(id), shown);
        } else {
            for attribute in attributes() {
                let attribute: Attribute = attribute;
                let same = |(p, o, a): &&mut (PhaseId, u16, Attribute)| {
                    *p == action.span && *o == event.occurrence && a.key == attribute.key
                };
                match self.attributes.iter_mut().find(same) {
                    Some((_, _, kept)) => kept.value = attribute.value,
                    None => self
                        .attributes
                        .push((action.span, event.occurrence, attribute)),
                }
            }
        }
        let known = self
            .moments
            .iter_mut()
            .find(|m| m.action == id && m.occurrence == event.occurrence);
        match known {
            // Of repeated actions the earliest counts.
            Some(moment) => {
                moment.foreign &= event.carried;
                moment.time = moment.time.min(event.time);
            }
            None => self.moments.push(Seen {
                action: id,
                occurrence: event.occurrence,
                time: event.time,
                foreign: event.carried,
            }),
        }
        action.phases.clone()
    }

    fn show(
        &mut self,
        phase: Option<PhaseId>,
        occurrence: u16,
        known: Option<ActionId>,
        event: SpanEvent,
    ) {
        let room = self.events.len() < MAX_EVENTS;
        let same = self.events.iter_mut().find(|e| {
            known.is_some() && e.known == known && e.occurrence == occurrence
                || e.event.time == event.time && e.event.name == event.name
        });
        match same {
            Some(shown) => shown.event.time = shown.event.time.min(event.time),
            None if room => {
                self.events.push(Shown {
                    phase,
                    occurrence,
                    known,
                    event,
                });
            }
            None => {}
        }
    }

    /// When an action of this visit happened, if it did.
    pub(super) fn moment(&self, action: ActionId, occurrence: u16) -> Option<Seen> {
        self.moments
            .iter()
            .find(|m| m.action == action && m.occurrence == occurrence)
            .copied()
    }

    /// Makes another visit's moment known here.
    pub(super) fn lend(&mut self, moment: Seen) {
        self.moments.push(Seen {
            foreign: true,
            ..moment
        });
    }

    fn first(&self, actions: &[ActionId], occurrence: u16) -> Option<Seen> {
        actions.iter().find_map(|a| self.moment(*a, occurrence))
    }

    fn is_emitted(&self, phase: PhaseId, occurrence: u16) -> bool {
        self.emitted
            .iter()
            .any(|(p, o, ..)| (*p, *o) == (phase, occurrence))
    }

    /// Whether this phase can be made now, and is this process's to make.
    pub(super) fn is_due(
        &self,
        vocabulary: &Vocabulary,
        scope: Scope,
        phase: PhaseId,
        occurrence: u16,
    ) -> bool {
        let definition = vocabulary.phase(phase);
        if !definition.live || self.role != Some(definition.role) {
            return false;
        }
        if self.is_emitted(phase, occurrence) {
            return false;
        }
        let start = self.first(&definition.start, occurrence);
        let end = self.first(&definition.end, occurrence);
        match (start, end) {
            (Some(_), Some(end)) => scope == Scope::Whole || !end.foreign,
            _ => false,
        }
    }

    /// Every phase that [`Self::is_due`], in the vocabulary's order.
    pub(super) fn due(&self, vocabulary: &Vocabulary, scope: Scope) -> Vec<(PhaseId, u16)> {
        let mut tries: Vec<u16> = self.moments.iter().map(|m| m.occurrence).collect();
        tries.sort_unstable();
        tries.dedup();
        let phases = vocabulary
            .phases()
            .flat_map(|(id, _)| tries.iter().map(move |o| (id, *o)));
        phases
            .filter(|(id, o)| self.is_due(vocabulary, scope, *id, *o))
            .collect()
    }

    /// Whether a SERVER or CLIENT span of this process is still to come.
    pub(super) fn has_open_main(&self, vocabulary: &Vocabulary, scope: Scope) -> bool {
        !self.incomplete_mains(vocabulary, scope).is_empty()
    }

    fn incomplete_mains(&self, vocabulary: &Vocabulary, scope: Scope) -> Vec<(PhaseId, u16)> {
        let mut open = Vec::new();
        for (id, phase) in vocabulary.phases() {
            if self.role != Some(phase.role) || !vocabulary.is_main(id) || !phase.live {
                continue;
            }
            for moment in self
                .moments
                .iter()
                .filter(|m| !m.foreign || scope == Scope::Whole)
            {
                let touches =
                    phase.start.contains(&moment.action) || phase.end.contains(&moment.action);
                // The end of the request may stand in for a phase's end, but
                // does not make one.
                let own = vocabulary.action(moment.action).span == id;
                let key = (id, moment.occurrence);
                let done = self.is_emitted(id, moment.occurrence) || open.contains(&key);
                if touches && own && !done && self.ends_here(vocabulary, scope, id) {
                    open.push(key);
                }
            }
        }
        open
    }

    fn ends_here(&self, vocabulary: &Vocabulary, scope: Scope, phase: PhaseId) -> bool {
        scope == Scope::Whole
            || vocabulary
                .phase(phase)
                .end
                .iter()
                .any(|end| self.processes & 1 << vocabulary.action(*end).process.min(63) != 0)
    }

    /// What is left to show when nothing more will come: open SERVER and CLIENT
    /// spans, and parents of spans already made; children before parents.
    pub(super) fn incomplete(&self, vocabulary: &Vocabulary, scope: Scope) -> Vec<(PhaseId, u16)> {
        let mut missing = self.incomplete_mains(vocabulary, scope);
        let mut wanted: Vec<PhaseId> = self.emitted.iter().map(|(p, ..)| *p).collect();
        wanted.extend(missing.iter().map(|(p, _)| *p));
        while let Some(phase) = wanted.pop() {
            let definition = vocabulary.phase(phase);
            let Some(parent) = definition.parent else {
                continue;
            };
            if vocabulary.phase(parent).role != definition.role
                || self.is_emitted(parent, 0)
                || missing.contains(&(parent, 0))
                || !self.ends_here(vocabulary, scope, parent)
            {
                continue;
            }
            missing.push((parent, 0));
            wanted.push(parent);
        }
        let depth = |phase: PhaseId| {
            std::iter::successors(Some(phase), |p| vocabulary.phase(*p).parent).count()
        };
        missing.sort_by_key(|(phase, _)| std::cmp::Reverse(depth(*phase)));
        missing
    }

    /// An event that will be part of no span here, as it happens.
    pub(super) fn loose_event(
        &self,
        vocabulary: &Vocabulary,
        request_id: &Arc<str>,
        id: ActionId,
        event: &Event<'_>,
    ) -> LooseEvent {
        LooseEvent {
            request_id: Arc::clone(request_id),
            action: Arc::clone(&vocabulary.action(id).name),
            time: event.time,
            occurrence: event.occurrence,
            context: self.context,
            attributes: event
                .attributes
                .iter()
                .map(|(key, value)| Attribute::new(*key, value.to_value()))
                .collect(),
            source: Arc::clone(&self.source),
        }
    }

    /// What was recorded here, is part of no span, and has not been said yet.
    pub(super) fn loose(
        &mut self,
        vocabulary: &Vocabulary,
        request_id: &Arc<str>,
        out: &mut Vec<LooseEvent>,
    ) {
        let event = |action: Arc<str>, time, occurrence, attributes| LooseEvent {
            request_id: Arc::clone(request_id),
            action,
            time,
            occurrence,
            context: self.context,
            attributes,
            source: Arc::clone(&self.source),
        };
        for moment in self.moments.iter().filter(|m| !m.foreign) {
            let action = vocabulary.action(moment.action);
            let shown = action
                .phases
                .iter()
                .any(|p| self.is_emitted(*p, moment.occurrence));
            if shown || action.event || vocabulary.is_offline_only(moment.action) {
                continue;
            }
            let attributes = self
                .attributes
                .iter()
                .filter(|(p, o, _)| (*p, *o) == (action.span, moment.occurrence))
                .map(|(_, _, a)| a.clone())
                .collect();
            out.push(event(
                Arc::clone(&action.name),
                moment.time,
                moment.occurrence,
                attributes,
            ));
        }
        for shown in &mut self.events {
            if !shown.phase.is_some_and(|p| {
                self.emitted
                    .iter()
                    .any(|(e, o, ..)| (*e, *o) == (p, shown.occurrence))
            }) {
                let attributes = std::mem::take(&mut shown.event.attributes);
                let name = Arc::clone(&shown.event.name);
                out.push(event(name, shown.event.time, shown.occurrence, attributes));
            }
        }
    }
}

fn named(vocabulary: &Vocabulary, seen: Seen) -> Moment {
    Moment {
        action: Arc::clone(&vocabulary.action(seen.action).name),
        time: seen.time,
    }
}
