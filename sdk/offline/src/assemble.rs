//! A request's logged events through the assembler.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::iter;
use std::sync::Arc;

use omnitrace::Vocabulary;
use omnitrace::assembler::{Assembler, LooseEvent, Output, Scope};
use omnitrace::event::{ActionName, Attributes, Event};
use omnitrace::span::{Moment, Span, SpanEvent};
use omnitrace::vocabulary::PhaseId;
use omnitrace::{KeyRef, SpanContext};

use crate::reader::{LoggedEvent, Request};

/// Assembles one request after the other, in the same memory.
pub struct Bench {
    vocabulary: Arc<Vocabulary>,
    assembler: Assembler,
    output: Output,
}

impl Bench {
    /// A bench for one thread.
    pub fn new(vocabulary: &Arc<Vocabulary>) -> Self {
        Self {
            vocabulary: Arc::clone(vocabulary),
            assembler: Assembler::new(Arc::clone(vocabulary), Scope::Whole),
            output: Output::default(),
        }
    }

    /// The phases of the last request that would end before they begin: their actions are
    /// events of other spans.
    pub fn contradictory(&self) -> &[PhaseId] {
        &self.output.contradictory
    }

    /// The same, with an event for each action whose phase could not be made: it lacks its other
    /// end, or would end before it begins. It is on the nearest span above that phase where it
    /// happened, else on one beside it.
    pub fn spans_with_rest(&mut self, request: &Request) -> Vec<Span> {
        let mut spans = self.spans(request);
        for loose in self.output.loose.drain(..) {
            if let Some(at) = nearest(&self.vocabulary, &spans, &loose) {
                let events = &mut spans[at].events;
                let after = events.partition_point(|e| e.time <= loose.time);
                let event = SpanEvent {
                    time: loose.time,
                    name: loose.action,
                    attributes: loose.attributes,
                    dropped_attributes: 0,
                };
                events.insert(after, event);
            }
        }
        spans
    }

    /// All spans of one request, by start time, parents first.
    pub fn spans(&mut self, request: &Request) -> Vec<Span> {
        self.output.contradictory.clear();
        self.output.loose.clear();
        let mut attributes = Vec::new();
        for event in &request.events {
            attributes.clear();
            let extra = event.extra.iter().flat_map(|e| &e.attributes);
            attributes.extend(extra.map(|a| (KeyRef::Text(&a.key), a.value.as_ref())));
            let event = to_event(&self.vocabulary, request, event, &attributes);
            self.assembler.event(event, &mut self.output);
        }
        self.assembler.finish(&mut self.output);
        let mut spans = std::mem::take(&mut self.output.spans);
        spans.sort_by_key(|s| (s.start, std::cmp::Reverse(s.end)));
        spans
    }
}

/// Where an event of no span is best shown.
fn nearest(vocabulary: &Vocabulary, spans: &[Span], event: &LooseEvent) -> Option<usize> {
    let action = vocabulary.action_named(&event.action);
    let own = action.map(|id| vocabulary.action(id).span);
    let above: Vec<PhaseId> =
        iter::successors(own, |phase| vocabulary.phase(*phase).parent).collect();
    let role = own.map(|phase| vocabulary.phase(phase).role);
    let role = role.or_else(|| vocabulary.role_named(&event.source.role));
    // The less the better, in this order.
    let distance = |span: &Span| {
        let origin = span.origin.as_ref()?;
        let of = vocabulary.phase(origin.phase).role;
        let is_other_try = Some(origin.phase) == own && origin.occurrence != event.occurrence;
        let up = above.iter().position(|phase| *phase == origin.phase);
        let is_entry = vocabulary.role(of).entry == origin.phase;
        Some((
            (role != Some(of), span.source.node != event.source.node),
            origin.context != event.context,
            is_other_try,
            up.unwrap_or(above.len() + usize::from(!is_entry)),
            // Of a request that was sent again: the latest that had begun.
            (span.start > event.time, Reverse(span.start)),
        ))
    };
    let distances = spans.iter().enumerate();
    let distances = distances.filter_map(|(at, span)| Some((distance(span)?, at)));
    distances.min().map(|(_, at)| at)
}

