//! What happened when: requests over time, in few steps whatever the time.

use std::collections::BTreeMap;

/// Widths of a step, in nanoseconds; each is a multiple of the one before.
const WIDTHS: [u64; 11] = [
    100_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    10_000_000_000,
    60_000_000_000,
    300_000_000_000,
    1_800_000_000_000,
    3_600_000_000_000,
    21_600_000_000_000,
    86_400_000_000_000,
];
/// Steps; past that many they become wider.
const STEPS: usize = 60;

/// Requests by when they began and ended.
#[derive(Debug, Clone, Default)]
pub(super) struct Timeline {
    width: usize,
    steps: BTreeMap<u64, Step>,
}

/// One step of time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Step {
    pub(super) started: u64,
    /// Complete requests that ended in it, and their latencies' sum in nanoseconds.
    pub(super) finished: u64,
    pub(super) latency: u128,
    /// Those of them with a first token, and the sum of the times to it.
    pub(super) with_first_token: u64,
    pub(super) first_token: u128,
}

impl Step {
    fn merge(&mut self, other: &Self) {
        self.started += other.started;
        self.finished += other.finished;
        self.latency += other.latency;
        self.with_first_token += other.with_first_token;
        self.first_token += other.first_token;
    }
}

impl Timeline {
    pub(super) fn add(&mut self, time: u64, step: Step) {
        self.steps
            .entry(time / WIDTHS[self.width])
            .or_default()
            .merge(&step);
        self.fit();
    }

    pub(super) fn merge(&mut self, mut other: Self) {
        let width = self.width.max(other.width);
        self.widen(width);
        other.widen(width);
        for (at, step) in &other.steps {
            self.steps.entry(*at).or_default().merge(step);
        }
        self.fit();
    }

    /// Width of a step in nanoseconds, and all steps from the first to the last by their
    /// beginning, in nanoseconds since 1970; those in which nothing happened included, unless
    /// one wrong date makes them too many.
    pub(super) fn steps(&self) -> (u64, Vec<(u64, Step)>) {
        let width = WIDTHS[self.width];
        let ends = self.steps.keys().next().zip(self.steps.keys().next_back());
        let all = ends.map(|(first, last)| {
            let step = |at| (at * width, self.steps.get(&at).copied().unwrap_or_default());
            if last - first > 10 * STEPS as u64 {
                return self.steps.keys().copied().map(step).collect();
            }
            (*first..=*last).map(step).collect()
        });
        (width, all.unwrap_or_default())
    }

    fn fit(&mut self) {
        let spread =
            |steps: &BTreeMap<u64, Step>| match (steps.keys().next(), steps.keys().next_back()) {
                (Some(first), Some(last)) => last - first + 1,
                _ => 0,
            };
        // At the widest there is a step a day, however many.
        while spread(&self.steps) > STEPS as u64 && self.width + 1 < WIDTHS.len() {
            self.widen(self.width + 1);
        }
    }

    fn widen(&mut self, width: usize) {
        if width <= self.width {
            return;
        }
        let by = WIDTHS[width] / WIDTHS[self.width];
        self.width = width;
        for (at, step) in std::mem::take(&mut self.steps) {
            self.steps.entry(at / by).or_default().merge(&step);
        }
    }
}
