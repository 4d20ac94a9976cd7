//! Simulated clusters, whose clocks are known.

use std::sync::Arc;

use omnitrace::Vocabulary;
use omnitrace::span::Span;
use omnitrace::vocabulary::ActionId;
use proptest::prelude::*;

use super::*;
use crate::assemble::Bench;
use crate::reader::{LoggedEvent, Request};
use omnitrace::span::Source;

const BASE: f64 = 1_795_334_645e9;
const MILLI: f64 = 1e6;
const SECOND: f64 = 1e9;

/// A clock that is ahead by so many nanoseconds at the beginning and drifts.
#[derive(Debug, Clone, Copy)]
struct Clock {
    ahead: f64,
    drift: f64,
}

impl Clock {
    const RIGHT: Self = Self {
        ahead: 0.0,
        drift: 0.0,
    };

    /// What it shows at a true time after the beginning.
    fn shows(self, time: f64) -> u64 {
        (BASE + time + self.ahead + self.drift * time) as u64
    }

    /// What it is ahead of another by when that one shows `time`.
    fn ahead_of(self, other: Self, time: u64) -> f64 {
        let truly = (time as f64 - BASE - other.ahead) / (1.0 + other.drift);
        self.ahead - other.ahead + (self.drift - other.drift) * truly
    }
}

/// A simple generator; the same numbers on every machine.
struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A delay of at least `least` nanoseconds, often little more, sometimes much.
    fn delay(&mut self, least: f64) -> f64 {
        least * (1.0 - 0.8 * (1.0 - self.share()).ln())
            + if self.share() < 0.05 {
                20.0 * least
            } else {
                0.0
            }
    }

    fn below(&mut self, limit: usize) -> usize {
        ((self.share() * limit as f64) as usize).min(limit - 1)
    }
}

/// The actions of one request that begins at a true time: number in the catalogue, host
/// and true time.
fn request(
    random: &mut Random,
    begin: f64,
    proxy: u32,
    prefill: u32,
    decode: u32,
) -> Vec<(u16, u32, f64)> {
    let mut at = begin;
    let mut actions = Vec::new();
    let mut then = |action: u16, host: u32, least: f64| {
        at += random.delay(least);
        actions.push((action, host, at));
    };
    let (network, work) = (0.1 * MILLI, 2.0 * MILLI);
    then(0, proxy, 0.01 * MILLI);
    then(1, proxy, 0.01 * MILLI);
    then(6, proxy, 0.5 * MILLI);
    then(7, prefill, network);
    then(12, prefill, work);
    then(14, prefill, work);
    then(16, prefill, 0.3 * MILLI);
    then(17, proxy, network);
    then(20, proxy, 0.2 * MILLI);
    then(21, decode, network);
    then(23, decode, 0.4 * MILLI);
    then(25, decode, work);
    then(33, prefill, network);
    then(26, decode, 0.1 * MILLI);
    then(28, decode, work);
    then(32, proxy, network);
    then(31, decode, 10.0 * work);
    then(36, proxy, network);
    actions
}

struct Cluster {
    clocks: Vec<Clock>,
    /// Hosts of each role: proxies, prefill and decode nodes.
    roles: [Vec<u32>; 3],
    requests: Vec<Vec<(u16, u32, f64)>>,
}

impl Cluster {
    fn new(clocks: &[Clock], roles: [Vec<u32>; 3], count: usize, seconds: f64, seed: u64) -> Self {
        let mut random = Random(seed);
        let requests = (0..count)
            .map(|_| {
                let begin = random.share() * seconds * SECOND;
                let one = |random: &mut Random, of: &[u32]| of[random.below(of.len())];
                let [proxy, prefill, decode] =
                    [0, 1, 2].map(|r: usize| one(&mut random, &roles[r]));
                request(&mut random, begin, proxy, prefill, decode)
            })
            .collect();
        Self {
            clocks: clocks.to_vec(),
            roles,
            requests,
        }
    }

