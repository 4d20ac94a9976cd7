//! What there is to say of many requests, ready to be shown.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::Arc;

use omnitrace::Vocabulary;
use omnitrace::span::Source;
use omnitrace::vocabulary::{ActionId, PhaseId, RoleId};
use serde::Serialize;

use super::digest::{Digest, FIRST_TOKEN, PER_TOKEN, Way};
use super::distribution::{Distribution, Numbers};
use super::population::{Examples, OfPhase, Totals};
use super::sources::{Node, Sources};
use super::timeline::Timeline;

/// [`Numbers`] in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[allow(missing_docs)] // as there
pub struct RowMillis {
    pub count: u64,
    pub avg_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
}

impl From<Numbers> for RowMillis {
    fn from(of: Numbers) -> Self {
        Self {
            count: of.count,
            avg_ms: of.average / 1e6,
            min_ms: of.min / 1e6,
            max_ms: of.max / 1e6,
            p50_ms: of.p50 / 1e6,
            p90_ms: of.p90 / 1e6,
            p95_ms: of.p95 / 1e6,
            p99_ms: of.p99 / 1e6,
        }
    }
}

/// All of it. Unless said otherwise over the complete requests that count.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Requests seen, complete or not.
    pub requests: u64,
    /// Those that have passed through every role that most pass through.
    pub complete: u64,
    /// Those of them that count.
    pub counted: u64,
    /// Complete requests left out at each end; fewer than asked for where none would remain.
    pub skipped_at_each_end: usize,
    /// From the first start to the last end of a request.
    pub whole: RowMillis,
    /// What the nodes measured of a request, such as the time to the first token.
    pub latencies: Vec<Latency>,
    /// Phases in the order of the tree.
    pub phases: Vec<Phase>,
    /// Pairs of nodes.
    pub calls: Vec<Call>,
    /// All requests over time.
    pub throughput: Vec<Throughput>,
    /// The longest requests, the longest first.
    pub slowest: Vec<Request>,
    /// The requests that were asked for.
    pub chosen: Vec<Request>,
    /// Requests that did not come to their end.
    pub incomplete: Vec<Stop>,
    /// Requests that are whole as far as they go, and lack what most have.
    pub partial: Vec<Stop>,
    /// Phases that would end before they begin, in all requests: no phase counts them.
    pub contradictory: Vec<Stop>,
}

/// A measure of one role.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Latency {
    /// `TTFT`, `TPOT`, or the attribute's own name.
    pub name: String,
    /// The role that measured it.
    pub role: String,
    /// Its numbers.
    #[serde(flatten)]
    pub numbers: RowMillis,
}

/// One phase on all nodes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub role: String,
    /// Phases above it in the tree.
    pub depth: usize,
    /// Its share, from 0 to 1, of all requests' critical paths, its children's left out.
    pub critical_path: f64,
    /// Nanoseconds since 1970 at which the first one began.
    pub first_start: u64,
    /// Its numbers; every try counts.
    #[serde(flatten)]
    pub numbers: RowMillis,
    /// The same on each node.
    pub nodes: Vec<PhaseOnNode>,
}

/// One phase on one node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseOnNode {
    /// The node's address; empty where its log does not say.
    pub node: String,
    /// Its numbers.
    #[serde(flatten)]
    pub numbers: RowMillis,
}

/// What one node had to do with another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Call {
    /// Role and address of the node that called, or gave.
    pub from: String,
    /// Role and address of the node that was called, or took.
    pub to: String,
    /// The phase; `… (between)` is the part of a call that the callee did not spend.
    pub what: String,
    /// Its numbers.
    #[serde(flatten)]
    pub numbers: RowMillis,
}

/// One step of time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Throughput {
    /// Its beginning, seconds since 1970.
    pub time: f64,
    /// Its length in seconds.
    pub seconds: f64,
    /// Requests that began.
    pub started: u64,
    /// Requests that came to their end.
    pub finished: u64,
    /// Those for each second.
    pub finished_per_second: f64,
    /// Their average latency.
    pub avg_ms: Option<f64>,
    /// Their average time to the first token.
    pub avg_ttft_ms: Option<f64>,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Request {
    /// Canonical id.
    pub id: String,
    /// Its trace.
    pub trace_id: String,
    /// Seconds since 1970.
    pub start: f64,
    /// From its first start to its last end.
    pub duration_ms: f64,
    /// Time to its first token.
    pub ttft_ms: Option<f64>,
    /// Its critical path, what exceeds the average by the most first; empty for one
    /// without an end.
    pub path: Vec<OnPath>,
}

/// A phase on a critical path.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OnPath {
    /// The phase.
    pub phase: String,
    /// What the request waited for it, its children's time left out.
    pub ms: f64,
    /// The average of all requests that count.
    pub avg_ms: f64,
}

/// Requests that lack something, or have what cannot be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stop {
    /// The last action, the roles that are missing, or the phase.
    pub at: String,
    /// How many requests.
    pub count: u64,
    /// One of them.
    pub example: String,
}

