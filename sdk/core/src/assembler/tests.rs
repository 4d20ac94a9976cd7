//! Whole trees, compared whole.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::*;
use crate::key::KeyRef;
use crate::value::ValueRef;

const REQUEST: &str = "38a4f1c0-5b1e-4c52-9c0d-0123456789ab";

/// One process of one node, recording.
struct Process {
    assembler: Assembler,
    source: Arc<Source>,
    output: Output,
}

impl Process {
    fn new(role: &str, node: &str, scope: Scope) -> Self {
        Self {
            assembler: Assembler::new(Vocabulary::omni_vllm(), scope),
            source: Arc::new(Source {
                role: role.into(),
                node: node.into(),
            }),
            output: Output::default(),
        }
    }

    fn at(&mut self, time: u64, action: &str) -> &mut Self {
        self.record(time, action, false, None, 0)
    }

    fn record(
        &mut self,
        time: u64,
        action: &str,
        carried: bool,
        context: Option<SpanContext>,
        occurrence: u16,
    ) -> &mut Self {
        let vocabulary = Vocabulary::omni_vllm();
        let event = Event {
            action: vocabulary
                .action_named(action)
                .map_or(ActionName::Custom(action), ActionName::Known),
            time,
            request_id: REQUEST,
            occurrence,
            context,
            attributes: &[(KeyRef::Text("at"), ValueRef::I64(time as i64))],
            source: &self.source,
            carried,
        };
        self.assembler.event(event, &mut self.output);
        self
    }

    fn settle(&mut self) -> Vec<Span> {
        self.assembler.settle(1, &mut self.output);
        std::mem::take(&mut self.output.spans)
    }

    fn finish(&mut self) -> Vec<Span> {
        self.assembler.finish(&mut self.output);
        std::mem::take(&mut self.output.spans)
    }
}

/// Name, start–end, kind, what is unusual; children below their parents.
fn tree(spans: &[Span]) -> String {
    let ids: HashMap<SpanId, &Span> = spans.iter().map(|s| (s.span_id, s)).collect();
    assert_eq!(ids.len(), spans.len(), "span ids are distinct");
    let mut text = String::new();
    fn below(
        spans: &[Span],
        parent: Option<SpanId>,
        depth: usize,
        ids: &HashMap<SpanId, &Span>,
        text: &mut String,
    ) {
        let mut children: Vec<&Span> = spans
            .iter()
            .filter(|s| s.parent_span_id.filter(|p| ids.contains_key(p)) == parent)
            .collect();
        children.sort_by_key(|s| (s.start, std::cmp::Reverse(s.end), s.name.to_string()));
        for span in children {
            let mut notes = String::new();
            if span.kind != crate::span::SpanKind::Internal {
                notes += &format!(" {}", span.kind.name());
            }
            for event in &span.events {
                notes += &format!(" ({} {})", event.time, event.name);
            }
            for key in ["omnitrace.incomplete", "omnitrace.occurrence"] {
                if let Some(attribute) = span.attributes.iter().find(|a| &*a.key == key) {
                    notes += &format!(" {key}={:?}", attribute.value);
                }
            }
            if !span.links.is_empty() {
                notes += &format!(" -> {}", ids[&span.links[0].span_id].name);
            }
            let indent = "  ".repeat(depth);
            writeln!(
                text,
                "{indent}{} {}–{}{notes}",
                span.name, span.start, span.end
            )
            .unwrap();
            below(spans, Some(span.span_id), depth + 1, ids, text);
        }
    }
    below(spans, None, 0, &ids, &mut text);
    text
}

/// All 37 actions in the order of a real request, one time unit apart.
fn whole_request(process: &mut Process) {
    let vocabulary = Vocabulary::omni_vllm();
    for (index, action) in vocabulary.actions()[..37].iter().enumerate() {
        let role = vocabulary.role(action.roles[0]).name.to_string();
        process.source = Arc::new(Source {
            role: role.as_str().into(),
            node: format!("{role}-node").as_str().into(),
        });
        process.at(100 + index as u64, &action.name);
    }
}

