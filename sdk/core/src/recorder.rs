//! The caller's side: everything here runs on the threads of the host program.

mod finished;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::carry::{self, Carry};
use crate::config::{Config, LegacyLogMode, Limits};
use crate::context::SpanContext;
use crate::engine;
use crate::event::{Action, FreeSpan};
use crate::id::{TraceId, canonical_request_id};
use crate::key::KeyRef;
use crate::propagation::Propagators;
use crate::queue::{
    self, ActionRecord, Bind, Cut, Kept, Limited, Literal, PackedAttributes, Queue, Refused,
    SpanRecord, kept_id,
};
use crate::sampler::Sampler;
use crate::scopes::Scopes;
use crate::span::{InstrumentationScope, Link, ScopeId, SpanEvent};
use crate::value::ValueRef;
use crate::vocabulary::{ActionId, Vocabulary};

/// Takes records from any thread; waits for nobody.
pub struct Recorder {
    pub(crate) vocabulary: Arc<Vocabulary>,
    role: Box<str>,
    node: Box<str>,
    propagators: Propagators,
    sampler: Sampler,
    limits: Limits,
    /// The legacy log has each action as it happens.
    logs_actions: bool,
    pub(crate) queue: Queue,
    carry: Carry,
    pub(crate) scopes: Arc<Scopes>,
    lost_spans: AtomicU64,
    unsampled: AtomicU64,
}

