//! Every host's clock against one of them, so that no message arrives before it was sent.
//!
//! At a given time each link says `least <= b - a <= most`. The tightest bounds of a host
//! against the reference are the shortest paths there and back in the graph of those
//! differences; and the middles of such bounds keep every single bound: with
//! `most(r,c) <= most(r,b) + w(b,c)` and `-least(r,b) <= w(b,c) - least(r,c)`, half the sum
//! says that the middles of b and c are no more than `w(b,c)` apart.

use std::collections::{BTreeMap, VecDeque};

use super::ceiling::Ceiling;
use super::fit::MAX_DRIFT;
use super::link::Link;

/// A clock that needs less than this, in nanoseconds, is left alone: stamps are rounded.
const ROUNDING: f64 = 2_000.0;
/// Bounds farther apart than this say too little for their middle to mean anything.
const WIDE: f64 = 40e6;
/// So far inside such bounds is what they ask for.
const INSIDE: f64 = 1e6;
/// No repaired clock runs faster or slower than this, or time would stand still.
const STEEPEST: f64 = 0.5;
/// Clocks that are looked at one after the other, each with the ones before: more would
/// take too long.
const TOGETHER: usize = 64;
/// Times at which the clocks are compared.
const KNOTS: usize = 1_024;

/// What a host is chosen by as the reference.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weight {
    /// The least is preferred.
    pub(super) rank: u16,
    /// The greatest is preferred.
    pub(super) messages: u64,
}

/// One host's clock against its reference's.
#[derive(Debug, Clone, Default)]
pub(super) struct Course {
    /// The host whose clock is taken for right; none if no message says anything.
    pub(super) reference: Option<usize>,
    /// This is taken off each time first.
    coarse: i64,
    knots: Vec<i64>,
    /// At each knot, what the clock is ahead by beyond `coarse`.
    ahead: Vec<f64>,
    uncertainty: Vec<f64>,
    pub(super) moved: bool,
    /// Links of this host with messages that no clock explains.
    pub(super) contradictory: usize,
}

/// Bounds of links in `ceilings[(a, b)]` are of b's clock minus a's, at times of the
/// clock of the smaller number.
pub(super) fn solve(
    mut ceilings: BTreeMap<(usize, usize), Ceiling>,
    weights: &[Weight],
) -> Vec<Course> {
    let mut pairs: BTreeMap<(usize, usize), (Ceiling, Ceiling)> = BTreeMap::new();
    for ((a, b), ceiling) in std::mem::take(&mut ceilings) {
        let pair = pairs.entry((a.min(b), a.max(b))).or_default();
        if a < b {
            pair.0 = ceiling;
        } else {
            pair.1 = ceiling;
        }
    }
    let rough: Vec<(usize, usize, i64)> = pairs
        .iter()
        .filter_map(|((a, b), (above, below))| {
            let rough = match (above.least(), below.least()) {
                (Some(above), Some(below)) => above / 2 - below / 2,
                (Some(above), None) => above,
                (None, below) => -below?,
            };
            Some((*a, *b, rough))
        })
        .collect();
    let mut courses = vec![Course::default(); weights.len()];
    let components = components(&rough, weights, &mut courses);
    let links: Vec<(usize, usize, Link)> = pairs
        .into_iter()
        .map(|((a, b), (above, below))| {
            let (from, by) = (courses[a].coarse, courses[b].coarse - courses[a].coarse);
            let link = Link::new(above.shifted(-from, -by), below.shifted(-from, by));
            (a, b, link)
        })
        .collect();
    for members in components {
        Component::new(&members, &links, &courses, weights).solve(&mut courses);
    }
    courses
}

/// Hosts that messages connect, the reference first; sets their coarse offsets.
fn components(
    rough: &[(usize, usize, i64)],
    weights: &[Weight],
    courses: &mut [Course],
) -> Vec<Vec<usize>> {
    let mut near: Vec<Vec<(usize, i64)>> = vec![Vec::new(); weights.len()];
    for (a, b, offset) in rough {
        near[*a].push((*b, *offset));
        near[*b].push((*a, -offset));
    }
    let mut order: Vec<usize> = (0..weights.len())
        .filter(|h| !near[*h].is_empty())
        .collect();
    order.sort_by_key(|h| {
        (
            weights[*h].rank,
            std::cmp::Reverse(weights[*h].messages),
            *h,
        )
    });
    let mut components = Vec::new();
    for reference in order {
        if courses[reference].reference.is_some() {
            continue;
        }
        courses[reference].reference = Some(reference);
        let mut members = vec![reference];
        let mut queue = VecDeque::from([reference]);
        while let Some(host) = queue.pop_front() {
            for (other, offset) in &near[host] {
                if courses[*other].reference.is_none() {
                    courses[*other].reference = Some(reference);
                    courses[*other].coarse = courses[host].coarse + offset;
                    members.push(*other);
                    queue.push_back(*other);
                }
            }
        }
        components.push(members);
    }
    components
}

