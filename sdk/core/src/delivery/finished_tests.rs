//! A phase that was recorded at once is the phase that its actions would have made.

use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;

use super::batch::{Batch, Memory, OpenBatch};
use super::envelopes::Envelopes;
use crate::assembler::{Assembler, LooseEvent, PhaseSpan, Scope, Sink};
use crate::config::Config;
use crate::context::SpanContext;
use crate::event::{Action, FinishedPhase};
use crate::id::{SpanId, TraceId};
use crate::key::{Key, KeyRef};
use crate::queue::{Queue, Record};
use crate::recorder::Recorder;
use crate::scopes::Scopes;
use crate::span::{Source, Span};
use crate::value::{Attribute, ValueRef};
use crate::vocabulary::{KnownPhase, PhaseActions, PhaseId, Vocabulary};

const ROOT_STARTS: [&[&str]; 2] = [&["Time received"], &["Start to schedule", "Time received"]];
const ROOT_END: &str = "Received all tokens";
const CALLS: [[&str; 3]; 3] = [
    ["P running", "Enter state P running", "Finish P running"],
    ["D running", "Enter state D running", "Finish D running"],
    [
        "Upstream request",
        "Start upstream request",
        "Finish upstream request",
    ],
];

/// A process of the proxy, with the way of its records into a batch.
struct Proxy {
    recorder: Recorder,
    assembler: Assembler,
    source: Arc<Source>,
    open: OpenBatch,
    envelopes: Envelopes,
}

impl Sink for &mut OpenBatch {
    fn span(&mut self, span: PhaseSpan<'_>) {
        self.push_phase(span, Instant::now());
    }

    fn loose(&mut self, event: LooseEvent) {
        panic!("{event:?}");
    }

    fn unsampled(&mut self) {}

    fn contradictory(&mut self, _: PhaseId) {
        panic!("a phase was left out");
    }
}

impl Proxy {
    fn new() -> Self {
        let config = config("fallback");
        let envelopes = Envelopes::new(&[], Arc::new(Scopes::default()));
        Self {
            recorder: Recorder::new(&config, Queue::new(4 << 20, Box::new(|| {}))),
            assembler: Assembler::new(Vocabulary::omni_vllm(), Scope::Process)
                .sampled_by(config.sampler),
            source: Arc::new(Source {
                role: config.role.as_str().into(),
                node: config.node.as_str().into(),
            }),
            open: OpenBatch::new(&envelopes, Memory::default()),
            envelopes,
        }
    }

    fn known(&self) -> [KnownPhase; 5] {
        let actions = |name, start, end| PhaseActions { name, start, end };
        let roots = ROOT_STARTS.map(|start| actions("Trace for Omni Proxy", start, ROOT_END));
        let start = CALLS.map(|[_, start, _]| [start]);
        let call = |at: usize| actions(CALLS[at][0], &start[at], CALLS[at][2]);
        let phases = [roots[0], roots[1], call(0), call(1), call(2)];
        self.recorder.known_phases(phases).unwrap()
    }

    /// What has been recorded, as a batch and as the spans that come back from it.
    fn deliver(mut self) -> (Vec<u8>, Vec<Span>) {
        self.recorder.queue.drain(|record| match record {
            Record::Action(action) => {
                let attributes: Vec<_> = action.attributes.keyed().collect();
                let mut sink = &mut self.open;
                let event = action.event(&attributes, &self.source);
                self.assembler.event(event, &mut sink);
                if action.last {
                    self.assembler.conclude(action.request_id, &mut sink);
                }
            }
            Record::Phase(phase) => {
                if let Some(span) = self.assembler.finished(&phase, &self.source) {
                    self.open.push_finished(&span, Instant::now());
                }
            }
            other => panic!("{other:?}"),
        });
        let batch = self.open.seal(&mut self.envelopes, Memory::default());
        let decode = |batch: Batch| (batch.body().to_vec(), batch.decode(&self.source));
        batch.map_or_else(Default::default, decode)
    }
}

fn config(legacy_log: &'static str) -> Config {
    let (config, warnings) = Config::from_vars(|name| match name {
        "ROLE" => Some("proxy".to_owned()),
        "OMNITRACE_LEGACY_LOG" => Some(legacy_log.to_owned()),
        _ => None,
    });
    assert_eq!(warnings, Vec::<String>::new());
    config
}

/// One try of an upstream.
#[derive(Debug, Clone)]
struct Call {
    kind: usize,
    /// Nanoseconds from the call before, and its own.
    times: [u64; 2],
    attributes: Vec<Attribute>,
}

prop_compose! {
    fn attributes()(list in prop::collection::vec(
        (
            prop_oneof![
                3 => ".{0,20}",
                1 => Just("error.type".to_owned()),
                1 => Just("omnitrace.span.name".to_owned()),
            ],
            prop_oneof![
                ".{0,80}".prop_map(|text| crate::Value::Str(text.into())),
                any::<i64>().prop_map(crate::Value::I64),
                any::<bool>().prop_map(crate::Value::Bool),
                any::<u32>().prop_map(|n| crate::Value::F64(n.into())),
            ],
        ),
        0..10,
    )) -> Vec<Attribute> {
        list.into_iter().map(|(key, value)| Attribute::new(key, value)).collect()
    }
}

