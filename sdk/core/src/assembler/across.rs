//! What only the offline side can do: it sees every node's share of a request.

use crate::id::SpanId;
use crate::span::{Link, Span};
use crate::vocabulary::{PhaseId, Vocabulary};

use super::Sink;
use super::emit::Emitter;
use super::request::Request;

/// Phases that start on one node and end on another: only here both are known.
pub(super) fn emit_across(emitter: &mut Emitter<'_, impl Sink>, request: &mut Request) {
    let vocabulary = emitter.vocabulary;
    for (id, phase) in vocabulary.phases().filter(|(_, p)| !p.live) {
        let start = request
            .visits
            .iter()
            .find_map(|v| phase.start.iter().find_map(|a| v.moment(*a, 0)));
        let Some(start) = start else { continue };
        for at in 0..request.visits.len() {
            let visit = &mut request.visits[at];
            let ends = phase.end.iter().any(|a| visit.moment(*a, 0).is_some());
            if visit.role == Some(phase.role) && ends {
                visit.lend(start);
                emitter.emit(request, at, id, 0);
            }
        }
    }
}

/// Gives spans without a remote parent the one that the vocabulary's tree
/// names, and links those that the vocabulary links.
pub(super) fn adopt_by_tree(vocabulary: &Vocabulary, spans: &mut [Span]) {
    let seen: Vec<(PhaseId, SpanId, u64, u64)> = spans
        .iter()
        .filter_map(|s| Some((s.origin.as_ref()?.phase, s.span_id, s.start, s.end)))
        .collect();
    for span in spans.iter_mut() {
        let Some(origin) = &span.origin else { continue };
        let definition = vocabulary.phase(origin.phase);
        let Some(parent) = definition.parent else {
            continue;
        };
        let across = vocabulary.phase(parent).role != definition.role || !definition.live;
        if across && (origin.context.is_none() || !definition.live) {
            let candidates = seen.iter().filter(|(phase, ..)| *phase == parent);
            // The latest one that had started by then; else any.
            let best = candidates
                .max_by_key(|(_, _, start, _)| (*start <= span.start, *start))
                .map(|(_, id, ..)| *id);
            span.parent_span_id = best.or(span.parent_span_id);
        }
    }
    for (id, phase) in vocabulary.phases() {
        let Some(from) = phase.linked_from else {
            continue;
        };
        let Some((_, to, ..)) = seen.iter().find(|(p, ..)| *p == id) else {
            continue;
        };
        for span in spans.iter_mut() {
            if span.origin.as_ref().is_some_and(|o| o.phase == from) {
                span.links.push(Link::new(span.trace_id, *to));
            }
        }
    }
}
