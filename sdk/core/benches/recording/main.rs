//! What recording a span costs: omnitrace beside its peers, by CPU time.
//!
//! ```text
//!  cargo bench -p omnitrace [-- --quick]
//!  bench ─┬─► sink                        one for all; counts what arrives
//!         └─► run NAME … ─OTLP/HTTP─► sink   one process for each run
//! ```
//! The contestants take turns, so that a change of the machine's speed meets all
//! of them; the ratios are medians over the rounds of the ratio within a round.
//! `tests/bench/python.py` uses the same sink.
#![allow(clippy::print_stdout)]

mod measure;
mod ours;
mod peers;
mod report;
mod sink;

use std::error::Error;
use std::process::Command;
use std::time::Duration;

use measure::{Contestant, Cost};
use report::{Machine, Report, Row};
use sink::Sink;

/// Room for waiting spans that no contestant fills at the rate of the bench.
const LOSSLESS: usize = 1 << 18;

/// Sets a contestant up: the sink's base URL, the room for waiting spans (none:
/// the contestant's own default).
type Start = fn(&str, Option<usize>) -> Result<Box<dyn Contestant>, Box<dyn Error>>;

/// A line of the table.
struct Entry {
    name: &'static str,
    /// The ratios are to this line, whose spans are made in the same way.
    beside: &'static str,
    /// How many of them record at the same time.
    threads: u32,
    start: Start,
}

impl Entry {
    const fn new(name: &'static str, beside: &'static str, threads: u32, start: Start) -> Self {
        Self {
            name,
            beside,
            threads,
            start,
        }
    }
}

const OURS: &str = "omnitrace span";
const OURS_ON_TWO: &str = "omnitrace span, 2 threads";

/// In the order of the table.
const CONTESTANTS: [Entry; 9] = [
    Entry::new(OURS, OURS, 1, ours::span),
    Entry::new(OURS_ON_TWO, OURS_ON_TWO, 2, ours::span),
    Entry::new("omnitrace action", OURS, 1, ours::action),
    Entry::new("omnitrace layer", OURS, 1, ours::layer),
    Entry::new("omnitrace span_processor", OURS, 1, ours::span_processor),
    Entry::new("opentelemetry_sdk", OURS, 1, peers::opentelemetry),
    Entry::new(
        "opentelemetry_sdk, 2 threads",
        OURS_ON_TWO,
        2,
        peers::opentelemetry,
    ),
    Entry::new(
        "tracing-opentelemetry",
        "omnitrace layer",
        1,
        peers::tracing,
    ),
    Entry::new("fastrace, local span", OURS, 1, peers::fastrace),
];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["sink"] => Ok(sink::serve()?),
        ["run", name, endpoint, room, millis] => {
            let millis = Duration::from_millis(millis.parse()?);
            run(name, endpoint, room.parse().ok(), millis)
        }
        // cargo adds --bench.
        _ => bench(words.contains(&"--quick")),
    }
}

/// One run in this process; the outcome goes to stdout.
fn run(
    name: &str,
    endpoint: &str,
    room: Option<usize>,
    length: Duration,
) -> Result<(), Box<dyn Error>> {
    let entry = CONTESTANTS
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| format!("no contestant is called \"{name}\""))?;
    let mut contestant = (entry.start)(endpoint, room)?;
    let cost = measure::measure(&mut *contestant, entry.threads, length);
    println!("{}", serde_json::to_string(&cost)?);
    Ok(())
}

fn bench(quick: bool) -> Result<(), Box<dyn Error>> {
    let (rounds, millis) = if quick { (1, 500) } else { (7, 2_000) };
    let mut sink = Sink::start()?;
    let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); CONTESTANTS.len()];
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for (entry, costs) in CONTESTANTS.iter().zip(&mut costs) {
            costs.push(run_apart(&mut sink, entry.name, Some(LOSSLESS), millis)?);
        }
    }
    eprintln!("with default queues, for what is lost");
    let mut rows = Vec::new();
    for (entry, costs) in CONTESTANTS.iter().zip(costs) {
        let by_default = run_apart(&mut sink, entry.name, None, millis)?;
        rows.push(Row::new(entry.name, entry.beside, costs, by_default));
    }
    Report::new(Machine::this()?, rows).publish()
}

/// One run in a process of its own, with what of it the sink has seen.
fn run_apart(
    sink: &mut Sink,
    name: &str,
    room: Option<usize>,
    millis: u64,
) -> Result<Cost, Box<dyn Error>> {
    let before = sink.spans()?;
    let room = room.map_or("default".to_owned(), |spans| spans.to_string());
    let output = Command::new(std::env::current_exe()?)
        .args(["run", name, sink.endpoint(), &room, &millis.to_string()])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("the run of {name} failed: {}", output.status).into());
    }
    let mut cost: Cost = serde_json::from_slice(&output.stdout)?;
    cost.arrived = sink.spans()? - before;
    if let Some(counted) = cost.counted_lost
        && cost.made != cost.arrived + counted
    {
        let (made, arrived) = (cost.made, cost.arrived);
        eprintln!("{name}: made {made}, arrived {arrived}, counted as lost {counted}");
    }
    Ok(cost)
}