/// Leaves those of a request's `spans` that, by its log, no Collector has taken.
pub fn retain_undelivered(vocabulary: &Vocabulary, request: &Request, spans: &mut Vec<Span>) {
    let marked = |e: &&LoggedEvent| e.extra.as_ref().is_some_and(|x| x.undelivered.is_some());
    // Lines that were written without knowing say nothing against their spans. A
    // span without a line of its own was made for the sake of its children.
    let is = |e: &LoggedEvent, m: &Moment| *e.action == *vocabulary.action(m.action).name;
    let known = |moment: Option<&Moment>| {
        request
            .events
            .iter()
            .filter(|e| moment.is_none_or(|m| e.time == m.time && is(e, m)))
            .all(|e| marked(&e))
    };
    let named: HashSet<(&str, u16, Option<SpanContext>)> = request
        .events
        .iter()
        .filter_map(|e| Some((e, e.extra.as_ref()?)))
        .flat_map(|(e, extra)| {
            let names = extra.undelivered.iter().flatten();
            names.map(move |name| (name.as_str(), e.occurrence, extra.context))
        })
        .collect();
    spans.retain(|span| {
        let Some(origin) = &span.origin else {
            return true;
        };
        let last = origin.end.as_ref().or(origin.start.as_ref());
        let phase = &*vocabulary.phase(origin.phase).name;
        // A phase that only the offline side makes has reached no Collector.
        !vocabulary.phase(origin.phase).live
            || !known(last)
            || named.contains(&(phase, origin.occurrence, origin.context))
    });
}

fn to_event<'a>(
    vocabulary: &Vocabulary,
    request: &'a Request,
    event: &'a LoggedEvent,
    attributes: Attributes<'a>,
) -> Event<'a> {
    let extra = event.extra.as_deref();
    Event {
        action: vocabulary
            .action_named(&event.action)
            .map_or(ActionName::Custom(&event.action), ActionName::Known),
        time: event.time,
        request_id: &request.id,
        occurrence: event.occurrence,
        context: extra.and_then(|e| e.context),
        attributes,
        source: &event.source,
        carried: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnitrace::span::Source;

    /// Actions of one request by time; each with its node and try.
    fn events(actions: &[(u64, &str, &str, u16)]) -> String {
        let vocabulary = Vocabulary::omni_vllm();
        let event = |(time, action, node, occurrence): &(u64, &str, &str, u16)| {
            let known = vocabulary.action_named(action).unwrap();
            let role = vocabulary.role(vocabulary.action(known).roles[0]);
            LoggedEvent {
                action: (*action).into(),
                time: *time,
                source: Arc::new(Source {
                    role: Arc::clone(&role.name),
                    node: (*node).into(),
                }),
                occurrence: *occurrence,
                extra: None,
            }
        };
        let request = Request {
            id: "r".into(),
            events: actions.iter().map(event).collect(),
        };
        let mut shown = String::new();
        for span in Bench::new(&vocabulary).spans_with_rest(&request) {
            for event in &span.events {
                let (name, node, start) = (&span.name, &span.source.node, span.start);
                shown += &format!("{name} {node} {start}: {} {}\n", event.time, event.name);
            }
        }
        shown
    }

    #[test]
    fn what_makes_no_phase_is_shown_above_it_and_not_in_another_try() {
        let preempted = [
            (1, "Enter decode to generate", "d1", 0),
            (2, "Start append running sequece for decode", "d1", 0),
            (3, "Preempted", "d1", 0),
            (4, "Resumed", "d1", 0),
            (6, "Preempted", "d1", 1),
            (9, "Finish decode pickle and start response", "d1", 0),
        ];
        assert_eq!(
            events(&preempted),
            "Send output in decode stage d1 2: 6 Preempted\n"
        );
    }

    #[test]
    fn it_is_shown_on_the_node_and_in_the_run_in_which_it_happened() {
        let two_nodes = [
            (1, "PD api server get request", "p1", 0),
            (5, "Finish prefill pickle and start response", "p1", 0),
            (2, "PD api server get request", "p2", 0),
            (3, "Prefill done execute_model", "p2", 0),
        ];
        assert_eq!(
            events(&two_nodes),
            "Prefill p2 2: 3 Prefill done execute_model\n"
        );
        let sent_twice = [
            (1, "Time received", "", 0),
            (9, "Received all tokens", "", 0),
            (21, "Time received", "", 0),
            (22, "Enter state D scheduled", "", 0),
            (29, "Received all tokens", "", 0),
        ];
        let expected = "Trace for Omni Proxy  21: 22 Enter state D scheduled\n";
        assert_eq!(events(&sent_twice), expected);
    }

    #[test]
    fn a_role_that_has_no_phase_for_an_action_shows_nothing_of_it() {
        let vocabulary = Vocabulary::omni_vllm();
        let event = LoggedEvent {
            action: "try to schedule in waiting queue".into(),
            time: 1,
            source: Arc::new(Source {
                role: "decode".into(),
                node: "d1".into(),
            }),
            occurrence: 0,
            extra: None,
        };
        let request = Request {
            id: "r".into(),
            events: vec![event],
        };
        assert_eq!(Bench::new(&vocabulary).spans_with_rest(&request), []);
    }
}