    fn shown(&self, request: &[(u16, u32, f64)]) -> Vec<(ActionId, Host, u64)> {
        request
            .iter()
            .map(|(action, host, time)| {
                let time = self.clocks[*host as usize].shows(*time);
                (ActionId(*action), Host(*host), time)
            })
            .collect()
    }

    fn hosts(&self) -> Vec<HostInfo> {
        (0..self.clocks.len() as u32)
            .map(|host| HostInfo {
                name: format!("10.0.0.{host}"),
                rank: self
                    .roles
                    .iter()
                    .position(|r| r.contains(&host))
                    .map_or(9, |r| r as u16),
            })
            .collect()
    }

    fn repair(&self) -> Repair {
        let vocabulary = Vocabulary::omni_vllm();
        let mut samples = Samples::default();
        for request in &self.requests {
            samples.request(&vocabulary, self.shown(request));
        }
        samples.solve(self.hosts())
    }

    /// The moments of a request in repaired time.
    fn repaired(&self, repair: &Repair, request: &[(u16, u32, f64)]) -> Vec<(ActionId, Host, u64)> {
        let shown = self.shown(request).into_iter();
        shown
            .map(|(action, host, time)| (action, host, repair.time(host, time)))
            .collect()
    }

    /// By how many nanoseconds the worst message arrives before it is sent.
    fn worst(&self, repair: &Repair) -> u64 {
        self.too_early(repair, |_, _| 0)
    }

    /// The same beyond what the stated uncertainty of both clocks explains.
    fn unexplained(&self, repair: &Repair) -> u64 {
        self.too_early(repair, |host, time| {
            let estimate = repair.estimate(host, time);
            estimate.and_then(|e| e.uncertainty).unwrap_or(u64::MAX / 4)
        })
    }

    fn too_early(&self, repair: &Repair, allowed: impl Fn(Host, u64) -> u64) -> u64 {
        let vocabulary = Vocabulary::omni_vllm();
        let mut worst = 0;
        for request in &self.requests {
            let moments = self.repaired(repair, request);
            let of = |actions: &[ActionId]| {
                let mut known = actions
                    .iter()
                    .filter_map(|a| moments.iter().find(|m| m.0 == *a));
                known.next().map(|m| (m.2, allowed(m.1, m.2)))
            };
            for message in vocabulary.messages() {
                if let (Some(sent), Some(received)) = (of(&message.from), of(&message.to)) {
                    let latest = received.0 + message.slack + sent.1 + received.1;
                    worst = worst.max(sent.0.saturating_sub(latest));
                }
            }
        }
        worst
    }
}

fn off(ahead_ms: f64, ppm: f64) -> Clock {
    Clock {
        ahead: ahead_ms * MILLI,
        drift: ppm * 1e-6,
    }
}

#[test]
fn clocks_50_ms_off_and_drifting_by_20_ppm_are_found_within_their_uncertainty() {
    let clocks = [Clock::RIGHT, off(50.0, 20.0), off(-50.0, -20.0)];
    let cluster = Cluster::new(&clocks, [vec![0], vec![1], vec![2]], 3_000, 600.0, 1);
    let repair = cluster.repair();
    for second in 0..=600 {
        let time = clocks[0].shows(f64::from(second) * SECOND);
        for host in [1, 2] {
            let found = repair.estimate(Host(host), time).unwrap();
            let truth = clocks[host as usize].ahead_of(clocks[0], time);
            let uncertainty = found.uncertainty.unwrap() as f64;
            let error = (found.ahead as f64 - truth).abs();
            assert!(
                error <= uncertainty,
                "{host} at {second} s: {error} of {uncertainty}"
            );
            assert!(
                uncertainty < 0.7 * MILLI,
                "{host} at {second} s: {uncertainty}"
            );
        }
    }
    assert!(cluster.worst(&repair) <= 2, "{}", cluster.worst(&repair));
    let notes = repair.notes();
    assert_eq!(notes.len(), 2, "{notes:#?}");
    assert!(
        notes[0].starts_with("the clock of 10.0.0.1 is 56.0")
            && notes[0].contains(" ms ahead of that of 10.0.0.0, drifting by 20.0 ppm (± "),
        "{notes:#?}"
    );
    assert!(
        notes[1].contains(" ms behind that of 10.0.0.0, drifting by -20.0 ppm (± "),
        "{notes:#?}"
    );
}

