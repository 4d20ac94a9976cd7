//! The statistics against slow and simple ones.

use std::collections::BTreeSet;
use std::sync::Arc;

use omnitrace::Vocabulary;
use omnitrace::span::{Source, Span};
use proptest::prelude::*;

use super::*;
use crate::assemble::Bench;
use crate::reader::{LoggedEvent, Request};

#[test]
fn numbers_are_those_of_numpy_2_4() {
    let mut distribution = Distribution::default();
    let values = [
        4_294_967_295,
        7,
        5_000_000_000,
        12,
        12,
        999,
        4_294_967_296,
        1,
        250_000,
        33,
    ];
    values.iter().for_each(|v| distribution.add(*v));
    let numbers = distribution.numbers();
    let near = |a: f64, b: f64| assert!((a - b).abs() <= b * 1e-15, "{a} {b}");
    near(numbers.p50, 516.0);
    near(numbers.p90, 4_365_470_566.4);
    near(numbers.p95, 4_682_735_283.199_999);
    near(numbers.p99, 4_936_547_056.64);
    near(numbers.average, 1_359_018_565.5);
    assert_eq!((numbers.count, numbers.min, numbers.max), (10, 1.0, 5e9));
    assert_eq!(Distribution::default().numbers(), Numbers::default());
}

const BASE: u64 = 1_795_334_645_000_000_000;

/// Spans of one request that begins `start` ms after the first, with these steps in ms
/// between its actions; a decode node is chosen by the first step.
fn request(id: &str, start: u64, steps: &[u64]) -> Vec<Span> {
    let vocabulary = Vocabulary::omni_vllm();
    let mut time = BASE + start * 1_000_000;
    let events = steps
        .iter()
        .zip(&vocabulary.actions()[..37])
        .map(|(step, action)| {
            time += step * 1_000_000;
            let role = Arc::clone(&vocabulary.role(action.roles[0]).name);
            let node = match &*role {
                "decode" => format!("10.0.1.{}", steps[0] % 2),
                "prefill" => "10.0.2.1".to_owned(),
                _ => String::new(),
            };
            LoggedEvent {
                action: Arc::clone(&action.name),
                time,
                source: Arc::new(Source {
                    role,
                    node: node.as_str().into(),
                }),
                occurrence: 0,
                extra: None,
            }
        })
        .collect();
    let id = id.into();
    Bench::new(&vocabulary).spans(&Request { id, events })
}

fn options(skip: usize) -> Arc<Options> {
    Arc::new(Options {
        skip,
        slowest: 3,
        only: BTreeSet::from(["r1".to_owned()]),
    })
}

fn summary(options: &Arc<Options>, parts: &[&[Vec<Span>]]) -> Summary {
    let mut parts = parts.iter().map(|requests| {
        let mut statistics = Statistics::new(&Vocabulary::omni_vllm(), Arc::clone(options));
        requests.iter().for_each(|spans| statistics.add(spans));
        statistics
    });
    let mut all = parts.next().unwrap();
    parts.for_each(|part| all.merge(part));
    all.finish()
}