/// The hosts that messages connect with one reference, and what the links say at the
/// knots; all differences beyond the coarse ones.
struct Component<'a> {
    members: &'a [usize],
    knots: Vec<i64>,
    /// Ends of the links, as indices into `members`.
    ends: Vec<(usize, usize)>,
    /// By knot and link: least and greatest difference.
    ranges: Vec<Vec<(f64, f64)>>,
    /// By member: where its clock is not moved at all.
    unmoved: Vec<f64>,
    messages: Vec<u64>,
    contradictory: Vec<usize>,
}

/// Least and greatest value by member.
type Spread = (Vec<f64>, Vec<f64>);

impl<'a> Component<'a> {
    fn new(
        members: &'a [usize],
        links: &[(usize, usize, Link)],
        courses: &[Course],
        weights: &[Weight],
    ) -> Self {
        let index: BTreeMap<usize, usize> =
            members.iter().enumerate().map(|(i, h)| (*h, i)).collect();
        let own: Vec<_> = links
            .iter()
            .filter_map(|(a, b, link)| Some((*index.get(a)?, *index.get(b)?, link)))
            .collect();
        let mut knots: Vec<i64> = own.iter().flat_map(|(_, _, link)| link.knots()).collect();
        knots.sort_unstable();
        knots.dedup();
        let knots = thin(knots);
        let mut contradictory = vec![0; members.len()];
        for (a, b, link) in &own {
            contradictory[*a] += link.contradictory;
            contradictory[*b] += link.contradictory;
        }
        Self {
            ranges: knots
                .iter()
                .map(|t| own.iter().map(|(_, _, link)| link.at(*t)).collect())
                .collect(),
            knots,
            ends: own.iter().map(|(a, b, _)| (*a, *b)).collect(),
            unmoved: members.iter().map(|h| -courses[*h].coarse as f64).collect(),
            messages: members.iter().map(|h| weights[*h].messages).collect(),
            members,
            contradictory,
        }
    }

    fn solve(&self, courses: &mut [Course]) {
        let mut by_reference = self.nothing_fixed();
        by_reference.iter_mut().for_each(|knot| knot[0] = Some(0.0));
        // Where messages contradict each other around a circle, all bounds give way alike.
        let slack: Vec<f64> = (0..self.knots.len())
            .map(|k| self.slack(k, &by_reference[k]))
            .collect();
        let bounds = self.spreads(&by_reference, &slack);
        let held = self.held(&bounds, &slack);
        let mut fixed = by_reference;
        for knot in &mut fixed {
            held.iter()
                .for_each(|at| knot[*at] = Some(self.unmoved[*at]));
        }
        let mut spreads = self.spreads(&fixed, &slack);
        let ranges = |spreads: &[Spread], at: usize| -> Vec<(f64, f64)> {
            spreads.iter().map(|(l, m)| (l[at], m[at])).collect()
        };
        let mut wide: Vec<usize> = (1..self.members.len())
            .filter(|at| !held.contains(at) && is_wide(&ranges(&spreads, *at)))
            .collect();
        wide.sort_by_key(|at| std::cmp::Reverse(self.messages[*at]));
        // One after the other, so that each leaves room for what was said of those before.
        for at in wide.into_iter().take(TOGETHER) {
            let ahead = self.least_moved(&ranges(&spreads, at), self.unmoved[at]);
            for (knot, ahead) in fixed.iter_mut().zip(ahead) {
                knot[at] = Some(ahead);
            }
            spreads = self.spreads(&fixed, &slack);
        }
        for (at, host) in self.members.iter().enumerate() {
            let course = &mut courses[*host];
            course.moved = at != 0 && !held.contains(&at);
            course.ahead = if course.moved {
                let known: Option<Vec<f64>> = fixed.iter().map(|knot| knot[at]).collect();
                let known = known.unwrap_or_else(|| self.middle(&ranges(&spreads, at), at));
                self.not_too_steep(known)
            } else {
                vec![self.unmoved[at]; self.knots.len()]
            };
            course.uncertainty = (course.ahead.iter().zip(&bounds))
                .map(|(ahead, (least, most))| (most[at] - ahead).max(ahead - least[at]).max(0.0))
                .collect();
            course.knots.clone_from(&self.knots);
            course.contradictory = self.contradictory[at];
        }
    }