/// The spans of a request of a cluster of one host for each role.
fn assembled(cluster: &Cluster, repair: &Repair, request: &[(u16, u32, f64)]) -> Vec<Span> {
    let vocabulary = Vocabulary::omni_vllm();
    let roles = ["proxy", "prefill", "decode"];
    let sources = [0, 1, 2].map(|host: usize| {
        Arc::new(Source {
            role: roles[host].into(),
            node: format!("10.0.0.{host}").as_str().into(),
        })
    });
    let mut events: Vec<LoggedEvent> = cluster
        .repaired(repair, request)
        .into_iter()
        .map(|(action, host, time)| LoggedEvent {
            action: Arc::clone(&vocabulary.action(action).name),
            time,
            source: Arc::clone(&sources[host.0 as usize]),
            occurrence: 0,
            extra: None,
        })
        .collect();
    events.sort_by_key(|e| e.time);
    let id = "one".into();
    Bench::new(&vocabulary).spans(&Request { id, events })
}

fn outside(spans: &[Span]) -> usize {
    let parent = |s: &Span| spans.iter().find(|p| Some(p.span_id) == s.parent_span_id);
    let is_out = |s: &&Span| parent(s).is_some_and(|p| s.start < p.start || s.end > p.end);
    spans.iter().filter(is_out).count()
}

#[test]
fn repaired_trees_nest_where_the_logs_are_50_ms_off() {
    let clocks = [Clock::RIGHT, off(50.0, 20.0), off(-50.0, -20.0)];
    let cluster = Cluster::new(&clocks, [vec![0], vec![1], vec![2]], 200, 60.0, 7);
    let (repair, as_is) = (cluster.repair(), Repair::default());
    for request in &cluster.requests {
        let mut tree = assembled(&cluster, &repair, request);
        assert_eq!(tree.len(), 13, "{tree:#?}");
        let roots = tree.iter().filter(|s| s.parent_span_id.is_none());
        assert_eq!(roots.count(), 1);
        assert_eq!(outside(&tree), 0);
        assert_eq!(nest(&mut tree), 0);

        let mut skewed = assembled(&cluster, &as_is, request);
        assert!(outside(&skewed) > 0);
        assert!(nest(&mut skewed) > 0);
        assert_eq!(outside(&skewed), 0);
        assert!(skewed.iter().all(|s| s.start <= s.end));
    }
}

#[test]
fn what_is_cut_off_is_said() {
    let cluster = Cluster::new(&[Clock::RIGHT; 3], [vec![0], vec![1], vec![2]], 1, 1.0, 7);
    let before = assembled(&cluster, &Repair::default(), &cluster.requests[0]);
    let mut spans = before.clone();
    let at = |name: &str| before.iter().position(|s| &*s.name == name).unwrap();
    let (call, prefill, wait) = (
        at("P running"),
        at("Prefill"),
        at("Add to running for prefill"),
    );
    spans[prefill].start = before[call].start - 3_000_000;
    spans[prefill].end = before[call].end + 2_000_000;
    spans[wait].start = before[call].start - 9_000_000;
    spans[wait].end = before[call].start - 5_000_000;
    assert_eq!(nest(&mut spans), 2);
    let cut = |span: &Span| -> Vec<(String, f64)> {
        let own = span.attributes.iter().filter(|a| a.key.contains(".clock."));
        own.map(|a| match a.value {
            omnitrace::Value::F64(seconds) => (a.key.to_string(), seconds),
            _ => panic!("{a:?}"),
        })
        .collect()
    };
    let extent = |span: &Span| (span.start, span.end);
    assert_eq!(extent(&spans[prefill]), extent(&before[call]));
    let (start, end) = (CUT_START.to_owned(), CUT_END.to_owned());
    assert_eq!(
        cut(&spans[prefill]),
        [(start.clone(), 0.003), (end.clone(), 0.002)]
    );
    // Wholly outside: a moment at the nearer end, and how far it was moved.
    assert_eq!(
        extent(&spans[wait]),
        (before[call].start, before[call].start)
    );
    assert_eq!(cut(&spans[wait]), [(start, 0.009), (end, -0.005)]);
}

