//! The assembler over the life of a process: its memory, and vocabularies of any size.

use std::fmt::Write as _;
use std::sync::Arc;

use omnitrace::assembler::{Assembler, LooseEvent, Output, PhaseSpan, Scope, Sink};
use omnitrace::event::{ActionName, Attributes, Event};
use omnitrace::span::{Source, Span};
use omnitrace::vocabulary::PhaseId;
use omnitrace::{KeyRef, SpanContext, ValueRef, Vocabulary};

/// Longer than a request is kept after its last event, in nanoseconds.
const FORGOTTEN: u64 = 71_000_000_000;

const PREFILL: [&str; 10] = [
    "PD api server get request",
    "Start process request in prefill engine",
    "Prefill add waiting queue",
    "try to schedule in waiting queue",
    "Prefill get new_blocks",
    "success add to seq groups",
    "Prefill start execute_model",
    "Prefill done execute_model",
    "Start to send output in prefill stage",
    "Finish prefill pickle and start response",
];

struct Process {
    assembler: Assembler,
    source: Arc<Source>,
    now: u64,
}

impl Process {
    fn new(vocabulary: Arc<Vocabulary>, role: &str) -> Self {
        Self {
            assembler: Assembler::new(vocabulary, Scope::Process),
            source: Arc::new(Source {
                role: role.into(),
                node: "10.0.0.2".into(),
            }),
            now: 0,
        }
    }

    fn record(
        &mut self,
        sink: &mut impl Sink,
        request_id: &str,
        (action, occurrence): (&str, u16),
        time: u64,
        attributes: Attributes<'_>,
    ) {
        let known = self.assembler.vocabulary().action_named(action);
        let event = Event {
            action: known.map_or(ActionName::Custom(action), ActionName::Known),
            time,
            request_id,
            occurrence,
            context: None,
            attributes,
            source: &self.source,
            carried: false,
        };
        self.assembler.event(event, sink);
    }

    /// All actions of a prefill request, and what follows until it is forgotten.
    fn prefill(&mut self, sink: &mut impl Sink, request_id: &str) {
        let context =
            SpanContext::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        self.assembler.bind(request_id, request_id, context);
        for (time, action) in (10..).zip(PREFILL) {
            self.record(sink, request_id, (action, 0), time, &[]);
        }
        self.assembler.settle(self.now, sink);
        self.now += FORGOTTEN;
        self.assembler.settle(self.now, sink);
        assert_eq!(self.assembler.live(), 0);
    }
}

/// Counts spans.
#[derive(Default)]
struct Count(u64);

impl Sink for Count {
    fn span(&mut self, _: PhaseSpan<'_>) {
        self.0 += 1;
    }

    fn loose(&mut self, event: LooseEvent) {
        panic!("{event:?}");
    }

    fn unsampled(&mut self) {
        panic!("all are sampled");
    }

    fn contradictory(&mut self, _: PhaseId) {
        panic!("none is");
    }
}

#[test]
fn a_request_in_the_memory_of_a_closed_one_allocates_its_id_and_nothing_else() {
    let mut process = Process::new(Vocabulary::omni_vllm(), "prefill");
    let mut spans = Count::default();
    process.prefill(&mut spans, "chatcmpl-38a4f1c0-5b1e-4c52-9c0d-000000000001");
    let allocations = allocation_counter::measure(|| {
        process.prefill(&mut spans, "chatcmpl-38a4f1c0-5b1e-4c52-9c0d-000000000002");
    });
    assert_eq!((allocations.count_total, spans.0), (1, 26));
}

