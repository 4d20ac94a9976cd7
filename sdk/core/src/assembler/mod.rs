//! The assembler: events of a request in, spans of its phases out.
//!
//! The same code runs live, where it sees the events of one process, and
//! offline, where it sees all of them. A request is made of *visits*: one role
//! on one node, entered with one context.
//!
//! ```text
//!  request ─┬─ visit: proxy on 10.0.0.1
//!           ├─ visit: prefill on 10.0.0.2, called by span 5f…   (a retry is
//!           ├─ visit: prefill on 10.0.0.2, called by span 81…    another visit)
//!           └─ visit: decode on 10.0.0.3
//! ```

mod across;
mod emit;
mod finished;
mod keys;
mod request;
mod sink;
mod table;
mod visit;

use std::sync::Arc;

use crate::context::SpanContext;
use crate::event::{ActionName, Event, Parent};
use crate::id::{SpanId, SpanIds, TraceId, canonical_request_id};
use crate::sampler::Sampler;
use crate::span::{Place, Source, Span};
use crate::value::Attribute;
use crate::vocabulary::{PhaseId, RoleId, Vocabulary};

use emit::Emitter;
pub(crate) use finished::FinishedSpan;
use keys::Keys;
pub use sink::{PhaseSpan, PhaseValue, Sink};
use table::{SlotId, Table};
use visit::Visit;

/// Requests kept at once when live; beyond it the longest idle ones are closed.
const MAX_REQUESTS: usize = 65_536;
/// A request with nothing open is forgotten after this long without an event.
const FORGET_FINISHED_NS: u64 = 60_000_000_000;
/// Closed requests kept for their memory: more than one sweep of a full table
/// closes.
const MAX_SPARE: usize = 8_192;
/// An open SERVER or CLIENT span is given up after this long without an event.
const GIVE_UP_OPEN_NS: u64 = 3_600_000_000_000;
/// How often idle requests are looked for.
const SWEEP_EVERY_NS: u64 = 10_000_000_000;

/// How much of a request the assembler gets to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The events of one process: a phase is made where its end is seen.
    Process,
    /// The events of all processes.
    Whole,
}

/// An event that became part of no span.
#[derive(Debug, Clone, PartialEq)]
pub struct LooseEvent {
    /// Canonical request id.
    pub request_id: Arc<str>,
    /// Action name.
    pub action: Arc<str>,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Which try.
    pub occurrence: u16,
    /// The context that came with the request.
    pub context: Option<SpanContext>,
    /// What else was known.
    pub attributes: Vec<Attribute>,
    /// Who recorded it.
    pub source: Arc<Source>,
}

/// What came out since the caller last looked; keeps it all.
#[derive(Debug, Default)]
pub struct Output {
    /// Finished spans.
    pub spans: Vec<Span>,
    /// Events without a span.
    pub loose: Vec<LooseEvent>,
    /// Spans that were not made because the trace is not sampled.
    pub unsampled: u64,
    /// Phases left out because they end before they start.
    pub contradictory: Vec<PhaseId>,
}

/// Turns events into spans; bounded in memory.
pub struct Assembler {
    vocabulary: Arc<Vocabulary>,
    scope: Scope,
    requests: Table,
    /// Visits of closed requests, kept for their memory.
    spare: Vec<Visit>,
    keys: Keys,
    ids: SpanIds,
    /// Who recorded the last event, and its role.
    recorder: Option<(Arc<Source>, Option<RoleId>)>,
    now: u64,
    swept: u64,
    /// Requests with a main phase to emit at the next [`Assembler::settle`].
    closing: Vec<SlotId>,
    sampler: Sampler,
}

impl Assembler {
    /// An assembler over `vocabulary` that sees events of that `scope`.
    pub fn new(vocabulary: Arc<Vocabulary>, scope: Scope) -> Self {
        Self {
            vocabulary,
            scope,
            requests: Table::new(),
            spare: Vec::new(),
            keys: Keys::default(),
            ids: SpanIds::default(),
            recorder: None,
            now: 0,
            swept: 0,
            closing: Vec::new(),
            sampler: Sampler::ALWAYS_ON,
        }
    }

    /// The same, leaving out the traces that `sampler` does not want, where no caller
    /// has decided.
    pub fn sampled_by(self, sampler: Sampler) -> Self {
        Self { sampler, ..self }
    }

    /// W3C flags of spans without a caller's decision.
    pub(crate) fn flags(&self, context: Option<SpanContext>, trace_id: TraceId) -> u8 {
        context.map_or_else(|| self.sampler.flags(None, trace_id), |c| c.flags)
    }