#[test]
fn parents_in_a_circle_do_no_harm() {
    let cluster = Cluster::new(&[Clock::RIGHT; 3], [vec![0], vec![1], vec![2]], 1, 1.0, 7);
    let mut spans = assembled(&cluster, &Repair::default(), &cluster.requests[0]);
    let ids: Vec<_> = spans.iter().map(|s| s.span_id).collect();
    for (at, span) in spans.iter_mut().enumerate() {
        span.parent_span_id = Some(ids[(at + 1) % ids.len()]);
    }
    nest(&mut spans);
    assert!(spans.iter().all(|s| s.start <= s.end));
}

#[test]
fn clocks_that_agree_as_far_as_anybody_can_tell_are_left_alone() {
    let clocks = [Clock::RIGHT, off(0.05, 0.0), off(-0.05, 0.0)];
    let cluster = Cluster::new(&clocks, [vec![0], vec![1], vec![2]], 500, 60.0, 3);
    let repair = cluster.repair();
    assert!(!repair.moves());
    assert_eq!(repair.time(Host(1), 5), 5);
    let notes = repair.notes();
    assert_eq!(notes.len(), 1);
    assert!(
        notes[0]
            .starts_with("2 clocks agree with that of 10.0.0.0, as far as the messages tell (± "),
        "{notes:#?}"
    );
}

#[test]
fn a_clock_that_is_set_while_it_runs_is_followed() {
    let clocks = [Clock::RIGHT, off(0.0, 0.0), off(3_000.0, 0.0)];
    let mut cluster = Cluster::new(&clocks, [vec![0], vec![1], vec![1]], 2_000, 600.0, 5);
    // Host 1 is set forward by three seconds in the middle.
    for request in &mut cluster.requests {
        for moment in request
            .iter_mut()
            .filter(|m| m.1 == 1 && m.2 > 300.0 * SECOND)
        {
            moment.1 = 2;
        }
    }
    let vocabulary = Vocabulary::omni_vllm();
    let mut samples = Samples::default();
    for request in &cluster.requests {
        let shown = cluster.shown(request).into_iter();
        samples.request(&vocabulary, shown.map(|(a, h, t)| (a, Host(h.0.min(1)), t)));
    }
    let repair = samples.solve(cluster.hosts());
    for (second, truth) in [(10, 0.0), (250, 0.0), (350, 3.0), (590, 3.0)] {
        let time = (BASE + f64::from(second) * SECOND) as u64;
        let found = repair.estimate(Host(1), time).unwrap();
        let error = (found.ahead as f64 - truth * SECOND).abs();
        assert!(
            error <= found.uncertainty.unwrap() as f64,
            "at {second} s: {found:?}"
        );
        assert!(error < MILLI, "at {second} s: {found:?}");
    }
    let notes = repair.notes().join("\n");
    assert!(notes.contains("was it set while it ran?"), "{notes}");
}

#[test]
fn messages_that_went_one_way_only_move_a_clock_no_farther_than_they_ask() {
    let clocks = [Clock::RIGHT, off(-80.0, 0.0)];
    let mut cluster = Cluster::new(&clocks, [vec![0], vec![1], vec![1]], 100, 10.0, 9);
    for request in &mut cluster.requests {
        request.retain(|m| matches!(m.0, 6 | 7));
    }
    let repair = cluster.repair();
    let found = repair.estimate(Host(1), BASE as u64).unwrap();
    assert_eq!(found.uncertainty, None);
    assert!((-81e6..-79e6).contains(&(found.ahead as f64)), "{found:?}");
    assert_eq!(cluster.worst(&repair), 0);
}

