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
mod visit;

use std::collections::HashMap;
use std::sync::Arc;

use crate::context::SpanContext;
use crate::event::{ActionName, Event, Parent};
use crate::id::{SpanId, TraceId, canonical_request_id};
use crate::span::{Dropped, PhaseOrigin, Place, Source, Span, SpanKind};
use crate::value::Attribute;
use crate::vocabulary::{PhaseId, RoleId, Vocabulary};

use visit::Visit;

/// Requests kept at once when live; beyond it the longest idle ones are closed.
const MAX_REQUESTS: usize = 65_536;
/// A request with nothing open is forgotten after this long without an event.
const FORGET_FINISHED_NS: u64 = 60_000_000_000;
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

/// What came out since the caller last looked.
#[derive(Debug, Default)]
pub struct Output {
    /// Finished spans.
    pub spans: Vec<Span>,
    /// Events without a span.
    pub loose: Vec<LooseEvent>,
    /// Spans that were not made because the trace is not sampled.
    pub unsampled: u64,
    /// Phases left out because they end before they start.
    pub contradictory: u64,
}

/// Turns events into spans; bounded in memory.
pub struct Assembler {
    vocabulary: Arc<Vocabulary>,
    scope: Scope,
    requests: Vec<Option<Request>>,
    free_slots: Vec<usize>,
    /// Canonical ids and the aliases bound to them.
    index: HashMap<Box<str>, usize>,
    now: u64,
    swept: u64,
    /// Requests with a main phase to emit at the next [`Assembler::settle`].
    closing: Vec<usize>,
}

struct Request {
    id: Arc<str>,
    keys: Vec<Box<str>>,
    bound: Option<SpanContext>,
    visits: Vec<Visit>,
    last_seen: u64,
}

impl Request {
    /// The trace of the whole request: a context's, else derived from its id.
    fn trace_id(&self, visit: Option<&Visit>) -> TraceId {
        visit
            .and_then(|v| v.context)
            .or(self.bound)
            .or_else(|| self.visits.iter().find_map(|v| v.context))
            .map_or_else(|| TraceId::of_request(&self.id), |c| c.trace_id)
    }
}

impl Assembler {
    /// An assembler over `vocabulary` that sees events of that `scope`.
    pub fn new(vocabulary: Arc<Vocabulary>, scope: Scope) -> Self {
        Self {
            vocabulary,
            scope,
            requests: Vec::new(),
            free_slots: Vec::new(),
            index: HashMap::new(),
            now: 0,
            swept: 0,
            closing: Vec::new(),
        }
    }

    /// Ties the id that this process uses to the canonical one and to the
    /// context that came with the request. Later events without a context of
    /// their own belong to it.
    pub fn bind(&mut self, request_id: &str, canonical: &str, context: Option<SpanContext>) {
        let slot = self.slot(canonical_request_id(canonical));
        let alias = canonical_request_id(request_id);
        if !self.index.contains_key(alias) {
            self.index.insert(alias.into(), slot);
            if let Some(request) = &mut self.requests[slot] {
                request.keys.push(alias.into());
            }
        }
        if let (Some(request), Some(context)) = (&mut self.requests[slot], context) {
            request.bound = Some(context);
        }
    }

    /// Takes one event in. Spans that it completes go to `output`; SERVER and
    /// CLIENT spans wait for [`Assembler::settle`], so that what other threads
    /// recorded just before still gets into them.
    pub fn event(&mut self, event: Event<'_>, output: &mut Output) {
        let slot = self.slot(canonical_request_id(event.request_id));
        let Some(request) = &mut self.requests[slot] else {
            return;
        };
        request.last_seen = self.now;
        let vocabulary = &*self.vocabulary;
        let role = role_of(vocabulary, &event);
        let context = event.context.or(request.bound);
        let at = find_visit(vocabulary, &mut request.visits, role, &event, context);
        let touched = request.visits[at].record(vocabulary, &event);
        if let ActionName::Known(id) = event.action
            && self.scope == Scope::Process
            && !event.carried
            && vocabulary.is_offline_only(id)
        {
            let visit = &request.visits[at];
            output
                .loose
                .push(visit.loose_event(vocabulary, &request.id, id, &event));
        }
        if self.scope == Scope::Whole {
            // The whole request is there only when it is closed.
            return;
        }
        for phase in touched {
            let visit = &request.visits[at];
            if !visit.is_due(vocabulary, self.scope, phase, event.occurrence) {
                continue;
            }
            if vocabulary.is_main(phase) {
                let visit = &mut request.visits[at];
                if !visit.closing.contains(&(phase, event.occurrence)) {
                    visit.closing.push((phase, event.occurrence));
                }
                if !self.closing.contains(&slot) {
                    self.closing.push(slot);
                }
            } else {
                emit(vocabulary, request, at, phase, event.occurrence, output);
            }
        }
    }

