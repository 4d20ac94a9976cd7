//! Many requests in numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use omnitrace::Vocabulary;
use omnitrace::span::Span;
use omnitrace::vocabulary::{ActionId, PhaseId, RoleId};

use super::digest::{CallPiece, Digest, LatencyPiece, Piece, Shape, Way};
use super::distribution::Distribution;
use super::sources::{Node, Sources};
use super::summary::{Raw, Summary};
use super::timeline::{Step, Timeline};

/// What is counted and shown.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Complete requests left out at each end, by the time of their start.
    pub skip: usize,
    /// How many of the slowest requests are shown.
    pub slowest: usize,
    /// Canonical ids of requests to show, whatever they took.
    pub only: BTreeSet<String>,
}

/// What is known of the requests so far. One for each thread, then [`Statistics::merge`].
#[derive(Debug)]
pub struct Statistics {
    options: Arc<Options>,
    shape: Shape,
    sources: Sources,
    /// Requests by the roles that they have passed through from entry to end.
    groups: BTreeMap<Vec<RoleId>, Group>,
    /// By the last action of a request without an end.
    stops: Examples<Option<ActionId>>,
    /// By a phase that would end before it begins.
    contradictory: Examples<PhaseId>,
    timeline: Timeline,
    /// Those that were asked for.
    chosen: Vec<Digest>,
    requests: u64,
}

/// How many requests have something, and one of them (the first by id).
#[derive(Debug)]
pub(super) struct Examples<K>(pub(super) BTreeMap<K, (u64, Arc<str>)>);

impl<K> Default for Examples<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Examples<K> {
    fn add(&mut self, key: K, count: u64, example: Arc<str>) {
        let of = self.0.entry(key);
        let of = of.or_insert_with(|| (0, Arc::clone(&example)));
        of.0 += count;
        if example < of.1 {
            of.1 = example;
        }
    }

    fn merge(&mut self, other: Self) {
        for (key, (count, example)) in other.0 {
            self.add(key, count, example);
        }
    }
}

/// Requests that have passed through the same roles.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) numbers: Totals,
    /// The earliest and the latest, which may have to be left out, by start and id.
    head: BTreeMap<(u64, Arc<str>), Digest>,
    tail: BTreeMap<(u64, Arc<str>), Digest>,
    pub(super) slowest: Vec<Digest>,
    count: u64,
    example: Option<Arc<str>>,
}

/// Sums and distributions over requests.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) requests: u64,
    /// By phase and node.
    pub(super) phases: Vec<Vec<OfPhase>>,
    pub(super) calls: BTreeMap<(Node, Node, Way), Distribution>,
    pub(super) latencies: Vec<(Arc<str>, RoleId, Distribution)>,
    pub(super) path: BTreeMap<PhaseId, u128>,
    pub(super) whole: Distribution,
}

/// One phase on one node.
#[derive(Debug)]
pub(super) struct OfPhase {
    pub(super) durations: Distribution,
    /// Start of the earliest.
    pub(super) first: u64,
}

impl Default for OfPhase {
    fn default() -> Self {
        Self {
            durations: Distribution::default(),
            first: u64::MAX,
        }
    }
}

impl OfPhase {
    pub(super) fn merge(&mut self, other: Self) {
        self.durations.merge(other.durations);
        self.first = self.first.min(other.first);
    }
}

impl Statistics {
    /// Of nothing yet.
    pub fn new(vocabulary: &Arc<Vocabulary>, options: Arc<Options>) -> Self {
        Self {
            options,
            shape: Shape::new(vocabulary),
            sources: Sources::default(),
            groups: BTreeMap::new(),
            stops: Examples::default(),
            contradictory: Examples::default(),
            timeline: Timeline::default(),
            chosen: Vec::new(),
            requests: 0,
        }
    }

    /// Adds all spans of one request id. Where a client has sent it several times, these
    /// are as many requests.
    pub fn add(&mut self, spans: &[Span]) {
        match self.shape.split(spans) {
            None => self.add_one(spans),
            Some(requests) => requests.iter().for_each(|spans| self.add_one(spans)),
        }
    }

    /// Notes the phases of a request that would end before they begin.
    pub fn note_contradictory(&mut self, id: &str, phases: &[PhaseId]) {
        for phase in phases {
            self.contradictory.add(*phase, 1, id.into());
        }
    }