    /// Ties the id that this process uses to the canonical one and to the
    /// context that came with the request. Later events without a context of
    /// their own belong to it.
    pub fn bind(&mut self, request_id: &str, canonical: &str, context: Option<SpanContext>) {
        let slot = self.requests.enter(canonical, self.now);
        self.requests.alias(request_id, slot);
        if let (Some(request), Some(context)) = (self.requests.get_mut(slot), context) {
            request.bound = Some(context);
        }
    }

    /// Takes one event in. Spans that it completes go to `sink`; SERVER and
    /// CLIENT spans wait for [`Assembler::settle`], so that what other threads
    /// recorded just before still gets into them.
    pub fn event(&mut self, event: Event<'_>, sink: &mut impl Sink) {
        let role = self.role_of(&event);
        let slot = self.requests.enter(event.request_id, self.now);
        self.requests.touch(slot, self.now);
        let Some(request) = self.requests.get_mut(slot) else {
            return;
        };
        let vocabulary = &*self.vocabulary;
        let at = request.visit_of(vocabulary, role, &event, &mut self.spare);
        let visit = &mut request.visits[at];
        let is_kept = visit.record(vocabulary, &mut self.keys, &event);
        let id = match event.action {
            ActionName::Known(id) => id,
            ActionName::Custom(name) => {
                if !is_kept {
                    sink.loose(visit.loose_event(&request.id, &name.into(), &event));
                }
                return;
            }
        };
        if self.scope == Scope::Whole {
            // The whole request is there only when it is closed.
            return;
        }
        let action = vocabulary.action(id);
        if action.offline_only && !event.carried {
            let visit = &request.visits[at];
            sink.loose(visit.loose_event(&request.id, &action.name, &event));
        }
        let mut emitter = Emitter {
            vocabulary,
            sampler: self.sampler,
            ids: &mut self.ids,
            sink,
        };
        for phase in &action.phases {
            let visit = &mut request.visits[at];
            let due = visit.due(vocabulary, self.scope, *phase, event.occurrence);
            let Some(bounds) = due else {
                continue;
            };
            if !vocabulary.is_main(*phase) {
                emitter.emit_between(request, at, *phase, event.occurrence, bounds);
                continue;
            }
            if !visit.closing.contains(&(*phase, event.occurrence)) {
                visit.closing.push((*phase, event.occurrence));
            }
            if !std::mem::replace(&mut request.closing, true) {
                self.closing.push(slot);
            }
        }
    }

    /// The role an event belongs to: its action's, or with several the recorder's.
    fn role_of(&mut self, event: &Event<'_>) -> Option<RoleId> {
        let recorder = match &self.recorder {
            Some((source, role)) if Arc::ptr_eq(source, event.source) => *role,
            _ => {
                let role = self.vocabulary.role_named(&event.source.role);
                self.recorder = Some((Arc::clone(event.source), role));
                role
            }
        };
        match event.action {
            ActionName::Custom(_) => recorder,
            ActionName::Known(id) => {
                let roles = &self.vocabulary.action(id).roles;
                recorder
                    .filter(|role| roles.contains(role))
                    .or(roles.first().copied())
            }
        }
    }

    /// Where a free span belongs.
    pub fn place(&mut self, parent: Parent<'_>) -> Place {
        match parent {
            Parent::Span(context) => Place {
                trace_id: context.trace_id,
                parent: Some(context.span_id),
                flags: context.flags,
            },
            Parent::Root(trace_id) => Place {
                trace_id,
                parent: None,
                flags: SpanContext::SAMPLED,
            },
            Parent::Request(id) => {
                let (trace_id, parent, flags) = self.entry_span(id);
                Place {
                    trace_id,
                    parent,
                    flags,
                }
            }
        }
    }

    /// The SERVER span of a request's latest visit: what a free span of that
    /// request hangs under.
    fn entry_span(&mut self, id: &str) -> (TraceId, Option<SpanId>, u8) {
        let request = self.requests.look_up(id);
        let Some(request) = request.and_then(|slot| self.requests.get_mut(slot)) else {
            let trace_id = TraceId::of_request(canonical_request_id(id));
            return (trace_id, None, self.flags(None, trace_id));
        };
        let Some(latest) = request.visits.len().checked_sub(1) else {
            let (trace_id, bound) = (request.trace_id(), request.bound);
            let flags = self.flags(bound, trace_id);
            return (trace_id, bound.map(|c| c.span_id), flags);
        };
        let trace_id = request.trace_of_visit(latest);
        let visit = &request.visits[latest];
        let parent = visit.role.map(|role| {
            let entry = self.vocabulary.role(role).entry;
            let entry = self.vocabulary.phase(entry);
            let role = self.vocabulary.role(entry.role);
            let entered = visit.entered(&self.vocabulary, role);
            let key = visit.key(trace_id, &request.id, role, entered);
            self.ids.begin(&key).of(&entry.name, 0)
        });
        let context = visit.context;
        (trace_id, parent, self.flags(context, trace_id))
    }