    /// Where a free span belongs.
    pub fn place(&self, parent: Parent<'_>) -> Place {
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
                let (trace_id, parent, flags) = self.entry_span(canonical_request_id(id));
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
    fn entry_span(&self, canonical: &str) -> (TraceId, Option<SpanId>, u8) {
        let request = self
            .index
            .get(canonical)
            .and_then(|slot| self.requests[*slot].as_ref());
        let Some(request) = request else {
            return (TraceId::of_request(canonical), None, SpanContext::SAMPLED);
        };
        let Some(visit) = request.visits.last() else {
            let parent = request.bound.map(|c| c.span_id);
            let flags = request.bound.map_or(SpanContext::SAMPLED, |c| c.flags);
            return (request.trace_id(None), parent, flags);
        };
        let trace_id = request.trace_id(Some(visit));
        let parent = visit.role.map(|role| {
            visit.span_id(
                &self.vocabulary,
                trace_id,
                &request.id,
                self.vocabulary.role(role).entry,
                0,
            )
        });
        (trace_id, parent, visit.flags())
    }

    /// To be called after each round of events: emits the SERVER and CLIENT
    /// spans that have ended and closes idle requests. `now` is any clock that
    /// does not go backwards, in nanoseconds.
    pub fn settle(&mut self, now: u64, output: &mut Output) {
        self.now = now;
        for slot in std::mem::take(&mut self.closing) {
            if let Some(request) = &mut self.requests[slot] {
                emit_closing(&self.vocabulary, request, output);
            }
        }
        if now.saturating_sub(self.swept) >= SWEEP_EVERY_NS || self.live() > MAX_REQUESTS {
            self.swept = now;
            self.sweep(output);
        }
    }

    /// What this process knows of a request: its canonical id, and the context
    /// that came with it.
    pub fn known(&self, id: &str) -> (Option<Arc<str>>, Option<SpanContext>) {
        match self
            .index
            .get(id)
            .and_then(|slot| self.requests[*slot].as_ref())
        {
            Some(request) => (Some(Arc::clone(&request.id)), request.bound),
            None => (None, None),
        }
    }

    /// The vocabulary it works with.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// Requests held now.
    pub fn live(&self) -> usize {
        self.requests.len() - self.free_slots.len()
    }

    /// Closes every request, complete or not.
    pub fn finish(&mut self, output: &mut Output) {
        for slot in 0..self.requests.len() {
            self.close(slot, output);
        }
        self.closing.clear();
    }

    fn sweep(&mut self, output: &mut Output) {
        let mut idle: Vec<(u64, usize)> = Vec::new();
        for (slot, request) in self.requests.iter().enumerate() {
            let Some(request) = request else { continue };
            let age = self.now.saturating_sub(request.last_seen);
            let open = || {
                let mut visits = request.visits.iter();
                visits.any(|v| v.has_open_main(&self.vocabulary, self.scope))
            };
            if age > GIVE_UP_OPEN_NS || (age > FORGET_FINISHED_NS && !open()) {
                idle.push((0, slot));
            } else {
                idle.push((request.last_seen.max(1), slot));
            }
        }
        idle.sort_unstable();
        let expired = idle.iter().take_while(|(seen, _)| *seen == 0).count();
        // Closing a tenth at once keeps a full table from being swept at each event.
        let too_many = if idle.len() > MAX_REQUESTS {
            idle.len() / 10
        } else {
            0
        };
        for (_, slot) in idle.into_iter().take(expired.max(too_many)) {
            self.close(slot, output);
        }
    }

    fn close(&mut self, slot: usize, output: &mut Output) {
        let Some(mut request) = self.requests[slot].take() else {
            return;
        };
        self.free_slots.push(slot);
        for key in &request.keys {
            self.index.remove(key);
        }
        let vocabulary = Arc::clone(&self.vocabulary);
        let first = output.spans.len();
        emit_closing(&vocabulary, &mut request, output);
        for at in 0..request.visits.len() {
            for (phase, occurrence) in request.visits[at].due(&vocabulary, self.scope) {
                emit(&vocabulary, &mut request, at, phase, occurrence, output);
            }
            for (phase, occurrence) in request.visits[at].incomplete(&vocabulary, self.scope) {
                emit(&vocabulary, &mut request, at, phase, occurrence, output);
            }
        }
        if self.scope == Scope::Whole {
            across::emit_across(&vocabulary, &mut request, output);
            across::adopt_by_tree(&vocabulary, &mut output.spans[first..]);
        }
        for visit in &mut request.visits {
            visit.loose(&vocabulary, &request.id, &mut output.loose);
        }
    }

    fn slot(&mut self, canonical: &str) -> usize {
        if let Some(slot) = self.index.get(canonical) {
            return *slot;
        }
        let request = Request {
            id: canonical.into(),
            keys: vec![canonical.into()],
            bound: None,
            visits: Vec::new(),
            last_seen: self.now,
        };
        let slot = match self.free_slots.pop() {
            Some(slot) => {
                self.requests[slot] = Some(request);
                slot
            }
            None => {
                self.requests.push(Some(request));
                self.requests.len() - 1
            }
        };
        self.index.insert(canonical.into(), slot);
        slot
    }
}

/// The role an event belongs to: its action's, or with several the recorder's.
fn role_of(vocabulary: &Vocabulary, event: &Event<'_>) -> Option<RoleId> {
    let recorder = vocabulary.role_named(&event.source.role);
    match event.action {
        ActionName::Custom(_) => recorder,
        ActionName::Known(id) => {
            let roles = &vocabulary.action(id).roles;
            recorder
                .filter(|role| roles.contains(role))
                .or(roles.first().copied())
        }
    }
}

/// The visit this event belongs to, made where there is none.
fn find_visit(
    vocabulary: &Vocabulary,
    visits: &mut Vec<Visit>,
    role: Option<RoleId>,
    event: &Event<'_>,
    context: Option<SpanContext>,
) -> usize {
    // Such a role always knows its caller: no context means that it is the first.
    let timed = role.is_some_and(|role| vocabulary.role(role).timed);
    let same = |v: &Visit| v.role == role && v.source.node == event.source.node;
    let found = match context {
        None => visits
            .iter()
            .rposition(|v| same(v) && (!timed || v.context.is_none())),
        Some(context) => visits
            .iter()
            .rposition(|v| same(v) && v.is_called_by(context))
            // Events that came before their context adopt it while no id depends on it.
            .or_else(|| {
                let at = visits
                    .iter()
                    .rposition(|v| same(v) && v.context.is_none())?;
                (!timed && visits[at].emitted.is_empty()).then_some(at)
            }),
    };
    match found {
        Some(at) if !timed || !visits[at].is_entered_again(vocabulary, event) => {
            if visits[at].context.is_none() {
                visits[at].context = context;
            }
            at
        }
        _ => {
            visits.push(Visit::new(role, Arc::clone(&event.source), context));
            visits.len() - 1
        }
    }
}

fn emit_closing(vocabulary: &Vocabulary, request: &mut Request, output: &mut Output) {
    for at in 0..request.visits.len() {
        for (phase, occurrence) in std::mem::take(&mut request.visits[at].closing) {
            emit(vocabulary, request, at, phase, occurrence, output);
        }
    }
}

/// Makes the span of a phase of one visit, complete or not.
fn emit(
    vocabulary: &Vocabulary,
    request: &mut Request,
    at: usize,
    phase: PhaseId,
    occurrence: u16,
    output: &mut Output,
) {
    let visit = &request.visits[at];
    let trace_id = request.trace_id(Some(visit));
    let Some(extent) = visit.extent(vocabulary, phase, occurrence) else {
        output.contradictory += 1;
        return;
    };
    if visit.flags() & SpanContext::SAMPLED == 0 {
        output.unsampled += 1;
        let visit = &mut request.visits[at];
        visit
            .emitted
            .push((phase, occurrence, extent.start, extent.end));
        return;
    }
    let definition = vocabulary.phase(phase);
    let parent = match definition.parent {
        Some(parent) if vocabulary.phase(parent).role == definition.role => {
            Some(visit.span_id(vocabulary, trace_id, &request.id, parent, 0))
        }
        _ => visit.context.map(|c| c.span_id),
    };
    let contents = visit.contents(vocabulary, &request.id, phase, occurrence, &extent);
    let span = Span {
        trace_id,
        span_id: visit.span_id(vocabulary, trace_id, &request.id, phase, occurrence),
        parent_span_id: parent,
        // A SERVER span's parent is the caller; any other's is in this process.
        parent_is_remote: definition.kind == SpanKind::Server,
        flags: visit.flags(),
        trace_state: Box::default(),
        name: contents.name,
        kind: definition.kind,
        start: extent.start,
        end: extent.end,
        status: contents.status,
        attributes: contents.attributes,
        events: contents.events,
        links: Vec::new(),
        dropped: Dropped::default(),
        scope: None,
        source: Arc::clone(&visit.source),
        origin: Some(Box::new(PhaseOrigin {
            request_id: Arc::clone(&request.id),
            phase,
            occurrence,
            context: visit.context,
            entered: visit.entered(vocabulary, phase),
            start: extent.start_moment,
            end: extent.end_moment,
            seen: extent.seen,
            recorded_attributes: contents.recorded_attributes,
        })),
    };
    let visit = &mut request.visits[at];
    visit
        .emitted
        .push((phase, occurrence, span.start, span.end));
    output.spans.push(span);
}

#[cfg(test)]
mod tests;
