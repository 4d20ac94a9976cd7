//! The lines that pass between two clouds of points: how far two clocks that drift evenly
//! can be apart. (Linear programming in two variables, solved for the slope by bisection:
//! for a given slope the highest line under the one cloud and the lowest over the other
//! are found in one pass, and the gap between them is a concave function of the slope.)

use super::ceiling::Point;

/// Greatest difference in speed of two clocks: what NTP itself may turn a clock by.
pub(super) const MAX_DRIFT: f64 = 500e-6;
/// Halvings of an interval of slopes: to the last bit.
const HALVINGS: u32 = 64;

/// All lines `d(t)` with `-below.v <= d(t)` and `d(t) <= above.v` at the points' times.
#[derive(Debug, Clone)]
pub(super) struct Fit {
    origin: i64,
    above: Vec<(f64, f64)>,
    below: Vec<(f64, f64)>,
    /// Slopes of the flattest and the steepest of them.
    slopes: (f64, f64),
    /// By how much each bound had to be relaxed for there to be a line at all.
    pub(super) slack: f64,
}

impl Fit {
    pub(super) fn new(above: &[Point], below: &[Point]) -> Self {
        let all = || above.iter().chain(below);
        let first = all().map(|p| p.t).min().unwrap_or(0);
        let last = all().map(|p| p.t).max().unwrap_or(0);
        let origin = first + (last - first) / 2;
        let of = |p: &Point, sign: f64| ((p.t - origin) as f64, sign * p.v as f64);
        let mut fit = Self {
            origin,
            above: above.iter().map(|p| of(p, 1.0)).collect(),
            below: below.iter().map(|p| of(p, -1.0)).collect(),
            slopes: (-MAX_DRIFT, MAX_DRIFT),
            slack: 0.0,
        };
        if fit.above.is_empty() || fit.below.is_empty() {
            return fit;
        }
        let best = fit.widest();
        let gap = fit.gap(best);
        if gap <= 0.0 {
            fit.slack = -gap / 2.0;
            fit.slopes = (best, best);
        } else {
            let edge = |outside: f64| {
                let (mut inside, mut outside) = (best, outside);
                if fit.gap(outside) >= 0.0 {
                    return outside;
                }
                for _ in 0..HALVINGS {
                    let middle = (inside + outside) / 2.0;
                    if fit.gap(middle) >= 0.0 {
                        inside = middle;
                    } else {
                        outside = middle;
                    }
                }
                inside
            };
            fit.slopes = (edge(-MAX_DRIFT), edge(MAX_DRIFT));
        }
        fit
    }

    /// The greatest difference that one of the lines has at `t`.
    pub(super) fn most(&self, t: i64) -> f64 {
        let t = (t - self.origin) as f64;
        extreme(&self.above, self.slopes, t, 1.0) + self.slack
    }

    /// The least difference that one of the lines has at `t`.
    pub(super) fn least(&self, t: i64) -> f64 {
        let t = (t - self.origin) as f64;
        -extreme(&self.below, self.slopes, t, -1.0) - self.slack
    }

    /// Times of the points.
    pub(super) fn times(&self) -> impl Iterator<Item = i64> {
        let all = self.above.iter().chain(&self.below);
        all.map(|(t, _)| self.origin + *t as i64)
    }

    fn gap(&self, slope: f64) -> f64 {
        let (over, _) = tightest(&self.above, slope, 0.0, 1.0);
        let (under, _) = tightest(&self.below, slope, 0.0, -1.0);
        over + under
    }

    /// The slope with the widest gap.
    fn widest(&self) -> f64 {
        let (mut low, mut high) = (-MAX_DRIFT, MAX_DRIFT);
        for _ in 0..HALVINGS {
            let slope = (low + high) / 2.0;
            let (_, over) = tightest(&self.above, slope, 0.0, 1.0);
            let (_, under) = tightest(&self.below, slope, 0.0, -1.0);
            if over + under > 0.0 {
                low = slope;
            } else {
                high = slope;
            }
        }
        (low + high) / 2.0
    }
}