/// What a [`Summary`] is made of.
pub(super) struct Raw<'a> {
    pub(super) vocabulary: &'a Vocabulary,
    pub(super) sources: &'a Sources,
    pub(super) requests: u64,
    pub(super) complete: u64,
    pub(super) skipped: usize,
    pub(super) totals: Totals,
    pub(super) slowest: Vec<Digest>,
    pub(super) chosen: Vec<Digest>,
    pub(super) stops: Examples<Option<ActionId>>,
    pub(super) contradictory: Examples<PhaseId>,
    pub(super) partial: Vec<(Vec<RoleId>, u64, Option<Arc<str>>)>,
    pub(super) timeline: Timeline,
}

impl Raw<'_> {
    pub(super) fn summary(mut self) -> Summary {
        let mut chosen: Vec<Request> = self.chosen.iter().map(|d| self.request(d)).collect();
        chosen.sort_by(|a, b| a.start.total_cmp(&b.start).then_with(|| a.id.cmp(&b.id)));
        Summary {
            requests: self.requests,
            complete: self.complete,
            counted: self.totals.requests,
            skipped_at_each_end: self.skipped,
            slowest: self.slowest.iter().map(|d| self.request(d)).collect(),
            chosen,
            whole: self.totals.whole.numbers().into(),
            latencies: self.latencies(),
            throughput: self.throughput(),
            incomplete: self.incomplete(),
            partial: self.partial(),
            contradictory: stops(&self.contradictory, |phase| self.phase_name(*phase)),
            calls: self.calls(),
            phases: self.phases(),
        }
    }

    fn phase_name(&self, phase: PhaseId) -> String {
        self.vocabulary.phase(phase).name.to_string()
    }

    fn latencies(&mut self) -> Vec<Latency> {
        let mut sorted = std::mem::take(&mut self.totals.latencies);
        let rank = |key: &str| match key {
            FIRST_TOKEN => 0,
            PER_TOKEN => 1,
            _ => 2,
        };
        sorted.sort_by(|(a, r, _), (b, s, _)| (rank(a), a, r).cmp(&(rank(b), b, s)));
        let row = |(key, role, mut of): (Arc<str>, RoleId, Distribution)| Latency {
            name: match &*key {
                FIRST_TOKEN => "TTFT".to_owned(),
                PER_TOKEN => "TPOT".to_owned(),
                other => other.to_owned(),
            },
            role: self.vocabulary.role(role).name.to_string(),
            numbers: of.numbers().into(),
        };
        sorted.into_iter().map(row).collect()
    }

    /// Each phase's durations are freed when it is done with.
    fn phases(&mut self) -> Vec<Phase> {
        let on_path: u128 = self.totals.path.values().sum();
        let order = self.tree();
        let place = |phase: &PhaseId| order.iter().position(|p| p == phase);
        let mut phases: Vec<(PhaseId, Vec<OfPhase>)> = (0u16..)
            .map(PhaseId)
            .zip(std::mem::take(&mut self.totals.phases))
            .collect();
        phases.sort_by_key(|(phase, _)| place(phase));
        let mut rows = Vec::new();
        for (phase, of) in phases {
            let mut nodes: BTreeMap<Arc<str>, OfPhase> = BTreeMap::new();
            let used = Node::all()
                .zip(of)
                .filter(|(_, of)| of.durations.count() > 0);
            for (node, of) in used {
                let name = Arc::clone(&self.sources.get(node).node);
                nodes.entry(name).or_default().merge(of);
            }
            let mut all = OfPhase::default();
            let mut on_nodes = Vec::new();
            for (node, mut of) in nodes {
                on_nodes.push(PhaseOnNode {
                    node: node.to_string(),
                    numbers: of.durations.numbers().into(),
                });
                all.merge(of);
            }
            if on_nodes.is_empty() {
                continue;
            }
            let definition = self.vocabulary.phase(phase);
            let own = self.totals.path.get(&phase).copied().unwrap_or(0);
            rows.push(Phase {
                name: definition.name.to_string(),
                role: self.vocabulary.role(definition.role).name.to_string(),
                depth: definition.depth,
                critical_path: own as f64 / on_path.max(1) as f64,
                first_start: all.first,
                numbers: all.durations.numbers().into(),
                nodes: on_nodes,
            });
        }
        rows
    }

    /// All phases, each before its children.
    fn tree(&self) -> Vec<PhaseId> {
        let mut order = Vec::new();
        let mut next: Vec<PhaseId> = self.below(None);
        while let Some(phase) = next.pop() {
            order.push(phase);
            next.extend(self.below(Some(phase)));
        }
        order
    }

    /// The phases under one, the last first.
    fn below(&self, parent: Option<PhaseId>) -> Vec<PhaseId> {
        let phases = self.vocabulary.phases();
        let own = phases.filter(|(_, p)| p.parent == parent);
        let mut own: Vec<PhaseId> = own.map(|(id, _)| id).collect();
        own.reverse();
        own
    }

    fn calls(&mut self) -> Vec<Call> {
        let calls = std::mem::take(&mut self.totals.calls);
        let source = |node: Node| self.sources.get(node);
        let mut sorted: Vec<_> = calls.into_iter().collect();
        sorted.sort_by(|((a, b, what), _), ((c, d, other), _)| {
            (source(*a), source(*b), what).cmp(&(source(*c), source(*d), other))
        });
        let row = |((from, to, what), mut of): ((Node, Node, Way), Distribution)| Call {
            from: node(source(from)),
            to: node(source(to)),
            what: match what {
                Way::Call(phase) | Way::Linked(phase) => self.phase_name(phase),
                Way::Between(phase) => format!("{} (between)", self.phase_name(phase)),
            },
            numbers: of.numbers().into(),
        };
        sorted.into_iter().map(row).collect()
    }

    fn throughput(&self) -> Vec<Throughput> {
        let (width, steps) = self.timeline.steps();
        let seconds = width as f64 / 1e9;
        let average = |sum: u128, of: u64| (of > 0).then(|| sum as f64 / of as f64 / 1e6);
        steps
            .into_iter()
            .map(|(time, step)| Throughput {
                time: time as f64 / 1e9,
                seconds,
                started: step.started,
                finished: step.finished,
                finished_per_second: step.finished as f64 / seconds,
                avg_ms: average(step.latency, step.finished),
                avg_ttft_ms: average(step.first_token, step.with_first_token),
            })
            .collect()
    }

    fn request(&self, digest: &Digest) -> Request {
        let counted = self.totals.requests.max(1) as f64;
        let mut path: Vec<OnPath> = (digest.path.iter())
            .map(|(phase, nanos)| OnPath {
                phase: self.phase_name(*phase),
                ms: *nanos as f64 / 1e6,
                avg_ms: self.totals.path.get(phase).copied().unwrap_or(0) as f64 / counted / 1e6,
            })
            .collect();
        let excess = |p: &OnPath| p.ms - p.avg_ms;
        path.sort_by(|a, b| excess(b).total_cmp(&excess(a)));
        Request {
            id: digest.id.to_string(),
            trace_id: digest.trace_id.to_string(),
            start: digest.start as f64 / 1e9,
            duration_ms: digest.duration() as f64 / 1e6,
            ttft_ms: digest.first_token().map(|n| n as f64 / 1e6),
            path,
        }
    }

    fn incomplete(&self) -> Vec<Stop> {
        stops(&self.stops, |last| match last {
            Some(last) => self.vocabulary.action(*last).name.to_string(),
            None => "no action".to_owned(),
        })
    }

    fn partial(&self) -> Vec<Stop> {
        let mut by_roles: BTreeMap<String, Stop> = BTreeMap::new();
        for (missing, count, example) in &self.partial {
            let missing: BTreeSet<&str> = missing
                .iter()
                .map(|role| &*self.vocabulary.role(*role).name)
                .collect();
            let at = missing.into_iter().collect::<Vec<_>>().join(", ");
            let example = example.as_deref().unwrap_or_default();
            let stop = by_roles.entry(at.clone()).or_insert(Stop {
                at,
                count: 0,
                example: example.to_owned(),
            });
            stop.count += count;
        }
        by_roles.into_values().collect()
    }
}