    fn add_one(&mut self, spans: &[Span]) {
        let Some(digest) = Digest::new(&self.shape, &mut self.sources, spans) else {
            return;
        };
        self.requests += 1;
        if self.options.only.contains(&*digest.id) {
            self.chosen.push(digest.clone());
        }
        let started = Step {
            started: 1,
            ..Step::default()
        };
        self.timeline.add(digest.start, started);
        if digest.roles.is_empty() {
            self.stops.add(digest.last, 1, digest.id);
            return;
        }
        let first_token = digest.first_token();
        let finished = Step {
            finished: 1,
            latency: digest.duration().into(),
            with_first_token: u64::from(first_token.is_some()),
            first_token: first_token.unwrap_or(0).into(),
            ..Step::default()
        };
        self.timeline.add(digest.end, finished);
        // A lookup by slice: most requests have the roles of one before.
        if !self.groups.contains_key(&digest.roles[..]) {
            self.groups.insert(digest.roles.clone(), Group::default());
        }
        if let Some(group) = self.groups.get_mut(&digest.roles[..]) {
            group.add(&self.options, digest);
        }
    }

    /// Adds what another thread has counted.
    pub fn merge(&mut self, other: Self) {
        let nodes = self.sources.absorb(&other.sources);
        self.requests += other.requests;
        self.chosen.extend(other.chosen);
        self.timeline.merge(other.timeline);
        self.stops.merge(other.stops);
        self.contradictory.merge(other.contradictory);
        for (roles, mut group) in other.groups {
            group.renumber(&nodes);
            let own = self.groups.entry(roles).or_default();
            own.merge(&self.options, group);
        }
    }

    /// What there is to say of them all.
    pub fn finish(mut self) -> Summary {
        let usual = self.usual();
        let mut whole = Group::default();
        let mut partial = Vec::new();
        for (roles, group) in std::mem::take(&mut self.groups) {
            if usual.iter().all(|role| roles.contains(role)) {
                whole.merge(&self.options, group);
            } else {
                let missing = usual
                    .iter()
                    .filter(|r| !roles.contains(r))
                    .copied()
                    .collect();
                partial.push((missing, group.count, group.example));
            }
        }
        let skipped = whole.settle(&self.options);
        Raw {
            vocabulary: &self.shape.vocabulary,
            sources: &self.sources,
            requests: self.requests,
            complete: whole.count,
            skipped,
            totals: whole.numbers,
            slowest: whole.slowest,
            chosen: self.chosen,
            stops: self.stops,
            contradictory: self.contradictory,
            partial,
            timeline: self.timeline,
        }
        .summary()
    }

    /// The roles that most requests pass through, as [`super::complete`] has it: logs need
    /// not come from every node.
    fn usual(&self) -> Vec<RoleId> {
        let whole: u64 = self.groups.values().map(|g| g.count).sum();
        let mut counts: BTreeMap<RoleId, u64> = BTreeMap::new();
        for (roles, group) in &self.groups {
            for role in roles {
                *counts.entry(*role).or_default() += group.count;
            }
        }
        let mut usual: Vec<RoleId> = Vec::new();
        usual.extend(
            counts
                .iter()
                .filter(|(_, n)| 2 * **n > whole)
                .map(|(r, _)| *r),
        );
        usual
    }
}

impl Group {
    fn add(&mut self, options: &Options, digest: Digest) {
        self.count += 1;
        let id = || Arc::clone(&digest.id);
        self.example = Some(self.example.take().map_or_else(id, |known| known.min(id())));
        self.hold(options, digest);
    }

    /// Counts the digest, unless it may have to be left out for being early or late: then
    /// another that no longer may is counted.
    fn hold(&mut self, options: &Options, digest: Digest) {
        if options.skip == 0 {
            return self.count(options, digest);
        }
        let key = |d: &Digest| (d.start, Arc::clone(&d.id));
        self.head.insert(key(&digest), digest);
        if self.head.len() <= options.skip {
            return;
        }
        let Some((key, digest)) = self.head.pop_last() else {
            return;
        };
        self.tail.insert(key, digest);
        if self.tail.len() > options.skip
            && let Some((_, digest)) = self.tail.pop_first()
        {
            self.count(options, digest);
        }
    }

    fn count(&mut self, options: &Options, digest: Digest) {
        self.numbers.add(&digest);
        let shortest = self.slowest.last().map_or(0, Digest::duration);
        if self.slowest.len() < options.slowest || digest.duration() >= shortest {
            self.slowest.push(digest);
            self.keep_slowest(options);
        }
    }