#[test]
fn hosts_that_no_message_connects_are_not_moved() {
    let mut samples = Samples::default();
    let vocabulary = Vocabulary::omni_vllm();
    samples.request(
        &vocabulary,
        [(ActionId(7), Host(0), 5), (ActionId(16), Host(0), 9)],
    );
    let hosts = vec![HostInfo {
        name: "10.0.0.2".into(),
        rank: 1,
    }];
    let repair = samples.solve(hosts);
    assert_eq!(repair.estimate(Host(0), 5), None);
    assert_eq!(repair.time(Host(0), 5), 5);
    assert_eq!(repair.notes(), [""; 0]);
}

fn clock() -> impl Strategy<Value = Clock> {
    (-1e9..1e9, -100e-6..100e-6).prop_map(|(ahead, drift)| Clock { ahead, drift })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_cluster_is_repaired_within_what_is_stated(
        clocks in prop::collection::vec(clock(), 7),
        count in 1usize..400,
        seconds in 0.1f64..20_000.0,
        seed in any::<u64>(),
    ) {
        let roles = [vec![0, 1], vec![2, 3], vec![4, 5, 6]];
        let cluster = Cluster::new(&clocks, roles, count, seconds, seed);
        let repair = cluster.repair();
        for host in (0..7).map(Host) {
            let Some(reference) = repair.reference(host) else { continue };
            let (own, right) = (clocks[host.0 as usize], clocks[reference.0 as usize]);
            for step in 0..=20 {
                let time = right.shows(seconds * SECOND * f64::from(step) / 20.0);
                let found = repair.estimate(host, time).unwrap();
                let error = (found.ahead as f64 - own.ahead_of(right, time)).abs();
                let Some(uncertainty) = found.uncertainty else { continue };
                prop_assert!(
                    error <= uncertainty as f64 + 5_000.0,
                    "{:?} at {}/20: {} > {}", host, step, error, uncertainty
                );
            }
        }
        prop_assert!(cluster.unexplained(&repair) < 5_000, "{}", cluster.unexplained(&repair));
    }

    #[test]
    fn no_host_ever_sees_its_own_order_turned_round(
        clocks in prop::collection::vec(clock(), 3),
        count in 1usize..100,
        seed in any::<u64>(),
        wrong in 0usize..20,
    ) {
        let mut cluster = Cluster::new(&clocks, [vec![0], vec![1], vec![2]], count, 100.0, seed);
        // Some requests are nonsense.
        let mut random = Random(seed);
        for request in cluster.requests.iter_mut().take(wrong) {
            request.iter_mut().for_each(|m| m.2 = random.share() * 100.0 * SECOND);
        }
        let repair = cluster.repair();
        for host in 0..3u32 {
            let mut times: Vec<u64> = cluster
                .requests
                .iter()
                .flat_map(|r| cluster.shown(r))
                .filter(|m| m.1 == Host(host))
                .map(|m| m.2)
                .collect();
            times.sort_unstable();
            let repaired: Vec<u64> = times.iter().map(|t| repair.time(Host(host), *t)).collect();
            prop_assert!(repaired.is_sorted());
        }
    }

    #[test]
    fn threads_that_each_saw_a_part_know_the_same(
        seed in any::<u64>(), cut in 0usize..200,
    ) {
        let clocks = [Clock::RIGHT, off(50.0, 20.0), off(-50.0, -20.0)];
        let cluster = Cluster::new(&clocks, [vec![0], vec![1], vec![2]], 200, 60.0, seed);
        let vocabulary = Vocabulary::omni_vllm();
        let mut parts = [Samples::default(), Samples::default()];
        for (at, request) in cluster.requests.iter().enumerate() {
            parts[usize::from(at < cut)].request(&vocabulary, cluster.shown(request));
        }
        let [mut one, two] = parts;
        one.merge(two);
        let (merged, whole) = (one.solve(cluster.hosts()), cluster.repair());
        for second in 0..60 {
            let time = (BASE + f64::from(second) * SECOND) as u64;
            for host in [1, 2] {
                let (a, b) = (merged.time(Host(host), time), whole.time(Host(host), time));
                prop_assert!(a.abs_diff(b) < 1_000, "{} {}", a, b);
            }
        }
    }
}