#[test]
fn a_whole_request_is_the_tree_of_the_design() {
    let mut process = Process::new("proxy", "", Scope::Whole);
    whole_request(&mut process);
    let spans = process.finish();
    let expected = "\
Trace for Omni Proxy 100–136 server (132 Proxy got first token) (134 Proxy got second token) (135 Proxy got third token)
  Process request 101–102
  Tokenizer 102–103
  APC matching 103–104
  P waiting 104–105
  P scheduled 105–106
  P running 106–117 client
    Prefill 107–116 server
      Add to running for prefill 107–112
        Start process request in prefill engine 107–108
        Prefill add waiting queue 108–109
        try to schedule in waiting queue 109–110
        Prefill get new_blocks 110–111
        success add to seq groups 111–112
      Prefill execute_model 112–114
        Prefill start execute_model 112–113
        Prefill done execute_model 113–114
      Send output in prefill stage 114–116
        Start to send output in prefill stage 114–115
        Finish prefill pickle and start response 115–116
  D waiting 118–119
  D scheduled 119–120
  D running 120–136 client
    Decode 121–131 server (128 First decode output token) (129 Second decode output token) (130 Third decode output token)
      Add to need pulling for decode 121–123
        Start to dispatch decode request 121–122
        Add need pulling sequence 122–123
      Pull kv 123–125 -> Prefill free kv
        Start pull kv 123–124
        Finish pull kv 124–125
      Start append running sequece for decode 125–126
      Send output in decode stage 126–131
        Start to send output 126–127
        First decode output token 127–128
  Prefill free kv 125–133
";
    assert_eq!(tree(&spans), expected);
    assert!(
        spans
            .iter()
            .all(|s| s.trace_id == TraceId::of_request(REQUEST))
    );
}

#[test]
fn live_processes_that_carry_the_starts_make_the_same_spans_as_the_whole() {
    let mut whole = Process::new("proxy", "", Scope::Whole);
    whole_request(&mut whole);
    let mut expected: Vec<Span> = whole.finish();
    expected.retain(|s| &*s.name != "Prefill free kv");
    expected.iter_mut().for_each(|s| s.links.clear());

    let vocabulary = Vocabulary::omni_vllm();
    let mut live: HashMap<(String, u16), Process> = HashMap::new();
    let mut spans = Vec::new();
    let mut carried: Vec<(u64, Arc<str>, String)> = Vec::new();
    // What the proxy sends with its calls: its CLIENT spans' ids.
    let context = |name: &str| {
        let trace_id = TraceId::of_request(REQUEST);
        let key = crate::id::PhaseKey {
            trace_id,
            request_id: REQUEST,
            remote_parent: None,
            entered: 100,
            role: "proxy",
            node: "proxy-node",
            phase: name,
            occurrence: 0,
        };
        let span_id = key.span_id();
        Some(SpanContext {
            trace_id,
            span_id,
            flags: 1,
        })
    };
    for (index, action) in vocabulary.actions()[..37].iter().enumerate() {
        let role = vocabulary.role(action.roles[0]).name.to_string();
        let process = live
            .entry((role.clone(), action.process))
            .or_insert_with(|| Process::new(&role, &format!("{role}-node"), Scope::Process));
        let context = match role.as_str() {
            "prefill" => context("P running"),
            "decode" => context("D running"),
            _ => None,
        };
        for (time, start, _) in carried.iter().filter(|(_, _, r)| *r == role) {
            process.record(*time, start, true, context, 0);
        }
        let time = 100 + index as u64;
        process.record(time, &action.name, false, context, 0);
        if action.carried {
            carried.push((time, Arc::clone(&action.name), role));
        }
        spans.extend(process.settle());
    }
    for process in live.values_mut() {
        spans.extend(process.finish());
        assert_eq!(process.output.contradictory, []);
    }
    // Offline, where nothing tells the caller, the tree does; the ids of what is
    // below it differ by design, the names, times, and places do not.
    assert_eq!(tree(&spans), tree(&expected));
}

