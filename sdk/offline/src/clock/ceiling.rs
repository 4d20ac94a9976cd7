//! What many messages say of two clocks, in little room: only the points that no line
//! below all points can do without.

use std::collections::BTreeMap;

/// First width of a bin: 2^33 ns, 8.6 s.
const FIRST_SHIFT: u32 = 33;
/// Bins; past that many they become twice as wide.
const BINS: usize = 64;
/// Points that wait in a bin until it is reduced to its hull.
const WAITING: usize = 48;
/// Points of a bin's hull; a flatter one is a looser bound, never a wrong one.
const HULL: usize = 12;

/// At `t` the difference of two clocks was at most `v`; both in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Point {
    pub(super) t: i64,
    pub(super) v: i64,
}

/// Upper bounds of a difference between two clocks over time.
#[derive(Debug, Clone)]
pub(super) struct Ceiling {
    shift: u32,
    bins: BTreeMap<i64, Vec<Point>>,
    /// Messages behind it.
    pub(super) count: u64,
}

impl Default for Ceiling {
    fn default() -> Self {
        Self {
            shift: FIRST_SHIFT,
            bins: BTreeMap::new(),
            count: 0,
        }
    }
}

impl Ceiling {
    pub(super) fn add(&mut self, t: i64, v: i64) {
        self.count += 1;
        let bin = self.bins.entry(t >> self.shift).or_default();
        bin.push(Point { t, v });
        if bin.len() >= WAITING {
            reduce(bin);
        }
        while self.bins.len() > BINS {
            self.widen(self.shift + 1);
        }
    }

    pub(super) fn merge(&mut self, mut other: Self) {
        self.count += other.count;
        let shift = self.shift.max(other.shift);
        self.widen(shift);
        other.widen(shift);
        for (at, points) in other.bins {
            let bin = self.bins.entry(at).or_default();
            bin.extend(points);
            if bin.len() >= WAITING {
                reduce(bin);
            }
        }
        while self.bins.len() > BINS {
            self.widen(self.shift + 1);
        }
    }

    /// Makes the bins 2^shift nanoseconds wide, if they are narrower.
    fn widen(&mut self, shift: u32) {
        if shift <= self.shift {
            return;
        }
        let by = shift - self.shift;
        self.shift = shift;
        for (at, points) in std::mem::take(&mut self.bins) {
            let bin = self.bins.entry(at >> by).or_default();
            bin.extend(points);
            if bin.len() >= WAITING {
                reduce(bin);
            }
        }
    }

    /// The points by bins of the same width in both, with the time at which each begins:
    /// this one's and `other`'s.
    pub(super) fn beside(mut self, mut other: Self) -> (i64, Vec<Bin>) {
        let shift = self.shift.max(other.shift);
        self.widen(shift);
        other.widen(shift);
        let mut bins: BTreeMap<i64, Bin> = BTreeMap::new();
        for (at, mut points) in self.bins {
            reduce(&mut points);
            bins.entry(at).or_default().above = points;
        }
        for (at, mut points) in other.bins {
            reduce(&mut points);
            bins.entry(at).or_default().below = points;
        }
        (1 << shift, bins.into_values().collect())
    }

    /// The least bound.
    pub(super) fn least(&self) -> Option<i64> {
        self.bins.values().flatten().map(|p| p.v).min()
    }

    /// Moves all points: their times by `t`, their bounds by `v`.
    pub(super) fn shifted(mut self, t: i64, v: i64) -> Self {
        let shift = self.shift;
        for point in std::mem::take(&mut self.bins).into_values().flatten() {
            let point = Point {
                t: point.t + t,
                v: point.v + v,
            };
            self.bins.entry(point.t >> shift).or_default().push(point);
        }
        self
    }
}

/// Bounds of one stretch of time.
#[derive(Debug, Clone, Default)]
pub(super) struct Bin {
    /// The difference is at most this.
    pub(super) above: Vec<Point>,
    /// The negated difference is at most this.
    pub(super) below: Vec<Point>,
}

fn reduce(points: &mut Vec<Point>) {
    hull(points);
    while points.len() > HULL {
        // The inner point that is nearest to the line between its neighbours goes.
        let height = |i: usize| {
            let (a, b, c) = (points[i - 1], points[i], points[i + 1]);
            let share = (b.t - a.t) as f64 / (c.t - a.t) as f64;
            a.v as f64 + (c.v - a.v) as f64 * share - b.v as f64
        };
        let flattest = (1..points.len() - 1).min_by(|a, b| height(*a).total_cmp(&height(*b)));
        let Some(at) = flattest else { break };
        points.remove(at);
    }
}

/// The lower convex hull, by time (Andrew's monotone chain).
pub(super) fn hull(points: &mut Vec<Point>) {
    points.sort_unstable();
    points.dedup_by_key(|p| p.t); // of one moment the lowest comes first
    let mut kept = 0;
    for i in 0..points.len() {
        let next = points[i];
        while kept >= 2 && !turns_up(points[kept - 2], points[kept - 1], next) {
            kept -= 1;
        }
        points[kept] = next;
        kept += 1;
    }
    points.truncate(kept);
}

/// Whether `b` is below the line from `a` to `c`.
fn turns_up(a: Point, b: Point, c: Point) -> bool {
    let wide = |from: i64, to: i64| i128::from(to) - i128::from(from);
    wide(a.t, b.t) * wide(b.v, c.v) > wide(a.v, b.v) * wide(b.t, c.t)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn points() -> impl Strategy<Value = Vec<Point>> {
        let point = (0i64..2_000, -500i64..500).prop_map(|(t, v)| Point { t, v });
        prop::collection::vec(point, 1..60)
    }

    /// Whether the line through `a` and `b` is below all points.
    fn supports(points: &[Point], a: Point, b: Point) -> bool {
        points.iter().all(|p| {
            i128::from(p.v - a.v) * i128::from(b.t - a.t)
                >= i128::from(b.v - a.v) * i128::from(p.t - a.t)
        })
    }

    proptest! {
        #[test]
        fn every_edge_of_the_hull_is_below_all_points(points in points()) {
            let mut kept = points.clone();
            hull(&mut kept);
            prop_assert!(kept.iter().all(|p| points.contains(p)));
            let ends = |p: &[Point]| (p.iter().map(|p| p.t).min(), p.iter().map(|p| p.t).max());
            prop_assert_eq!(ends(&kept), ends(&points));
            for edge in kept.windows(2) {
                prop_assert!(supports(&points, edge[0], edge[1]));
            }
        }

        #[test]
        fn a_ceiling_holds_little_and_only_true_bounds(
            points in prop::collection::vec((0i64..1 << 45, -1_000_000i64..1_000_000), 1..2_000),
            cut in 0usize..2_000,
        ) {
            let cut = cut.min(points.len());
            let (mut one, mut two) = (Ceiling::default(), Ceiling::default());
            points[..cut].iter().for_each(|(t, v)| one.add(*t, *v));
            points[cut..].iter().for_each(|(t, v)| two.add(*t, *v));
            one.merge(two);
            prop_assert_eq!(one.count, points.len() as u64);
            prop_assert_eq!(one.least(), points.iter().map(|(_, v)| *v).min());
            let (_, bins) = one.beside(Ceiling::default());
            prop_assert!(bins.len() <= BINS);
            for bin in &bins {
                prop_assert!(bin.above.len() <= HULL && bin.below.is_empty());
                prop_assert!(bin.above.iter().all(|p| points.contains(&(p.t, p.v))));
            }
        }
    }
}
