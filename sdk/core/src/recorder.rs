//! The caller's side: everything here runs on the threads of the host program.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::carry::{self, Carry};
use crate::config::Config;
use crate::context::SpanContext;
use crate::event::{Action, FreeSpan};
use crate::id::{TraceId, canonical_request_id};
use crate::propagation::Propagators;
use crate::queue::{self, ActionRecord, Bind, Cut, Queue, SpanRecord, kept_id};
use crate::sampler::Sampler;
use crate::scopes::Scopes;
use crate::span::{Dropped, InstrumentationScope, ScopeId};
use crate::vocabulary::{ActionId, Vocabulary};

/// Takes records from any thread; waits for nobody.
pub struct Recorder {
    vocabulary: Arc<Vocabulary>,
    propagators: Propagators,
    sampler: Sampler,
    pub(crate) queue: Queue,
    carry: Carry,
    pub(crate) scopes: Arc<Scopes>,
    lost_spans: AtomicU64,
}

impl Recorder {
    pub(crate) fn new(config: &Config, queue: Queue) -> Self {
        Self {
            vocabulary: Arc::clone(&config.vocabulary),
            propagators: config.propagators.clone(),
            sampler: config.sampler,
            queue,
            carry: Carry::default(),
            scopes: Arc::default(),
            lost_spans: AtomicU64::new(0),
        }
    }

    /// The formats in which context comes and goes.
    pub fn propagators(&self) -> &Propagators {
        &self.propagators
    }

    /// What decides whether a trace is recorded.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Records a moment of a request. False: the queue was full; it is counted.
    pub fn action(&self, action: &Action<'_>) -> bool {
        let id = self.vocabulary.action_named(action.name);
        if let Some(id) = id
            && self.vocabulary.action(id).carried
        {
            let request_id = kept_id(action.request_id);
            self.carry.start(request_id, id, action.time);
        }
        self.push_action(id, false, action)
    }

    #[inline]
    fn push_action(&self, id: Option<ActionId>, carried: bool, action: &Action<'_>) -> bool {
        match ActionRecord::new(id, carried, action) {
            Some(record) => self.queue.push(&record),
            None => {
                let cut = Cut::new(action.attributes);
                let attributes = &cut.list;
                let action = Action {
                    attributes,
                    ..*action
                };
                ActionRecord::new(id, carried, &action)
                    .is_some_and(|record| self.queue.push(&record))
            }
        }
    }

    /// Records a finished span. False: the queue was full; it is counted.
    #[inline]
    pub fn span(&self, span: &FreeSpan<'_>) -> bool {
        let simple =
            span.events.is_empty() && span.links.is_empty() && span.dropped == Dropped::default();
        let pushed = match SpanRecord::new(span, &[]) {
            Some(record) if simple => self.queue.push(&record),
            _ => self.push_other(span),
        };
        if !pushed {
            self.lost_spans.fetch_add(1, Ordering::Relaxed);
        }
        pushed
    }

    /// A span with events or links, or with more attributes than are kept.
    #[cold]
    fn push_other(&self, span: &FreeSpan<'_>) -> bool {
        let cut = Cut::new(span.attributes);
        let mut span = FreeSpan {
            attributes: &cut.list,
            ..*span
        };
        span.dropped.attributes += cut.dropped;
        let more = queue::more(&span);
        SpanRecord::new(&span, &more).is_some_and(|record| self.queue.push(&record))
    }

    /// The number of an instrumentation scope, for [`FreeSpan::scope`]. A process
    /// has few of them: to be asked for once, not for each span.
    pub fn scope(&self, scope: &InstrumentationScope) -> ScopeId {
        self.scopes.number(scope)
    }

    /// Reads the context that came with a call. With a request id it is bound to
    /// that request, so this must come before the request's first action here.
    pub fn extract<'a>(
        &self,
        get: impl Fn(&str) -> Option<&'a str>,
        request_id: Option<&str>,
    ) -> Option<SpanContext> {
        let propagated = self.propagators.extract(&get);
        let context = propagated.decided(&self.sampler);
        let Some(request_id) = request_id.map(kept_id) else {
            return context;
        };
        let canonical = get(carry::REQUEST_ID).map_or(request_id, kept_id);
        let canonical = canonical_request_id(canonical);
        self.carry.bind(request_id, canonical, context, &propagated);
        self.queue.push(&Bind {
            request_id,
            canonical,
            context,
        });
        let starts = get(carry::STARTS).unwrap_or_default();
        for (id, time) in carry::read_starts(starts, self.vocabulary.actions().len()) {
            let action = Action {
                name: "",
                time,
                request_id,
                occurrence: 0,
                context: None,
                attributes: &[],
            };
            self.push_action(Some(id), true, &action);
        }
        context
    }

    /// Writes what another process of this node needs to go on with a request:
    /// the context it came with, its canonical id, and the start times of the
    /// phases that end over there.
    pub fn inject_request(&self, request_id: &str, mut set: impl FnMut(&'static str, &str)) {
        let request_id = kept_id(request_id);
        let carried = self.carry.get(request_id);
        let canonical = match &carried {
            Some(carried) => &*carried.canonical,
            None => canonical_request_id(request_id),
        };
        set(carry::REQUEST_ID, canonical);
        let Some(carried) = &carried else { return };
        let propagated = carried.passing.with(carried.context);
        self.propagators.inject(&propagated, &mut set);
        if !carried.starts.is_empty() {
            set(carry::STARTS, &carry::write_starts(&carried.starts));
        }
    }

    /// The trace of a request as far as this process knows, and its W3C flags.
    pub fn trace_of(&self, request_id: &str) -> (TraceId, u8) {
        let request_id = kept_id(request_id);
        match self.carry.bound(request_id) {
            Some((_, Some(context))) => (context.trace_id, context.flags),
            Some((canonical, None)) => (TraceId::of_request(&canonical), SpanContext::SAMPLED),
            None => {
                let canonical = canonical_request_id(request_id);
                (TraceId::of_request(canonical), SpanContext::SAMPLED)
            }
        }
    }

    /// Canonical id and context of a request, as far as they have been read.
    pub(crate) fn bound(&self, request_id: &str) -> Option<(Arc<str>, Option<SpanContext>)> {
        self.carry.bound(request_id)
    }

    /// Free spans lost to a full queue.
    pub(crate) fn lost_spans(&self) -> u64 {
        self.lost_spans.load(Ordering::Relaxed)
    }
}