/// Of lines with this slope that stay under all points (with `sign` -1: over all points,
/// everything negated): the value at `t`, and how it grows with the slope.
fn tightest(points: &[(f64, f64)], slope: f64, t: f64, sign: f64) -> (f64, f64) {
    let mut least = (f64::INFINITY, 0.0);
    for (at, value) in points {
        let growth = sign * (t - at);
        let bound = sign * value + slope * growth;
        if bound < least.0 {
            least = (bound, growth);
        }
    }
    least
}

/// The greatest such value over a range of slopes.
fn extreme(points: &[(f64, f64)], (mut low, mut high): (f64, f64), t: f64, sign: f64) -> f64 {
    let ends = tightest(points, low, t, sign)
        .0
        .max(tightest(points, high, t, sign).0);
    let mut best = ends;
    for _ in 0..HALVINGS {
        let slope = (low + high) / 2.0;
        let (value, growth) = tightest(points, slope, t, sign);
        best = best.max(value);
        if growth > 0.0 {
            low = slope;
        } else {
            high = slope;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    /// The least and the greatest value at `t` of any line that keeps all bounds, by
    /// trying every corner of the polygon of such lines; none if there is no such line.
    fn brute_force(above: &[Point], below: &[Point], t: i64) -> Option<(f64, f64)> {
        // A line is its value at 0 and its slope; a bound is value + slope * s <= v.
        // The bounds of the slope are per second, so that all are of one magnitude.
        let (second, drift) = (SECOND as f64, MAX_DRIFT * SECOND as f64);
        let mut bounds = vec![(0.0, second, drift), (0.0, -second, drift)];
        bounds.extend(above.iter().map(|p| (1.0, p.t as f64, p.v as f64)));
        bounds.extend(below.iter().map(|p| (-1.0, -p.t as f64, p.v as f64)));
        let mut range: Option<(f64, f64)> = None;
        for (i, a) in bounds.iter().enumerate() {
            for b in &bounds[..i] {
                let determinant = a.0 * b.1 - a.1 * b.0;
                if determinant == 0.0 {
                    continue;
                }
                let value = (a.2 * b.1 - a.1 * b.2) / determinant;
                let slope = (a.0 * b.2 - a.2 * b.0) / determinant;
                let keeps = |c: &(f64, f64, f64)| c.0 * value + c.1 * slope <= c.2 + 1e-3;
                if bounds.iter().all(keeps) {
                    let at = value + slope * t as f64;
                    let (least, most) = range.unwrap_or((at, at));
                    range = Some((least.min(at), most.max(at)));
                }
            }
        }
        range
    }

    fn cloud() -> impl Strategy<Value = Vec<Point>> {
        let point =
            (0i64..100, -2_000_000i64..9_000_000).prop_map(|(t, v)| Point { t: t * SECOND, v });
        prop::collection::vec(point, 1..8)
    }

    proptest! {
        #[test]
        fn the_range_of_lines_is_that_of_all_corners_tried(
            above in cloud(), below in cloud(), t in -50i64..150,
        ) {
            let t = t * SECOND;
            let fit = Fit::new(&above, &below);
            match brute_force(&above, &below, t) {
                None => prop_assert!(fit.slack > 0.0),
                Some((least, most)) => {
                    prop_assert!(fit.slack < 0.01);
                    prop_assert!((fit.most(t) - most).abs() < 1.0, "{} {most}", fit.most(t));
                    prop_assert!((fit.least(t) - least).abs() < 1.0, "{} {least}", fit.least(t));
                }
            }
        }

        #[test]
        fn relaxed_by_its_slack_there_is_a_line(above in cloud(), below in cloud()) {
            let slack = Fit::new(&above, &below).slack.ceil() as i64 + 1;
            let relax = |points: &[Point]| -> Vec<Point> {
                points.iter().map(|p| Point { v: p.v + slack, ..*p }).collect()
            };
            prop_assert!(brute_force(&relax(&above), &relax(&below), 0).is_some());
        }
    }

    #[test]
    fn one_direction_bounds_one_side() {
        let fit = Fit::new(&[Point { t: 0, v: 7 }], &[]);
        assert_eq!((fit.least(0), fit.most(0)), (f64::NEG_INFINITY, 7.0));
        assert_eq!(fit.most(SECOND), 7.0 + MAX_DRIFT * SECOND as f64);
    }
}