    fn keep_slowest(&mut self, options: &Options) {
        let order = |d: &Digest| (std::cmp::Reverse(d.duration()), d.start, Arc::clone(&d.id));
        self.slowest.sort_by_cached_key(order);
        self.slowest.truncate(options.slowest);
    }

    fn renumber(&mut self, nodes: &[Node]) {
        let held = self.head.values_mut().chain(self.tail.values_mut());
        held.chain(&mut self.slowest)
            .for_each(|d| d.renumber(nodes));
        self.numbers.renumber(nodes);
    }

    fn merge(&mut self, options: &Options, other: Self) {
        self.count += other.count;
        let examples = self.example.take().into_iter().chain(other.example);
        self.example = examples.min();
        self.numbers.merge(other.numbers);
        self.slowest.extend(other.slowest);
        self.keep_slowest(options);
        for digest in other.head.into_values().chain(other.tail.into_values()) {
            self.hold(options, digest);
        }
    }

    /// After the last request: leaves out the first and the last, or nothing where nothing
    /// would remain. Returns how many at each end.
    fn settle(&mut self, options: &Options) -> usize {
        if self.count > 2 * options.skip as u64 {
            return options.skip;
        }
        let held = std::mem::take(&mut self.head).into_values();
        let held: Vec<Digest> = held
            .chain(std::mem::take(&mut self.tail).into_values())
            .collect();
        for digest in held {
            self.count(options, digest);
        }
        0
    }
}

impl Totals {
    fn add(&mut self, digest: &Digest) {
        self.requests += 1;
        self.whole.add(digest.duration());
        for Piece {
            phase,
            node,
            start,
            duration,
        } in &digest.spans
        {
            let of = self.phase(*phase, *node);
            of.durations.add(*duration);
            of.first = of.first.min(*start);
        }
        for CallPiece {
            from,
            to,
            what,
            duration,
        } in &digest.calls
        {
            let key = (*from, *to, *what);
            self.calls.entry(key).or_default().add(*duration);
        }
        for LatencyPiece { key, role, nanos } in &digest.latencies {
            self.latency(key, *role).add(*nanos);
        }
        for (phase, nanos) in &digest.path {
            *self.path.entry(*phase).or_default() += u128::from(*nanos);
        }
    }

    fn phase(&mut self, phase: PhaseId, node: Node) -> &mut OfPhase {
        let at = usize::from(phase.0);
        if self.phases.len() <= at {
            self.phases.resize_with(at + 1, Vec::new);
        }
        let nodes = &mut self.phases[at];
        if nodes.len() <= node.index() {
            nodes.resize_with(node.index() + 1, OfPhase::default);
        }
        &mut nodes[node.index()]
    }

    fn latency(&mut self, key: &Arc<str>, role: RoleId) -> &mut Distribution {
        let is = |(k, r, _): &(Arc<str>, RoleId, Distribution)| *r == role && k == key;
        let known = self.latencies.iter().position(is).unwrap_or_else(|| {
            let none = Distribution::default();
            self.latencies.push((Arc::clone(key), role, none));
            self.latencies.len() - 1
        });
        &mut self.latencies[known].2
    }

    /// What the other has is freed on the way.
    fn merge(&mut self, other: Self) {
        self.requests += other.requests;
        self.whole.merge(other.whole);
        for (phase, nodes) in (0u16..).map(PhaseId).zip(other.phases) {
            for (node, of) in Node::all().zip(nodes) {
                if of.durations.count() > 0 {
                    self.phase(phase, node).merge(of);
                }
            }
        }
        for (key, of) in other.calls {
            self.calls.entry(key).or_default().merge(of);
        }
        for (key, role, of) in other.latencies {
            self.latency(&key, role).merge(of);
        }
        for (phase, nanos) in other.path {
            *self.path.entry(phase).or_default() += nanos;
        }
    }

    fn renumber(&mut self, nodes: &[Node]) {
        for own in &mut self.phases {
            let old = std::mem::take(own);
            for (at, of) in old.into_iter().enumerate() {
                let node = nodes[at].index();
                if own.len() <= node {
                    own.resize_with(node + 1, OfPhase::default);
                }
                own[node] = of;
            }
        }
        let renumbered = std::mem::take(&mut self.calls).into_iter();
        self.calls = renumbered
            .map(|((from, to, what), of)| ((nodes[from.index()], nodes[to.index()], what), of))
            .collect();
    }
}
