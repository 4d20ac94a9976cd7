//! How far two clocks can be apart at any time, by all messages between their hosts.

use super::ceiling::{Bin, Ceiling, Point, hull};
use super::fit::{Fit, MAX_DRIFT};

/// For this long a clock is taken to drift evenly.
const EVENLY: i64 = 900_000_000_000;
/// By how much a clock's drift may change in a second: 1 ppm in a quarter of an hour.
const WANDER: f64 = 1e-9;

/// The difference of two clocks over time, as bounds.
#[derive(Debug)]
pub(super) struct Link {
    windows: Vec<Window>,
    /// Stretches of time in which messages arrived before they were sent, whatever the
    /// clocks' difference.
    pub(super) contradictory: usize,
}

/// A stretch of time in which the difference is a line.
#[derive(Debug)]
struct Window {
    from: i64,
    to: i64,
    fit: Fit,
    /// What the line itself may be wrong by.
    wander: f64,
}

impl Link {
    /// `above` bounds the difference from above, `below` its negation.
    pub(super) fn new(above: Ceiling, below: Ceiling) -> Self {
        let (width, bins) = above.beside(below);
        let most = usize::try_from((EVENLY / width).max(1)).unwrap_or(1);
        let mut windows = Vec::new();
        let mut rest = &bins[..];
        while !rest.is_empty() {
            let first = times(&rest[..1]).0;
            let near = |bin: &Bin| times(std::slice::from_ref(bin)).1 - first <= EVENLY;
            let count = rest.iter().take(most).take_while(|b| near(b)).count();
            let (now, later) = rest.split_at(count.max(1));
            split(now, &mut windows);
            rest = later;
        }
        let is_odd = |w: &Window| w.fit.slack > w.wander;
        let contradictory = windows.iter().filter(|w| is_odd(w)).count();
        if contradictory < windows.len() {
            windows.retain(|w| !is_odd(w));
        }
        Self {
            windows,
            contradictory,
        }
    }

    /// The least and the greatest difference at `t`.
    pub(super) fn at(&self, t: i64) -> (f64, f64) {
        let next = self.windows.partition_point(|w| w.from <= t);
        let near = &self.windows[next.saturating_sub(2)..(next + 1).min(self.windows.len())];
        let mut own = None;
        let mut range = (f64::NEG_INFINITY, f64::INFINITY);
        for window in near {
            let here = window.at(t);
            range = (range.0.max(here.0), range.1.min(here.1));
            let distance = (window.from - t).max(t - window.to).max(0);
            if own.is_none_or(|(nearest, _)| distance < nearest) {
                own = Some((distance, here));
            }
        }
        match own {
            // A clock that was set between two windows: the nearer one counts.
            Some((_, here)) if range.0 > range.1 => here,
            _ => range,
        }
    }

    /// Times worth a look: where windows begin and end and in between, and the messages
    /// that bound the difference.
    pub(super) fn knots(&self) -> impl Iterator<Item = i64> {
        self.windows.iter().flat_map(|w| {
            let (from, length) = (w.from, w.to - w.from);
            let parts = (0..8).map(move |n| from + length / 8 * n);
            parts.chain([w.to]).chain(w.fit.times())
        })
    }
}

impl Window {
    fn at(&self, t: i64) -> (f64, f64) {
        let inside = t.clamp(self.from, self.to);
        let margin = self.wander + MAX_DRIFT * (t - inside).abs() as f64;
        (
            self.fit.least(inside) - margin,
            self.fit.most(inside) + margin,
        )
    }
}

/// Windows over these bins, each as long as one line will do.
fn split(bins: &[Bin], windows: &mut Vec<Window>) {
    let points = |of: fn(&Bin) -> &Vec<Point>| {
        let mut points: Vec<Point> = bins.iter().flat_map(of).copied().collect();
        hull(&mut points);
        points
    };
    let fit = Fit::new(&points(|b| &b.above), &points(|b| &b.below));
    let (from, to) = times(bins);
    let seconds = (to - from) as f64 / 1e9;
    // A parabola is nowhere farther from its chord than in the middle.
    let wander = WANDER * seconds * seconds / 8.0 * 1e9;
    if fit.slack > wander && bins.len() > 1 {
        let (first, second) = bins.split_at(bins.len() / 2);
        split(first, windows);
        split(second, windows);
        return;
    }
    windows.push(Window {
        from,
        to,
        fit,
        wander,
    });
}

/// First and last time of the points.
fn times(bins: &[Bin]) -> (i64, i64) {
    let all = || bins.iter().flat_map(|b| b.above.iter().chain(&b.below));
    let first = all().map(|p| p.t).min().unwrap_or(0);
    (first, all().map(|p| p.t).max().unwrap_or(first))
}
