//! A request's logged events through the assembler.

use std::collections::HashSet;
use std::sync::Arc;

use omnitrace::Vocabulary;
use omnitrace::assembler::{Assembler, Output, Scope};
use omnitrace::event::{ActionName, Attributes, Event};
use omnitrace::span::{Moment, Span};
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

    /// All spans of one request, by start time, parents first.
    pub fn spans(&mut self, request: &Request) -> Vec<Span> {
        let mut attributes = Vec::new();
        for event in &request.events {
            attributes.clear();
            let extra = event.extra.iter().flat_map(|e| &e.attributes);
            attributes.extend(extra.map(|a| (KeyRef::Text(&a.key), a.value.as_ref())));
            let event = to_event(&self.vocabulary, request, event, &attributes);
            self.assembler.event(event, &mut self.output);
        }
        self.assembler.finish(&mut self.output);
        self.output.loose.clear();
        let mut spans = std::mem::take(&mut self.output.spans);
        spans.sort_by_key(|s| (s.start, std::cmp::Reverse(s.end)));
        spans
    }
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
