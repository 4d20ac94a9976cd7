//! What was recorded in a visit and is part of no span.

use std::sync::Arc;

use crate::event::Event;
use crate::span::SpanEvent;
use crate::value::Attribute;
use crate::vocabulary::Vocabulary;

use super::{Shown, Visit};
use crate::assembler::{LooseEvent, Scope, Sink};

impl Visit {
    /// An event that will be part of no span here, as it happens.
    pub(in crate::assembler) fn loose_event(
        &self,
        request_id: &Arc<str>,
        action: &Arc<str>,
        event: &Event<'_>,
    ) -> LooseEvent {
        LooseEvent {
            request_id: Arc::clone(request_id),
            action: Arc::clone(action),
            time: event.time,
            occurrence: event.occurrence,
            context: self.context,
            attributes: event
                .attributes
                .iter()
                .map(|(key, value)| Attribute::new(key.text(), value.to_value()))
                .collect(),
            source: Arc::clone(&self.source),
        }
    }

    /// What was recorded here, is part of no span, and has not been said yet. Who sees everything
    /// is told of what should have been part of one.
    pub(in crate::assembler) fn loose(
        &self,
        vocabulary: &Vocabulary,
        scope: Scope,
        request_id: &Arc<str>,
        sink: &mut impl Sink,
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
                .any(|p| self.is_made(*p, moment.occurrence));
            let said = match scope {
                Scope::Process => action.offline_only,
                Scope::Whole => !self.is_part(vocabulary, moment.action),
            };
            if shown || action.event || said {
                continue;
            }
            let attributes = self
                .attributes
                .iter()
                .filter(|(p, o, _)| (*p, *o) == (action.span, moment.occurrence))
                .map(|(_, _, a)| a.clone())
                .collect();
            sink.loose(event(
                Arc::clone(&action.name),
                moment.time,
                moment.occurrence,
                attributes,
            ));
        }
        let said = |e: &Shown| e.phase.is_some_and(|p| self.is_made(p, e.occurrence));
        for shown in self.events.iter().filter(|e| !said(e)) {
            let SpanEvent {
                time,
                name,
                attributes,
                ..
            } = shown.event.clone();
            sink.loose(event(name, time, shown.occurrence, attributes));
        }
    }
}