    /// To be called after each round of events: emits the SERVER and CLIENT
    /// spans that have ended and closes idle requests. `now` is any clock that
    /// does not go backwards, in nanoseconds.
    pub fn settle(&mut self, now: u64, sink: &mut impl Sink) {
        self.now = now;
        let mut emitter = Emitter {
            vocabulary: &self.vocabulary,
            sampler: self.sampler,
            ids: &mut self.ids,
            sink,
        };
        for slot in self.closing.drain(..) {
            if let Some(request) = self.requests.get_mut(slot) {
                emitter.emit_closing(request);
            }
        }
        let is_time = now.saturating_sub(self.swept) >= SWEEP_EVERY_NS;
        if is_time {
            self.requests.release();
            self.spare.truncate(self.spare.len() / 2);
        }
        if is_time || self.live() > MAX_REQUESTS {
            self.swept = now;
            self.sweep(sink);
        }
    }

    /// Says that nothing more will come of a request in this process, from no thread: its spans
    /// are made at once, and it is forgotten if no other request has the same id. What is done
    /// with a request while the processor still has it at hand costs a fraction.
    pub(crate) fn conclude(&mut self, id: &str, sink: &mut impl Sink) {
        let Some(slot) = self.requests.look_up(id) else {
            return;
        };
        if let Some(request) = self.requests.get_mut(slot) {
            let mut emitter = Emitter {
                vocabulary: &self.vocabulary,
                sampler: self.sampler,
                ids: &mut self.ids,
                sink,
            };
            emitter.emit_closing(request);
        }
        self.closing.pop_if(|last| *last == slot);
        if !self.is_open(slot) {
            self.close(slot, sink);
        }
    }

    /// What this process knows of a request, whose id may have any form: the
    /// canonical id, and the context that came with it.
    pub fn known(&self, id: &str) -> Option<(&Arc<str>, Option<SpanContext>)> {
        let request = self.requests.get(self.requests.find(id)?)?;
        Some((&request.id, request.bound))
    }

    /// Whether there is such a request. The next event is expected to be its.
    pub(crate) fn knows(&mut self, id: &str) -> bool {
        self.requests.look_up(id).is_some()
    }

    /// The vocabulary it works with.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// Requests held now.
    pub fn live(&self) -> usize {
        self.requests.len()
    }

    /// Closes every request, complete or not.
    pub fn finish(&mut self, sink: &mut impl Sink) {
        for slot in self.requests.slots() {
            self.close(slot, sink);
        }
        self.closing.clear();
    }

    /// Closes what has been idle for long, and what is too much.
    fn sweep(&mut self, sink: &mut impl Sink) {
        // Closing a tenth at once keeps a full table from being swept at each event.
        let mut surplus = match self.live() {
            live if live > MAX_REQUESTS => live / 10,
            _ => 0,
        };
        let mut next = self.requests.oldest();
        while let Some(slot) = next {
            let idle = self.now.saturating_sub(self.requests.used(slot));
            if idle <= FORGET_FINISHED_NS {
                break;
            }
            next = self.requests.newer(slot);
            if idle > GIVE_UP_OPEN_NS || !self.is_open(slot) {
                self.close(slot, sink);
                surplus = surplus.saturating_sub(1);
            }
        }
        for _ in 0..surplus {
            if let Some(slot) = self.requests.oldest() {
                self.close(slot, sink);
            }
        }
    }

    /// Whether a SERVER or CLIENT span of a request is still to come.
    fn is_open(&self, slot: SlotId) -> bool {
        let request = self.requests.get(slot);
        request.is_some_and(|request| {
            let mut visits = request.visits.iter();
            visits.any(|v| v.has_open_main(&self.vocabulary, self.scope))
        })
    }

    fn close(&mut self, slot: SlotId, sink: &mut impl Sink) {
        let Some(mut request) = self.requests.remove(slot) else {
            return;
        };
        let first = sink.held().len();
        let mut emitter = Emitter {
            vocabulary: &self.vocabulary,
            sampler: self.sampler,
            ids: &mut self.ids,
            sink,
        };
        emitter.emit_closing(&mut request);
        emitter.emit_rest(self.scope, &mut request);
        if self.scope == Scope::Whole {
            across::emit_across(&mut emitter, &mut request);
            across::adopt_by_tree(&self.vocabulary, &mut sink.held()[first..]);
        }
        for visit in request.visits.drain(..) {
            visit.loose(&self.vocabulary, self.scope, &request.id, sink);
            if self.spare.len() < MAX_SPARE {
                self.spare.push(visit.emptied());
            }
        }
        self.requests.recycle(request);
    }
}

#[cfg(test)]
mod tests;