fn steps() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(0u64..2_000, 37)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn numbers_are_those_of_all_durations_sorted(
        values in prop::collection::vec(prop_oneof![0u64..1 << 20, 0u64..1 << 40], 1..300),
        cut in 0usize..300,
    ) {
        let cut = cut.min(values.len());
        let (mut one, mut two) = (Distribution::default(), Distribution::default());
        values[..cut].iter().for_each(|v| one.add(*v));
        values[cut..].iter().for_each(|v| two.add(*v));
        one.merge(two);
        let mut sorted = values.clone();
        sorted.sort_unstable();
        let numbers = one.numbers();
        prop_assert_eq!(numbers.count, values.len() as u64);
        prop_assert_eq!(numbers.max, *sorted.last().unwrap() as f64);
        prop_assert_eq!(numbers.min, sorted[0] as f64);
        for (q, found) in [(50, numbers.p50), (90, numbers.p90), (95, numbers.p95), (99, numbers.p99)] {
            let hundredths = q * (sorted.len() - 1);
            let (below, share) = (sorted[hundredths / 100], (hundredths % 100) as f64 / 100.0);
            let above = sorted[(hundredths / 100 + 1).min(sorted.len() - 1)];
            let expected = below as f64 + share * (above - below) as f64;
            prop_assert!((found - expected).abs() <= expected * 1e-12 + 1e-9);
        }
    }

    #[test]
    fn a_critical_path_is_as_long_as_its_request(steps in steps()) {
        let spans = request("r1", 0, &steps);
        let root = spans.iter().find(|s| s.parent_span_id.is_none()).unwrap();
        let path = path::critical(&spans);
        // Freeing the prefill node's memory may end after the answer; that is not waited for.
        let end = spans.iter().map(|s| s.end).max().unwrap();
        prop_assert_eq!(end, root.end);
        let sum: u64 = path.iter().map(|(_, own)| own).sum();
        prop_assert_eq!(sum, root.end - root.start);
        for (at, own) in path {
            prop_assert!(own <= spans[at].end - spans[at].start);
        }
    }

    #[test]
    fn neither_order_nor_threads_change_a_summary(
        all in prop::collection::vec((0u64..10_000, steps()), 1..30),
        cut in 0usize..30,
        skip in 0usize..6,
    ) {
        let requests: Vec<Vec<Span>> = all
            .iter()
            .enumerate()
            .map(|(at, (start, steps))| request(&format!("r{at}"), *start, steps))
            .collect();
        let options = options(skip);
        let cut = cut.min(requests.len());
        let whole = summary(&options, &[&requests]);
        prop_assert_eq!(&summary(&options, &[&requests[cut..], &requests[..cut]]), &whole);

        // The same by sorting: what is in the middle counts.
        let mut sorted: Vec<&Vec<Span>> = requests.iter().collect();
        sorted.sort_by_key(|r| {
            let root = r.iter().min_by_key(|s| s.start).unwrap();
            (root.start, Arc::clone(&root.origin.as_ref().unwrap().request_id))
        });
        let skipped = if sorted.len() > 2 * skip { skip } else { 0 };
        let counted = &sorted[skipped..sorted.len() - skipped];
        prop_assert_eq!(whole.skipped_at_each_end, skipped);
        prop_assert_eq!(whole.counted, counted.len() as u64);
        for phase in &whole.phases {
            let mut expected = Distribution::default();
            let of = |s: &&&Span| *s.name == *phase.name;
            let spans = counted.iter().flat_map(|r| r.iter());
            let spans: Vec<&Span> = spans.collect();
            spans.iter().filter(of).for_each(|s| expected.add(s.end - s.start));
            prop_assert_eq!(phase.numbers, RowMillis::from(expected.numbers()));
            let on_nodes: u64 = phase.nodes.iter().map(|n| n.numbers.count).sum();
            prop_assert_eq!(on_nodes, phase.numbers.count);
        }
        let share: f64 = whole.phases.iter().map(|p| p.critical_path).sum();
        prop_assert!((share - 1.0).abs() < 1e-9 || whole.whole.max_ms == 0.0, "{}", share);
    }
}

#[test]
fn what_made_a_request_slow_is_what_exceeds_the_average() {
    let usual = vec![10; 37];
    let mut slow = usual.clone();
    slow[5] = 900; // waiting for a prefill node
    let mut requests: Vec<_> = (0..9)
        .map(|n| request(&format!("u{n}"), n * 100, &usual))
        .collect();
    requests.push(request("r1", 450, &slow));
    let summary = summary(&options(1), &[&requests]);
    let first = &summary.slowest[0];
    assert_eq!((&*first.id, first.duration_ms), ("r1", 1_250.0));
    let path = &first.path[0];
    assert_eq!((&*path.phase, path.ms), ("P waiting", 900.0));
    assert_eq!(path.avg_ms, (7.0 * 10.0 + 900.0) / 8.0);
    assert_eq!(summary.chosen, summary.slowest[..1]);
    assert_eq!(summary.slowest.len(), 3);
    let call = |what: &str| {
        let of = summary.calls.iter().find(|c| c.what == what).unwrap();
        (&*of.from, &*of.to, of.numbers.p50_ms)
    };
    assert_eq!(call("P running"), ("proxy", "prefill 10.0.2.1", 110.0));
    assert_eq!(
        call("Prefill (between)"),
        ("proxy", "prefill 10.0.2.1", 20.0)
    );
    assert_eq!(
        call("Pull kv"),
        ("prefill 10.0.2.1", "decode 10.0.1.0", 20.0)
    );
    let latency = |name: &str, role: &str| {
        let mut of = summary.latencies.iter();
        of.find(|l| (&*l.name, &*l.role) == (name, role))
            .unwrap()
            .numbers
            .p50_ms
    };
    assert_eq!(latency("TTFT", "proxy"), 320.0);
    assert_eq!(latency("TTFT", "decode"), 70.0);
    assert_eq!(latency("TPOT", "proxy"), 15.0);
}