    /// Clocks that may be right as they are, besides the reference's.
    fn held(&self, bounds: &[Spread], slack: &[f64]) -> Vec<usize> {
        let may_stay = |at: &usize| {
            let stay = self.unmoved[*at];
            bounds
                .iter()
                .all(|(l, m)| l[*at] - ROUNDING <= stay && stay <= m[*at] + ROUNDING)
        };
        let agree = |who: &[usize]| {
            let mut fixed = vec![None; self.members.len()];
            fixed[0] = Some(0.0);
            who.iter()
                .for_each(|at| fixed[*at] = Some(self.unmoved[*at]));
            (0..self.knots.len()).all(|k| self.spread(k, &fixed, slack[k]).is_some())
        };
        let mut can: Vec<usize> = (1..self.members.len()).filter(may_stay).collect();
        if agree(&can) {
            return can;
        }
        // Each by itself may be right, not all together: those with the most messages are.
        can.sort_by_key(|at| std::cmp::Reverse(self.messages[*at]));
        let mut together = Vec::new();
        for at in can.into_iter().take(TOGETHER) {
            together.push(at);
            if !agree(&together) {
                together.pop();
            }
        }
        together
    }

    /// By knot and member.
    fn nothing_fixed(&self) -> Vec<Vec<Option<f64>>> {
        vec![vec![None; self.members.len()]; self.knots.len()]
    }

    fn spreads(&self, fixed: &[Vec<Option<f64>>], slack: &[f64]) -> Vec<Spread> {
        let unknown = || {
            let size = self.members.len();
            (vec![f64::NEG_INFINITY; size], vec![f64::INFINITY; size])
        };
        (0..self.knots.len())
            .map(|k| self.spread(k, &fixed[k], slack[k]).unwrap_or_else(unknown))
            .collect()
    }

    /// Least and greatest values at one knot, by Bellman and Ford; none where the links
    /// contradict each other or the fixed values.
    fn spread(&self, knot: usize, fixed: &[Option<f64>], slack: f64) -> Option<Spread> {
        let start = |none: f64| -> Vec<f64> { fixed.iter().map(|f| f.unwrap_or(none)).collect() };
        let (mut least, mut most) = (start(f64::NEG_INFINITY), start(f64::INFINITY));
        for _ in 0..=self.members.len() {
            let mut changed = false;
            let mut lower = |values: &mut [f64], at: usize, to: f64, sign: f64| {
                if sign * to >= sign * values[at] - 1.0 {
                    return Some(());
                }
                if fixed[at].is_some() {
                    return (sign * (values[at] - to) <= ROUNDING).then_some(());
                }
                values[at] = to;
                changed = true;
                Some(())
            };
            for ((a, b), (low, high)) in self.ends.iter().zip(&self.ranges[knot]) {
                let (low, high) = (low - slack, high + slack);
                let (from_a, from_b) = (most[*a] + high, most[*b] - low);
                lower(&mut most, *b, from_a, 1.0)?;
                lower(&mut most, *a, from_b, 1.0)?;
                let (from_a, from_b) = (least[*a] + low, least[*b] - high);
                lower(&mut least, *b, from_a, -1.0)?;
                lower(&mut least, *a, from_b, -1.0)?;
            }
            if !changed {
                return Some((least, most));
            }
        }
        None
    }

    /// By how much all bounds must give way for there to be any solution.
    fn slack(&self, knot: usize, fixed: &[Option<f64>]) -> f64 {
        let solves = |slack: f64| self.spread(knot, fixed, slack).is_some();
        if solves(0.0) {
            return 0.0;
        }
        let mut enough = 1_000.0;
        while !solves(enough) && enough < 1e18 {
            enough *= 2.0;
        }
        let mut little = enough / 2.0;
        for _ in 0..16 {
            let middle = (little + enough) / 2.0;
            if solves(middle) {
                enough = middle;
            } else {
                little = middle;
            }
        }
        enough
    }

    /// What a clock that must be moved is ahead by at each knot: the middle of its bounds.
    fn middle(&self, ranges: &[(f64, f64)], at: usize) -> Vec<f64> {
        let least_moved = self.least_moved(ranges, self.unmoved[at]);
        let middles = ranges.iter().zip(least_moved);
        middles
            .map(|((least, most), least_moved)| {
                let middle = (least + most) / 2.0;
                if middle.is_finite() {
                    middle
                } else {
                    least_moved
                }
            })
            .collect()
    }

