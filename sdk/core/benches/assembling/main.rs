//! What the assembler costs: CPU time and allocations of the exporter's thread.
//!
//! ```text
//!  cargo bench -p omnitrace --bench assembling [-- --quick]
//! ```
//! Requests come at 10,000 a second, eight at a time, action by action; each is
//! kept after its end as the pipeline keeps it, so the table of requests is full.
#![allow(clippy::print_stdout)]

mod carrying;
mod requests;

use std::sync::Arc;

use omnitrace::Vocabulary;
use omnitrace::assembler::{Assembler, LooseEvent, PhaseSpan, Scope, Sink};
use omnitrace::event::{ActionName, Event};
use omnitrace::span::Source;
use omnitrace::vocabulary::PhaseId;
use rustix::time::{ClockId, clock_gettime};

use requests::{CASES, Case, request_ids};

/// Requests between two looks at the queue, 100 ms apart.
const ROUND: u64 = 1_000;
const ROUND_NS: u64 = 100_000_000;
/// Requests that are under way at the same time.
const AT_ONCE: usize = 8;
/// Rounds until the table of requests is full and has made room once.
const WARM_UP: u64 = 80;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let rounds = if quick { 20 } else { 300 };
    println!("request       ns/event   allocations/event   spans/event   bytes/idle request");
    for case in CASES {
        let cost = Assembling::new(case)?.cost(rounds);
        println!(
            "{:12} {:9.0} {:19.2} {:13.2} {:20.0}",
            case.name, cost.ns, cost.allocations, cost.spans, cost.bytes
        );
    }
    carrying::report(rounds)?;
    Ok(())
}

/// What one event has cost.
struct Cost {
    ns: f64,
    allocations: f64,
    spans: f64,
    /// Memory that a request takes after its end.
    bytes: f64,
}

/// What some rounds took in all.
#[derive(Default)]
struct Spent {
    ns: u64,
    allocations: u64,
    bytes: i64,
}

/// Counts the spans, which delivery would encode.
#[derive(Default)]
struct Count(u64);

impl Sink for Count {
    fn span(&mut self, _: PhaseSpan<'_>) {
        self.0 += 1;
    }

    fn loose(&mut self, _: LooseEvent) {}

    fn unsampled(&mut self) {}

    fn contradictory(&mut self, _: PhaseId) {}
}

struct Assembling {
    case: Case,
    actions: Vec<ActionName<'static>>,
    source: Arc<Source>,
    assembler: Assembler,
    spans: Count,
    round: u64,
}

impl Assembling {
    fn new(case: Case) -> Result<Self, String> {
        let vocabulary = Vocabulary::omni_vllm();
        let known = |(name, _): &(&str, _)| {
            let id = vocabulary.action_named(name).map(ActionName::Known);
            id.ok_or_else(|| format!("the vocabulary has no action \"{name}\""))
        };
        Ok(Self {
            actions: case.actions.iter().map(known).collect::<Result<_, _>>()?,
            source: Arc::new(Source {
                role: case.role.into(),
                node: "10.0.0.2".into(),
            }),
            assembler: Assembler::new(vocabulary, Scope::Process),
            spans: Count::default(),
            round: 0,
            case,
        })
    }

    fn cost(mut self, rounds: u64) -> Cost {
        let kept = self.rounds(20).bytes as f64;
        let bytes = kept / self.assembler.live() as f64;
        self.rounds(WARM_UP);
        let spans = self.spans.0;
        let events = (rounds * ROUND) as f64 * self.actions.len() as f64;
        let spent = self.rounds(rounds);
        Cost {
            ns: spent.ns as f64 / events,
            allocations: spent.allocations as f64 / events,
            spans: (self.spans.0 - spans) as f64 / events,
            bytes,
        }
    }

    fn rounds(&mut self, rounds: u64) -> Spent {
        let mut spent = Spent::default();
        for _ in 0..rounds {
            // Not the assembler's: ids in the form in which they come.
            let ids = request_ids(self.round * ROUND, ROUND);
            self.round += 1;
            let before = thread_cpu();
            let memory = allocation_counter::measure(|| self.round(&ids));
            spent.ns += thread_cpu() - before;
            spent.allocations += memory.count_total;
            spent.bytes += memory.bytes_current;
        }
        spent
    }

    fn round(&mut self, ids: &[String]) {
        for ids in ids.chunks(AT_ONCE) {
            self.assemble(ids);
        }
        let now = self.round * ROUND_NS;
        self.assembler.settle(now, &mut self.spans);
    }

    fn assemble(&mut self, ids: &[String]) {
        let began = 1_795_334_645_577_302_011 + self.round * ROUND_NS;
        if let Some(context) = self.case.caller() {
            for id in ids {
                self.assembler.bind(id, id, Some(context));
            }
        }
        for (step, (name, (_, attributes))) in (0..).zip(self.actions.iter().zip(self.case.actions))
        {
            for request_id in ids {
                let event = Event {
                    action: *name,
                    time: began + step * 1_000_000,
                    request_id,
                    occurrence: 0,
                    context: None,
                    attributes,
                    source: &self.source,
                    carried: false,
                };
                self.assembler.event(event, &mut self.spans);
            }
        }
    }
}

/// CPU time of this thread, in nanoseconds.
fn thread_cpu() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