#[test]
fn an_id_that_a_client_sent_twice_is_two_requests() {
    let vocabulary = Vocabulary::omni_vllm();
    let event = |action: usize, millis: u64| LoggedEvent {
        action: Arc::clone(&vocabulary.actions()[action].name),
        time: BASE + millis * 1_000_000,
        source: Arc::new(Source {
            role: "proxy".into(),
            node: "".into(),
        }),
        occurrence: 0,
        extra: None,
    };
    let one = |from: u64| [1, 2, 6, 17, 36].map(|action| event(action, from + action as u64));
    let events = [one(0), one(60_000)].concat();
    let id = "r1".into();
    let spans = Bench::new(&vocabulary).spans(&Request { id, events });
    let summary = summary(&options(0), &[&[spans]]);
    assert_eq!((summary.requests, summary.counted), (2, 2));
    assert_eq!((summary.whole.min_ms, summary.whole.max_ms), (35.0, 35.0));
    assert_eq!(summary.chosen.len(), 2);
}

#[test]
fn requests_without_an_end_are_told_by_where_they_stop() {
    let usual = vec![10; 37];
    let mut requests: Vec<_> = (0..4)
        .map(|n| request(&format!("u{n}"), n * 100, &usual))
        .collect();
    requests.push(request("cut-1", 50, &usual[..7]));
    requests.push(request("cut-2", 60, &usual[..7]));
    requests.push(request("cut-3", 70, &usual[..12]));
    let summary = summary(&options(0), &[&requests]);
    assert_eq!(
        (summary.requests, summary.complete, summary.counted),
        (7, 4, 4)
    );
    let stop = |at: &str, count, example: &str| Stop {
        at: at.into(),
        count,
        example: example.into(),
    };
    assert_eq!(
        summary.incomplete,
        [
            stop("Enter state P running", 2, "cut-1"),
            stop("Prefill get new_blocks", 1, "cut-3"),
        ]
    );
    let started: u64 = summary.throughput.iter().map(|t| t.started).sum();
    let finished: u64 = summary.throughput.iter().map(|t| t.finished).sum();
    assert_eq!((started, finished), (7, 4));
}

#[test]
fn the_csv_is_that_of_the_old_script() {
    let requests = [request("r1", 0, &[1; 37])];
    let mut csv = Vec::new();
    summary(&options(0), &[&requests]).csv(&mut csv).unwrap();
    let csv = String::from_utf8(csv).unwrap();
    let lines: Vec<&str> = csv.split("\r\n").collect();
    assert_eq!(
        lines[..3],
        [
            "operation,count,avg_ms,min_ms,max_ms,p50_ms,p90_ms,p95_ms,p99_ms",
            "Trace for Omni Proxy,1,36.000000,36.000000,36.000000,36.000000,36.000000,36.000000,36.000000",
            "Process request,1,1.000000,1.000000,1.000000,1.000000,1.000000,1.000000,1.000000",
        ]
    );
    assert_eq!(lines.last(), Some(&""));
}

#[test]
fn a_day_of_requests_has_few_steps_of_throughput() {
    let usual = vec![10; 37];
    let requests: Vec<_> = (0..200)
        .map(|n| request(&format!("u{n}"), n * 432_000, &usual))
        .collect();
    let summary = summary(&options(0), &[&requests[..90], &requests[90..]]);
    assert_eq!(summary.throughput.len(), 48);
    assert!(summary.throughput.iter().all(|t| t.seconds == 1_800.0));
    let finished: u64 = summary.throughput.iter().map(|t| t.finished).sum();
    assert_eq!(finished, 200);
    assert_eq!(summary.throughput[5].avg_ttft_ms, Some(320.0));
}