impl Recorder {
    pub(crate) fn new(config: &Config, queue: Queue) -> Self {
        Self {
            vocabulary: Arc::clone(&config.vocabulary),
            role: config.role.as_str().into(),
            node: config.node.as_str().into(),
            propagators: config.propagators.clone(),
            sampler: config.sampler,
            limits: config.limits,
            logs_actions: config.legacy_log == LegacyLogMode::Always,
            queue,
            carry: Carry::default(),
            scopes: Arc::default(),
            lost_spans: AtomicU64::new(0),
            unsampled: AtomicU64::new(0),
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

    /// How much of a span is kept.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Tells it from every other recorder of this process.
    #[inline]
    pub fn number(&self) -> u64 {
        self.queue.id()
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
        self.push_action(id, false, false, action)
    }

    /// Records the last moment of a request in this process: its spans are made at once and what
    /// is known of it is forgotten. False: the queue was full; it is counted.
    pub fn last_action(&self, action: &Action<'_>) -> bool {
        let id = self.vocabulary.action_named(action.name);
        self.push_action(id, false, true, action)
    }

    #[inline]
    fn push_action(
        &self,
        id: Option<ActionId>,
        carried: bool,
        last: bool,
        action: &Action<'_>,
    ) -> bool {
        self.push_kept(action.attributes, |kept| {
            let record = ActionRecord::new(id, carried, action, kept);
            self.queue.push(&record.last(last))
        })
    }

    /// Has `push` record all of these attributes, or as many of them as are kept. False: the
    /// queue was full.
    #[inline]
    fn push_kept(
        &self,
        attributes: &[(KeyRef<'_>, ValueRef<'_>)],
        push: impl Fn(Kept<'_>) -> Result<(), Refused>,
    ) -> bool {
        match push(Kept::new(attributes, &self.limits)) {
            Err(Refused::TooLong) => {
                let cut = Cut::new(attributes, &self.limits);
                push(Kept::of_cut(&cut.list)).is_ok()
            }
            pushed => pushed.is_ok(),
        }
    }

    /// Records a finished span. False: the queue was full; it is counted. A span
    /// whose parent is not sampled is counted and not recorded.
    #[inline]
    pub fn span(&self, span: &FreeSpan<'_>) -> bool {
        if !span.is_sampled() {
            self.leave_out();
            return true;
        }
        let kept = Kept::new(span.attributes, &self.limits);
        let pushed = match span.is_simple() {
            true => self.queue.push(&SpanRecord::new(span, kept, &[])),
            false => Err(Refused::TooLong),
        };
        self.count(match pushed {
            Err(Refused::TooLong) => self.push_other(span),
            pushed => pushed.is_ok(),
        })
    }

    /// The same with these attributes in place of the span's own, compiled into its caller: it
    /// takes about half as long for a span whose attributes are said there, as an array of up to
    /// ten.
    ///
    /// ```
    /// use omnitrace::event::{FreeSpan, Parent};
    /// use omnitrace::id::{SpanId, TraceId};
    /// use omnitrace::{Key, Recorder, ValueRef, clock};
    /// static MODEL: Key = Key::new("gen_ai.request.model");
    /// static TOKENS: Key = Key::new("gen_ai.usage.output_tokens");
    ///
    /// fn chat(recorder: &Recorder, start: u64, tokens: i64) {
    ///     let parent = Parent::Root(TraceId::random());
    ///     recorder.span_with(
    ///         &FreeSpan::new("chat", start, clock::now(), SpanId::random(), parent),
    ///         [
    ///             (MODEL.get(), ValueRef::Str("deepseek-r1")),
    ///             (TOKENS.get(), ValueRef::I64(tokens)),
    ///         ],
    ///     );
    /// }
    /// ```
    #[inline(always)]
    pub fn span_with<'a, const N: usize>(
        &self,
        span: &FreeSpan<'a>,
        attributes: [(KeyRef<'a>, ValueRef<'a>); N],
    ) -> bool {
        if span.is_sampled() && span.is_simple() {
            let literal = Literal::new(&attributes, &self.limits);
            if self.queue.try_push(&SpanRecord::new(span, literal, &[])) {
                return true;
            }
        }
        // Of copies: what is referred to anywhere would have to be in memory in any case.
        let copy = attributes;
        let mut span = *span;
        span.attributes = &copy;
        self.span_of_any_kind(&span)
    }

    #[cold]
    #[inline(never)]
    fn span_of_any_kind(&self, span: &FreeSpan<'_>) -> bool {
        self.span(span)
    }

    /// The same with these attributes in place of the span's own.
    #[inline]
    pub fn span_with_packed(&self, span: &FreeSpan<'_>, attributes: &PackedAttributes) -> bool {
        if !span.is_sampled() {
            self.leave_out();
            return true;
        }
        let more = match span.is_simple() {
            true => Vec::new(),
            false => queue::more(span),
        };
        let record = SpanRecord::new(span, Kept::Packed(attributes), &more);
        self.count(self.queue.push(&record).is_ok())
    }

    #[inline]
    fn count(&self, pushed: bool) -> bool {
        if !pushed {
            self.lost_spans.fetch_add(1, Ordering::Relaxed);
        }
        pushed
    }

    /// Records a finished, sampled span with these attributes, and with `more` for its
    /// events, links and dropped counts: what [`FreeSpan`] has of them does not count.
    #[inline]
    pub(crate) fn packed_span(&self, span: &FreeSpan<'_>, attributes: &Limited, more: &[u8]) {
        let record = SpanRecord::new(span, attributes.kept(), more);
        self.count(self.queue.push(&record).is_ok());
    }

    /// A span with events or links, or with more attributes than are kept.
    #[cold]
    fn push_other(&self, span: &FreeSpan<'_>) -> bool {
        let limits = &self.limits;
        let cut = Cut::new(span.attributes, limits);
        let events = &span.events[..span.events.len().min(limits.events)];
        let links = &span.links[..span.links.len().min(limits.links)];
        let mut dropped = span.dropped;
        dropped.attributes += cut.dropped;
        dropped.events += (span.events.len() - events.len()) as u32;
        dropped.links += (span.links.len() - links.len()) as u32;
        let event = |event: &SpanEvent| {
            let (attributes, more) =
                limits.cut_attributes(&event.attributes, limits.event_attributes);
            SpanEvent {
                attributes,
                dropped_attributes: event.dropped_attributes + more,
                name: Arc::clone(&event.name),
                time: event.time,
            }
        };
        let link = |link: &Link| {
            let (attributes, more) =
                limits.cut_attributes(&link.attributes, limits.link_attributes);
            Link {
                attributes,
                dropped_attributes: link.dropped_attributes + more,
                ..link.clone()
            }
        };
        let (events, links): (Vec<_>, Vec<_>) = (
            events.iter().map(event).collect(),
            links.iter().map(link).collect(),
        );
        let span = FreeSpan {
            events: &events,
            links: &links,
            dropped,
            ..*span
        };
        let more = queue::more(&span);
        let kept = Kept::of_cut(&cut.list);
        self.queue
            .push(&SpanRecord::new(&span, kept, &more))
            .is_ok()
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
        // Lost or not: it is counted.
        let _ = self.queue.push(&Bind {
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
            self.push_action(Some(id), true, false, &action);
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
        let trace_id = match self.carry.bound(request_id) {
            Some((_, Some(context))) => return (context.trace_id, context.flags),
            Some((canonical, None)) => TraceId::of_request(&canonical),
            None => TraceId::of_request(canonical_request_id(request_id)),
        };
        (trace_id, self.sampler.flags(None, trace_id))
    }

    /// The address of this node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The SERVER span that a request has on this node in a role (any but `prefill`
    /// decodes), and its canonical id: what a link to the request points to.
    pub fn link_to(&self, request_id: &str, role: &str) -> (Arc<str>, Link) {
        let request_id = kept_id(request_id);
        let (canonical, context) = self
            .carry
            .bound(request_id)
            .unwrap_or_else(|| (canonical_request_id(request_id).into(), None));
        let link = engine::link(&self.vocabulary, &self.node, role, &canonical, context);
        (canonical, link)
    }

    /// Canonical id and context of a request, as far as they have been read.
    pub(crate) fn bound(&self, request_id: &str) -> Option<(Arc<str>, Option<SpanContext>)> {
        self.carry.bound(request_id)
    }

    /// Counts a span that is not recorded because its trace is not sampled.
    #[cold]
    pub fn leave_out(&self) {
        self.unsampled.fetch_add(1, Ordering::Relaxed);
    }

    /// Spans not recorded because their trace is not sampled.
    pub(crate) fn unsampled(&self) -> u64 {
        self.unsampled.load(Ordering::Relaxed)
    }

    /// Free spans lost to a full queue.
    pub(crate) fn lost_spans(&self) -> u64 {
        self.lost_spans.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode;
    use crate::event::Parent;
    use crate::id::SpanId;
    use crate::key::{Key, KeyRef};
    use crate::queue::Record;
    use crate::span::{Dropped, Place, Source, Span};
    use crate::value::{Array, Attribute, ValueRef};

    fn recorder(vars: &[(&str, &str)]) -> Recorder {
        let (config, warnings) = Config::from_vars(|name| {
            let found = vars.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        });
        assert_eq!(warnings, Vec::<String>::new());
        Recorder::new(&config, Queue::new(1 << 20, Box::new(|| {})))
    }

    fn trace_id() -> TraceId {
        TraceId::new(7).unwrap()
    }

    /// The spans that the queue holds.
    fn spans(recorder: &Recorder) -> Vec<Span> {
        let source = Arc::new(Source {
            role: "prefill".into(),
            node: "n".into(),
        });
        let place = Place {
            trace_id: trace_id(),
            parent: None,
            flags: 1,
        };
        let mut spans = Vec::new();
        recorder.queue.drain(|record| match record {
            Record::Span(span) => spans.push(decode::free_span(&span, &place, None, &source)),
            other => panic!("{other:?}"),
        });
        spans
    }

    #[test]
    fn what_is_beyond_the_limits_is_left_out_and_counted() {
        let recorder = recorder(&[
            ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "2"),
            ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3"),
            ("OTEL_SPAN_EVENT_COUNT_LIMIT", "1"),
            ("OTEL_SPAN_LINK_COUNT_LIMIT", "0"),
            ("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "1"),
        ]);
        let list = Array::new([ValueRef::I64(1), ValueRef::I64(2)].into_iter());
        let event = |name: &str, attributes: Vec<Attribute>| SpanEvent {
            time: 5,
            name: name.into(),
            attributes,
            dropped_attributes: 0,
        };
        let two = vec![Attribute::new("a", "ümläut"), Attribute::new("b", 1)];
        let span_id = SpanId::new(9).unwrap();
        let simple = FreeSpan::new("span", 1, 2, span_id, Parent::Root(trace_id()));
        assert!(recorder.span(&FreeSpan {
            attributes: &[
                (KeyRef::Text("text"), ValueRef::Str("ümläut")),
                (KeyRef::Text("list"), ValueRef::Array(list.as_ref())),
                (KeyRef::Text("third"), ValueRef::Bool(true)),
            ],
            events: &[event("first", two.clone()), event("second", two)],
            links: &[Link::new(trace_id(), span_id)],
            ..simple
        }));
        let found = spans(&recorder);
        assert_eq!(
            found,
            [Span {
                attributes: vec![
                    Attribute::new("text", "üml"),
                    Attribute::new("list", crate::Value::Array(list)),
                ],
                events: vec![SpanEvent {
                    dropped_attributes: 1,
                    ..event("first", vec![Attribute::new("a", "üml")])
                }],
                dropped: Dropped {
                    attributes: 1,
                    events: 1,
                    links: 1,
                },
                ..found[0].clone()
            }]
        );
    }

    /// The spans of a recorder with small limits, with N attributes that are said in place, and
    /// as a list.
    fn said_and_listed<const N: usize>(long: &str) -> [Vec<Span>; 2] {
        static KEY: Key = Key::new("recorder.test.key");
        let key = KEY.get();
        let attributes: [(KeyRef<'_>, ValueRef<'_>); N] = std::array::from_fn(|n| match n % 5 {
            0 => (key, ValueRef::Str(long)),
            1 => (KeyRef::Text("n"), ValueRef::I64(-1)),
            2 => (key, ValueRef::F64(0.5)),
            3 => (KeyRef::Text(long), ValueRef::Bool(true)),
            _ => (key, ValueRef::Str("")),
        });
        let event = SpanEvent::default();
        let parent = Parent::Root(trace_id());
        let simple = FreeSpan::new("span", 1, 2, SpanId::new(9).unwrap(), parent);
        let with_event = FreeSpan {
            events: std::slice::from_ref(&event),
            ..simple
        };
        [true, false].map(|said| {
            let recorder = recorder(&[
                ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "11"),
                ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "6"),
            ]);
            for span in [simple, with_event] {
                assert!(match said {
                    true => recorder.span_with(&span, attributes),
                    false => recorder.span(&FreeSpan {
                        attributes: &attributes,
                        ..span
                    }),
                });
            }
            spans(&recorder)
        })
    }

    #[test]
    fn attributes_that_are_said_in_place_are_those_of_a_list() {
        for long in ["", "ümläut", "ümläuts", &"x".repeat(2_000)] {
            for [said, listed] in [
                said_and_listed::<0>(long),
                said_and_listed::<1>(long),
                said_and_listed::<5>(long),
                said_and_listed::<11>(long),
                said_and_listed::<12>(long),
            ] {
                assert_eq!(said.len(), 2);
                assert_eq!(said, listed);
            }
        }
    }

    #[test]
    fn a_full_queue_loses_a_span_once_however_it_is_recorded() {
        let (config, _) = Config::from_vars(|_| None);
        let recorder = Recorder::new(&config, Queue::new(0, Box::new(|| {})));
        let parent = Parent::Root(trace_id());
        let span = FreeSpan::new("span", 1, 2, SpanId::new(9).unwrap(), parent);
        let kept = (0..1_000).filter(|n| match n % 2 {
            0 => recorder.span_with(&span, [(KeyRef::Text("n"), ValueRef::I64(*n))]),
            _ => recorder.span(&span),
        });
        let kept = kept.count();
        assert_eq!(spans(&recorder).len(), kept);
        assert_eq!(recorder.queue.lost(), 1_000 - kept as u64);
        assert_eq!(recorder.lost_spans(), 1_000 - kept as u64);
    }

    #[test]
    fn the_sampler_decides_where_no_caller_has_and_what_it_leaves_out_is_counted() {
        let never = recorder(&[("OTEL_TRACES_SAMPLER", "parentbased_always_off")]);
        assert_eq!(never.trace_of("r").1, 0);
        let caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let get = |key: &str| (key == "traceparent").then_some(caller);
        let context = never.extract(get, Some("r")).unwrap();
        assert_eq!(never.trace_of("r"), (context.trace_id, 1));
        never.queue.drain(|_| {});
        let under = |flags| {
            let parent = Parent::Span(SpanContext { flags, ..context });
            FreeSpan::new("span", 1, 2, SpanId::random(), parent)
        };
        assert!(never.span(&under(0)) && never.span(&under(1)));
        assert!(never.span_with(&under(0), []) && never.span_with(&under(1), []));
        assert_eq!((spans(&never).len(), never.unsampled()), (2, 2));
    }
}