#[test]
fn a_request_shows_nothing_of_the_one_whose_memory_it_takes() {
    let mut used = Process::new(Vocabulary::omni_vllm(), "prefill");
    let caller = SpanContext::parse(b"00-11111111111111111111111111111111-2222222222222222-01");
    used.assembler.bind("chatcmpl-alias", "before", caller);
    let mut before = Output::default();
    for (time, action) in (0..).zip(PREFILL) {
        for occurrence in [0, 1] {
            let attributes = [(KeyRef::Text("left"), ValueRef::Str("over"))];
            used.record(
                &mut before,
                "alias",
                (action, occurrence),
                time,
                &attributes,
            );
        }
        used.record(&mut before, "before", ("my own", 0), time, &[]);
    }
    used.assembler.settle(0, &mut before);
    used.now = FORGOTTEN;
    used.assembler.settle(used.now, &mut before);
    assert_eq!((used.assembler.live(), before.spans.is_empty()), (0, false));

    let mut fresh = Process::new(Vocabulary::omni_vllm(), "prefill");
    let (mut expected, mut found) = (Output::default(), Output::default());
    fresh.prefill(&mut expected, "alias");
    used.prefill(&mut found, "alias");
    assert_eq!(found.spans, expected.spans);
    assert_eq!(found.loose, expected.loose);
    assert_eq!(used.assembler.known("before"), None);
}

#[test]
fn the_requests_that_have_been_idle_for_longest_make_room() {
    let mut process = Process::new(Vocabulary::omni_vllm(), "prefill");
    let mut output = Output::default();
    for i in 0..65_536 {
        process.record(&mut output, &format!("r{i}"), (PREFILL[0], 0), 1, &[]);
    }
    process.assembler.settle(1, &mut output);
    assert_eq!(process.assembler.live(), 65_536);
    for request in ["r0", "one too many"] {
        process.record(&mut output, request, (PREFILL[0], 0), 1, &[]);
    }
    process.assembler.settle(2, &mut output);
    let is_known = |request: &str| process.assembler.known(request).is_some();
    assert_eq!(process.assembler.live(), 65_537 - 6_553);
    assert_eq!(
        ["r0", "r1", "r6553", "r6554", "one too many"].map(is_known),
        [true, false, false, true, true]
    );
}

/// Name, times and parent's name of each span, in the order in which they came.
fn listed(spans: &[Span]) -> Vec<String> {
    let line = |span: &Span| {
        let parent = spans
            .iter()
            .find(|s| Some(s.span_id) == span.parent_span_id);
        let parent = parent.map_or("-", |parent| &*parent.name);
        format!("{} {}–{} < {parent}", span.name, span.start, span.end)
    };
    spans.iter().map(line).collect()
}

#[test]
fn what_comes_after_the_64th_action_and_phase_is_assembled_like_the_rest() {
    let mut text = "name = \"long\"\n".to_owned();
    text += "[[role]]\nname = \"r\"\nservice = \"s\"\nentry = \"All\"\n";
    for i in 0..80 {
        write!(
            text,
            "[[action]]\nname = \"a{i}\"\nrole = [\"r\"]\nprocess = \"p\"\nspan = \"All\"\n"
        )
        .unwrap();
    }
    for i in 0..79 {
        let end = i + 1;
        write!(
            text,
            "[[phase]]\nname = \"P{i}\"\nrole = \"r\"\nstart = [\"a{i}\"]\nend = [\"a{end}\"]\nparent = \"All\"\n"
        )
        .unwrap();
    }
    text += "[[phase]]\nname = \"All\"\nrole = \"r\"\nkind = \"server\"\nstart = [\"a0\"]\nend = [\"a79\"]\n";
    let vocabulary = Arc::new(Vocabulary::parse(&text).unwrap());
    let mut process = Process::new(vocabulary, "r");
    let mut output = Output::default();
    for (time, action, occurrence) in [
        (1, "a0", 0),
        (2, "a63", 0),
        (3, "a64", 0),
        (4, "a65", 0),
        (5, "a65", 0),
        // Another try does not end what the first has started.
        (6, "a70", 0),
        (7, "a71", 1),
        // The start may come late.
        (9, "a79", 0),
        (8, "a78", 0),
    ] {
        process.record(&mut output, "request", (action, occurrence), time, &[]);
    }
    process.assembler.settle(0, &mut output);
    assert_eq!(output.contradictory, []);
    assert_eq!(
        listed(&output.spans),
        [
            "P63 2–3 < All",
            "P64 3–4 < All",
            "P78 8–9 < All",
            "All 1–9 < -"
        ]
    );
}