#[test]
fn a_context_gives_the_trace_the_parent_and_the_decision() {
    let caller = SpanContext::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let mut process = Process::new("decode", "10.0.0.3", Scope::Process);
    process
        .assembler
        .bind(&format!("chatcmpl-{REQUEST}-1a2b3c4d"), REQUEST, caller);
    process
        .at(5, "Enter decode to generate")
        .at(9, "Finish decode pickle and start response");
    let spans = process.settle();
    assert_eq!(tree(&spans), "Decode 5–9 server\n");
    let (trace, parent) = (spans[0].trace_id.to_string(), spans[0].parent_span_id);
    assert_eq!(trace, "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(parent.map(SpanId::value), Some(0x00f0_67aa_0ba9_02b7));

    let unsampled = SpanContext::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");
    let mut process = Process::new("decode", "10.0.0.3", Scope::Process);
    process.assembler.bind(REQUEST, REQUEST, unsampled);
    process
        .at(5, "Enter decode to generate")
        .at(9, "Finish decode pickle and start response");
    assert_eq!(
        (process.settle(), process.output.unsampled),
        (Vec::new(), 1)
    );
}

#[test]
fn a_retry_on_the_same_node_is_another_visit() {
    let context = |id| SpanContext {
        trace_id: TraceId::of_request(REQUEST),
        span_id: SpanId::new(id).unwrap(),
        flags: 1,
    };
    let mut process = Process::new("prefill", "10.0.0.2", Scope::Process);
    for (start, id) in [(10, 1), (50, 2)] {
        process.assembler.bind(REQUEST, REQUEST, Some(context(id)));
        process.at(start, "PD api server get request");
        process.at(start + 5, "Finish prefill pickle and start response");
    }
    let spans = process.settle();
    assert_eq!(tree(&spans), "Prefill 10–15 server\nPrefill 50–55 server\n");
}

#[test]
fn tries_of_a_call_are_told_apart_by_their_occurrence() {
    let mut process = Process::new("proxy", "10.0.0.1", Scope::Process);
    process.at(1, "Time received");
    for (occurrence, start) in [(0, 2), (1, 4)] {
        process.record(start, "Enter state P running", false, None, occurrence);
        process.record(start + 1, "Finish P running", false, None, occurrence);
    }
    process.at(9, "Received all tokens");
    assert_eq!(
        tree(&process.settle()),
        "Trace for Omni Proxy 1–9 server\n  P running 2–3 client\n  P running 4–5 client omnitrace.occurrence=I64(1)\n"
    );
}

#[test]
fn repeated_late_and_contradictory_events_do_no_harm() {
    let mut process = Process::new("prefill", "10.0.0.2", Scope::Process);
    process
        .at(10, "PD api server get request")
        .at(12, "Prefill add waiting queue")
        // Late: it happened before the one above.
        .at(11, "Start process request in prefill engine")
        // Repeats: the first counts.
        .at(13, "try to schedule in waiting queue")
        .at(15, "try to schedule in waiting queue")
        // Ends before it starts.
        .at(9, "Prefill get new_blocks")
        .at(20, "Finish prefill pickle and start response");
    assert_eq!(
        tree(&process.finish()),
        "\
Prefill 10–20 server
  Add to running for prefill 10–13 omnitrace.incomplete=Bool(true)
    Start process request in prefill engine 10–11
    Prefill add waiting queue 11–12
    try to schedule in waiting queue 12–13
"
    );
    let contradictory: Vec<&str> = (process.output.contradictory.iter())
        .map(|phase| &*process.assembler.vocabulary().phase(*phase).name)
        .collect();
    assert_eq!(contradictory, ["Prefill get new_blocks"]);
}

#[test]
fn a_request_of_which_only_ends_of_phases_are_known_is_shown_where_all_of_it_is() {
    for (scope, expected) in [
        (Scope::Process, ""),
        (
            Scope::Whole,
            "Decode 24–24 server (25 my own) omnitrace.incomplete=Bool(true)\n",
        ),
    ] {
        let mut process = Process::new("decode", "10.0.0.3", scope);
        process.at(24, "Finish pull kv").at(25, "my own");
        assert_eq!(tree(&process.finish()), expected);
        let loose = process.output.loose.iter();
        let loose: Vec<_> = loose.map(|e| (e.time, &*e.action)).collect();
        let all = [(24, "Finish pull kv"), (25, "my own")];
        assert_eq!(loose, all[..2 - usize::from(scope == Scope::Whole)]);
    }
}

#[test]
fn what_never_ended_is_shown_and_marked() {
    let mut process = Process::new("decode", "10.0.0.3", Scope::Process);
    process
        .at(10, "Enter decode to generate")
        .at(30, "First decode output token")
        .at(40, "something of my own");
    assert_eq!(process.settle(), []);
    assert_eq!(
        tree(&process.finish()),
        "Decode 10–30 server (30 First decode output token) (40 something of my own) omnitrace.incomplete=Bool(true)\n"
    );
}

#[test]
fn what_never_ended_reaches_to_the_last_that_was_seen() {
    let mut process = Process::new("decode", "10.0.0.3", Scope::Process);
    process
        .at(10, "Enter decode to generate")
        .at(30, "Finish pull kv");
    assert_eq!(
        tree(&process.finish()),
        "Decode 10–30 server omnitrace.incomplete=Bool(true)\n"
    );
}

#[test]
fn an_event_that_no_span_here_holds_is_handed_on() {
    let mut process = Process::new("prefill", "10.0.0.2", Scope::Process);
    process.at(33, "Prefill free kv blocks").at(34, "my own");
    assert_eq!(process.finish(), []);
    let loose: Vec<(&str, u64, usize)> = process
        .output
        .loose
        .iter()
        .map(|e| (&*e.action, e.time, e.attributes.len()))
        .collect();
    assert_eq!(
        loose,
        [("Prefill free kv blocks", 33, 1), ("my own", 34, 1)]
    );
}

#[test]
fn attributes_land_on_the_span_that_their_action_describes() {
    let mut process = Process::new("proxy", "10.0.0.1", Scope::Process);
    process
        .at(1, "Time received")
        .at(2, "Enter state D running")
        .at(4, "Proxy got first token");
    process
        .at(6, "Finish D running")
        .at(7, "Received all tokens");
    let spans = process.settle();
    let attributes = |name: &str| -> Vec<(String, String)> {
        let span = spans.iter().find(|s| &*s.name == name).unwrap();
        span.attributes
            .iter()
            .map(|a| (a.key.to_string(), format!("{:?}", a.value)))
            .collect()
    };
    let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    let id = format!("Str(\"{REQUEST}\")");
    assert_eq!(
        attributes("Trace for Omni Proxy"),
        [
            pair("at", "I64(7)"),
            pair("gen_ai.request.id", &id),
            pair("omnitrace.role", "Str(\"proxy\")"),
            pair("gen_ai.latency.time_to_first_token", "F64(3e-9)"),
            pair("gen_ai.latency.e2e", "F64(6e-9)"),
        ]
    );
    assert_eq!(
        attributes("D running"),
        [
            pair("at", "I64(6)"),
            pair("gen_ai.request.id", &id),
            pair("omnitrace.role", "Str(\"proxy\")")
        ]
    );
}

#[test]
fn requests_are_forgotten_and_memory_is_bounded() {
    let mut process = Process::new("decode", "n", Scope::Process);
    process
        .at(1, "Enter decode to generate")
        .at(2, "Finish decode pickle and start response");
    process.settle();
    assert_eq!(process.assembler.live(), 1);
    process
        .assembler
        .settle(FORGET_FINISHED_NS * 2, &mut process.output);
    assert_eq!(process.assembler.live(), 0);
    for i in 0..MAX_REQUESTS + 10 {
        process
            .assembler
            .bind(&format!("r{i}"), &format!("r{i}"), None);
    }
    process
        .assembler
        .settle(FORGET_FINISHED_NS * 2, &mut process.output);
    assert!(process.assembler.live() <= MAX_REQUESTS);
}

#[test]
fn a_client_may_send_the_same_id_again() {
    let mut process = Process::new("proxy", "10.0.0.1", Scope::Process);
    for start in [10, 50] {
        process
            .at(start, "Start to schedule")
            .at(start, "Time received");
        process.record(start + 1, "Enter state P running", false, None, 0);
        process.record(start + 2, "Finish P running", false, None, 0);
        process.at(start + 9, "Received all tokens");
    }
    assert_eq!(
        tree(&process.settle()),
        "\
Trace for Omni Proxy 10–19 server
  P running 11–12 client
Trace for Omni Proxy 50–59 server
  P running 51–52 client
"
    );
}

#[test]
fn a_request_that_is_over_is_made_at_once_and_forgotten_if_no_other_has_its_id() {
    let mut proxy = Process::new("proxy", "n", Scope::Process);
    let conclude = |proxy: &mut Process| {
        proxy.assembler.conclude(REQUEST, &mut proxy.output);
        let spans = std::mem::take(&mut proxy.output.spans);
        (tree(&spans), proxy.assembler.live())
    };
    proxy
        .at(10, "Time received")
        .at(30, "Time received")
        .at(40, "Received all tokens");
    let second = "Trace for Omni Proxy 30–40 server\n".to_owned();
    assert_eq!(conclude(&mut proxy), (second, 1));
    assert_eq!(tree(&proxy.settle()), "");
    let incomplete = "Trace for Omni Proxy 10–10 server omnitrace.incomplete=Bool(true)\n";
    assert_eq!(tree(&proxy.finish()), incomplete);

    proxy.at(50, "Time received").at(60, "Received all tokens");
    let third = "Trace for Omni Proxy 50–60 server\n".to_owned();
    assert_eq!(conclude(&mut proxy), (third, 0));
    assert_eq!(tree(&proxy.settle()), "");
}

#[test]
fn what_a_visit_has_no_room_for_and_no_span_counts_comes_out_at_once() {
    let mut process = Process::new("stranger", "n", Scope::Process);
    let names: Vec<String> = (0..300).map(|n| format!("event {n}")).collect();
    for (time, name) in names.iter().enumerate() {
        process.at(time as u64, name);
    }
    assert_eq!(process.output.loose.len(), 300 - 256);
    assert_eq!(process.finish(), []);
    let mut loose: Vec<(u64, String)> = process
        .output
        .loose
        .iter()
        .map(|e| (e.time, e.action.to_string()))
        .collect();
    loose.sort();
    assert_eq!(loose, (0..).zip(names).collect::<Vec<_>>());
}

#[test]
fn each_preemption_is_a_span_until_the_request_runs_again() {
    let mut process = Process::new("decode", "10.0.0.3", Scope::Whole);
    process.at(1, "Enter decode to generate");
    process.at(2, "Start append running sequece for decode");
    for (occurrence, start) in [(0, 3), (1, 6), (2, 8)] {
        process.record(start, "Preempted", false, None, occurrence);
        // The last time its client has had enough.
        if occurrence < 2 {
            process.record(start + 1, "Resumed", false, None, occurrence);
        }
    }
    process.at(9, "Finish decode pickle and start response");
    assert_eq!(
        tree(&process.finish()),
        "\
Decode 1–9 server
  Add to need pulling for decode 1–2
  Send output in decode stage 2–9
    Preempted in decode stage 3–4
    Preempted in decode stage 6–7 omnitrace.occurrence=I64(1)
"
    );
}