/// The most frequent first.
fn stops<K>(of: &Examples<K>, name: impl Fn(&K) -> String) -> Vec<Stop> {
    let stop = |(key, (count, example)): (&K, &(u64, Arc<str>))| Stop {
        at: name(key),
        count: *count,
        example: example.to_string(),
    };
    let mut stops: Vec<Stop> = of.0.iter().map(stop).collect();
    stops.sort_by_key(|s| std::cmp::Reverse(s.count));
    stops
}

/// A node as a person knows it.
fn node(source: &Source) -> String {
    if source.node.is_empty() {
        source.role.to_string()
    } else {
        format!("{} {}", source.role, source.node)
    }
}

impl Summary {
    /// Writes the phases as `analyze_jaeger_all_spans_to_csv.py` did: its columns, six
    /// decimals, CRLF, the rows by the earliest start and then by name.
    pub fn csv(&self, out: &mut impl Write) -> io::Result<()> {
        write!(
            out,
            "operation,count,avg_ms,min_ms,max_ms,p50_ms,p90_ms,p95_ms,p99_ms\r\n"
        )?;
        let mut phases: Vec<&Phase> = self.phases.iter().collect();
        phases.sort_by_key(|p| (p.first_start, &p.name));
        for phase in phases {
            let n = &phase.numbers;
            write!(out, "{},{}", quoted(&phase.name), n.count)?;
            for value in [
                n.avg_ms, n.min_ms, n.max_ms, n.p50_ms, n.p90_ms, n.p95_ms, n.p99_ms,
            ] {
                write!(out, ",{value:.6}")?;
            }
            write!(out, "\r\n")?;
        }
        Ok(())
    }
}

/// A CSV field, in quotes where it must be.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