prop_compose! {
    fn call()(kind in 0..3usize, times: [u16; 2], attributes in attributes()) -> Call {
        Call { kind, times: times.map(u64::from), attributes }
    }
}

prop_compose! {
    fn context()(trace in 1..u128::MAX, span in 1..u64::MAX, flags in 0..4u8) -> SpanContext {
        SpanContext {
            trace_id: TraceId::new(trace).unwrap(),
            span_id: SpanId::new(span).unwrap(),
            flags,
        }
    }
}

fn pairs(attributes: &[Attribute]) -> Vec<(KeyRef<'_>, ValueRef<'_>)> {
    // A key of the caller's own, known by its number; the others are texts.
    static METHOD: Key = Key::new("http.request.method");
    let own = attributes
        .iter()
        .map(|a| (KeyRef::Text(&a.key), a.value.as_ref()));
    [(METHOD.get(), ValueRef::Str("POST"))]
        .into_iter()
        .chain(own)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_finished_phase_is_what_its_actions_would_have_made(
        request_id in "(chatcmpl-)?[a-z0-9-]{1,40}",
        context in prop::option::of(context()),
        arrived in 1_700_000_000_000_000_000..1_900_000_000_000_000_000u64,
        scheduled: bool,
        calls in prop::collection::vec(call(), 0..4),
        rest in 0..1_000_000u64,
        root_attributes in attributes(),
    ) {
        let (by_actions, at_once) = (Proxy::new(), Proxy::new());
        let known = at_once.known();
        let entry = known[usize::from(scheduled)];
        let say = |name, time, occurrence, attributes: &[_], last| {
            let action = Action { name, time, request_id: &request_id, occurrence, context, attributes };
            let recorder = &by_actions.recorder;
            if last { recorder.last_action(&action) } else { recorder.action(&action) }
        };
        let finish = |phase, occurrence, start, end, attributes: &[_]| {
            at_once.recorder.finished_phase(&FinishedPhase {
                phase,
                occurrence,
                start,
                end,
                request_id: &request_id,
                context,
                entry,
                entered: arrived,
                attributes,
            })
        };
        for action in ROOT_STARTS[usize::from(scheduled)] {
            prop_assert!(say(action, arrived, 0, &[], false));
        }
        let mut now = arrived;
        let mut tries = [0; 3];
        for call in &calls {
            let [name, start, end] = CALLS[call.kind];
            prop_assert_eq!(&*at_once.recorder.vocabulary.phase(known[2 + call.kind].phase).name, name);
            let began = now + call.times[0];
            now = began + call.times[1];
            let occurrence = tries[call.kind];
            tries[call.kind] += 1;
            let attributes = pairs(&call.attributes);
            prop_assert!(say(start, began, occurrence, &attributes[..1], false));
            prop_assert!(say(end, now, occurrence, &attributes[1..], false));
            prop_assert!(finish(known[2 + call.kind], occurrence, began, now, &attributes));
        }
        now += rest;
        let attributes = pairs(&root_attributes);
        prop_assert!(say(ROOT_END, now, 0, &attributes, true));
        prop_assert!(finish(entry, 0, arrived, now, &attributes));
        let (expected, made) = (by_actions.deliver(), at_once.deliver());
        prop_assert_eq!(&made.1, &expected.1);
        prop_assert_eq!(made.0, expected.0);
    }
}

#[test]
fn what_is_derived_from_a_phase_is_not_the_callers_to_say() {
    let proxy = Proxy::new();
    let known = proxy.known();
    let attributes = [
        "omnitrace.role",
        "mine",
        "gen_ai.latency.e2e",
        "gen_ai.request.id",
        "mine",
    ]
    .map(|key| (KeyRef::Text(key), ValueRef::Str(key)));
    assert!(proxy.recorder.finished_phase(&FinishedPhase {
        phase: known[0],
        occurrence: 0,
        start: 5_000,
        // A clock that was set back.
        end: 4_000,
        request_id: "r",
        context: None,
        entry: known[0],
        entered: 5_000,
        attributes: &attributes,
    }));
    let (_, spans) = proxy.deliver();
    assert_eq!((spans[0].start, spans[0].end), (5_000, 5_000));
    assert_eq!(
        spans[0].attributes,
        [
            Attribute::new("mine", "mine"),
            Attribute::new("gen_ai.request.id", "r"),
            Attribute::new("omnitrace.role", "proxy"),
            Attribute::new("gen_ai.latency.e2e", 0.0),
        ]
    );
}

#[test]
fn a_log_of_each_action_as_it_happens_needs_the_actions() {
    let queue = Queue::new(1 << 16, Box::new(|| {}));
    let recorder = Recorder::new(&config("always"), queue);
    let root = PhaseActions {
        name: "Trace for Omni Proxy",
        start: ROOT_STARTS[0],
        end: ROOT_END,
    };
    assert_eq!(recorder.known_phases([root]), None);
}
