//! From a phase of a visit to its span.

use std::sync::Arc;

use crate::context::SpanContext;
use crate::id::SpanIds;
use crate::sampler::Sampler;
use crate::span::PhaseOrigin;
use crate::vocabulary::{PhaseId, Vocabulary};

use super::request::Request;
use super::visit::{Attributes, Bounds, Visit};
use super::{PhaseSpan, Scope, Sink};

/// Makes spans, with what it needs for that.
pub(super) struct Emitter<'a, S> {
    pub(super) vocabulary: &'a Vocabulary,
    pub(super) sampler: Sampler,
    pub(super) ids: &'a mut SpanIds,
    pub(super) sink: &'a mut S,
}

impl<S: Sink> Emitter<'_, S> {
    /// Makes the span of a phase of one visit, complete or not.
    pub(super) fn emit(
        &mut self,
        request: &mut Request,
        at: usize,
        phase: PhaseId,
        occurrence: u16,
    ) {
        let bounds = request.visits[at].bounds(self.vocabulary.phase(phase), occurrence);
        self.emit_between(request, at, phase, occurrence, bounds);
    }

    /// The same for a phase of which it is known where it begins and ends.
    pub(super) fn emit_between(
        &mut self,
        request: &mut Request,
        at: usize,
        phase: PhaseId,
        occurrence: u16,
        bounds: Bounds,
    ) {
        let trace_id = request.trace_of_visit(at);
        let visit = &mut request.visits[at];
        let Some(extent) = visit.extent(self.vocabulary, phase, occurrence, bounds) else {
            if visit.note_refused(phase, occurrence) {
                self.sink.contradictory(phase);
            }
            return;
        };
        visit.note_made(phase, occurrence, extent.start, extent.end);
        let context = visit.context;
        let flags = context.map_or_else(|| self.sampler.flags(None, trace_id), |c| c.flags);
        if flags & SpanContext::SAMPLED == 0 {
            self.sink.unsampled();
            return;
        }
        let visit = &*visit;
        let definition = self.vocabulary.phase(phase);
        let role = self.vocabulary.role(definition.role);
        let entered = visit.entered(self.vocabulary, role);
        let key = visit.key(trace_id, &request.id, role, entered);
        let ids = self.ids.begin(&key);
        let parent = definition.parent.map(|id| self.vocabulary.phase(id));
        let parent_span_id = match parent {
            Some(parent) if parent.role == definition.role => Some(ids.of(&parent.name, 0)),
            _ => visit.context.map(|c| c.span_id),
        };
        let mut attributes = Attributes::new();
        let recorded = visit.attributes(
            self.vocabulary,
            &request.id,
            phase,
            occurrence,
            &extent,
            &mut attributes,
        );
        self.sink.span(PhaseSpan {
            trace_id,
            span_id: ids.of(&definition.name, occurrence),
            parent_span_id,
            flags,
            name: recorded.name,
            kind: definition.kind,
            start: extent.start,
            end: extent.end,
            status: recorded.status,
            attributes: &attributes,
            events: &visit.events(phase, occurrence),
            dropped: recorded.dropped,
            source: &visit.source,
            origin: PhaseOrigin {
                request_id: Arc::clone(&request.id),
                phase,
                occurrence,
                context: visit.context,
                entered,
                start: extent.start_moment,
                end: extent.end_moment,
                seen: extent.seen,
                recorded_attributes: recorded.attributes,
            },
        });
    }

    /// Makes the SERVER and CLIENT spans that have ended.
    pub(super) fn emit_closing(&mut self, request: &mut Request) {
        request.closing = false;
        for at in 0..request.visits.len() {
            for next in 0..request.visits[at].closing.len() {
                let (phase, occurrence) = request.visits[at].closing[next];
                self.emit(request, at, phase, occurrence);
            }
            request.visits[at].closing.clear();
        }
    }

    /// Makes what nothing more can come for, complete or not. Who sees everything shows each
    /// request: where there are only parts of phases, as its roles' SERVER spans.
    pub(super) fn emit_rest(&mut self, scope: Scope, request: &mut Request) {
        for at in 0..request.visits.len() {
            for (phase, occurrence) in request.visits[at].all_due(self.vocabulary, scope) {
                self.emit(request, at, phase, occurrence);
            }
            for (phase, occurrence) in request.visits[at].incomplete(self.vocabulary, scope) {
                self.emit(request, at, phase, occurrence);
            }
        }
        if scope == Scope::Process || request.visits.iter().any(Visit::has_made_spans) {
            return;
        }
        for at in 0..request.visits.len() {
            let visit = &request.visits[at];
            let role = visit.role.filter(|_| visit.has_parts(self.vocabulary));
            if let Some(role) = role {
                self.emit(request, at, self.vocabulary.role(role).entry, 0);
            }
        }
    }
}