    /// The same where the bounds say little: no more than they ask for, since most clocks
    /// are nearly right.
    fn least_moved(&self, ranges: &[(f64, f64)], unmoved: f64) -> Vec<f64> {
        let inside = |(least, most): &(f64, f64)| {
            let inside = INSIDE.min((most - least) / 2.0);
            unmoved.max(least + inside).min(most - inside)
        };
        ranges.iter().map(inside).collect()
    }

    fn not_too_steep(&self, mut ahead: Vec<f64>) -> Vec<f64> {
        for k in 1..ahead.len() {
            let steepest = STEEPEST * (self.knots[k] - self.knots[k - 1]) as f64;
            ahead[k] = ahead[k].clamp(ahead[k - 1] - steepest, ahead[k - 1] + steepest);
        }
        ahead
    }
}

/// Whether the bounds at most knots are too far apart for their middle to mean anything.
fn is_wide(ranges: &[(f64, f64)]) -> bool {
    let mut widths: Vec<f64> = ranges.iter().map(|(least, most)| most - least).collect();
    widths.sort_by(f64::total_cmp);
    widths.get(widths.len() / 2).is_none_or(|w| *w > WIDE)
}

/// At most [`KNOTS`] of them, the first and the last included.
fn thin(knots: Vec<i64>) -> Vec<i64> {
    if knots.len() <= KNOTS {
        return knots;
    }
    let last = knots.len() - 1;
    (0..KNOTS).map(|i| knots[i * last / (KNOTS - 1)]).collect()
}

impl Course {
    /// The time of the reference's clock when this one shows `time`.
    pub(super) fn time(&self, time: u64) -> u64 {
        if !self.moved {
            return time;
        }
        let rough = time as i64 - self.coarse;
        // The knots are in the reference's time.
        let nearly = rough - self.ahead_at(rough);
        u64::try_from(rough - self.ahead_at(nearly)).unwrap_or(0)
    }

    /// What this clock is ahead of the reference's by at a time of the reference's.
    pub(super) fn offset(&self, time: u64) -> i64 {
        if self.moved {
            self.coarse + self.ahead_at(time as i64)
        } else {
            0
        }
    }

    /// What the offset may be wrong by, at a time of the reference's; infinite where
    /// messages went one way only.
    pub(super) fn uncertainty(&self, time: u64) -> f64 {
        let time = time as i64;
        let beyond = match (self.knots.first(), self.knots.last()) {
            (Some(first), Some(last)) => (first - time).max(time - last).max(0),
            _ => 0,
        };
        interpolate(&self.knots, &self.uncertainty, time) + MAX_DRIFT * beyond as f64
    }

    fn ahead_at(&self, time: i64) -> i64 {
        interpolate(&self.knots, &self.ahead, time).round() as i64
    }

    /// Drift against the reference over the whole time, where it is more than the
    /// uncertainty could feign.
    pub(super) fn drift(&self) -> Option<f64> {
        let (first, last) = (self.knots.first()?, self.knots.last()?);
        let grown = self.ahead.last()? - self.ahead.first()?;
        let feigned = self.uncertainty.first()? + self.uncertainty.last()?;
        (grown.abs() > feigned).then(|| grown / (last - first) as f64)
    }

    /// Median and greatest uncertainty, and the offset in the middle.
    pub(super) fn summary(&self) -> (i64, f64, f64) {
        let mut sorted = self.uncertainty.clone();
        sorted.sort_by(f64::total_cmp);
        let ends = self.knots.first().zip(self.knots.last());
        let middle = ends.map_or(0, |(first, last)| first + (last - first) / 2);
        (
            self.offset(middle.max(0) as u64),
            sorted.get(sorted.len() / 2).copied().unwrap_or(0.0),
            sorted.last().copied().unwrap_or(0.0),
        )
    }
}

/// Linear between knots, constant outside.
fn interpolate(knots: &[i64], values: &[f64], time: i64) -> f64 {
    let next = knots.partition_point(|k| *k <= time);
    match (next.checked_sub(1), values.get(next)) {
        (None, first) => first.copied().unwrap_or(0.0),
        (Some(before), None) => values[before],
        (Some(before), Some(after)) => {
            let share = (time - knots[before]) as f64 / (knots[next] - knots[before]) as f64;
            let value = values[before] + (after - values[before]) * share;
            if value.is_nan() { *after } else { value }
        }
    }
}
