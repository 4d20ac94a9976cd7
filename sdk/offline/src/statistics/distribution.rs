//! All durations of one kind, in little room, and what can be said of them.

use serde::Serialize;

/// Durations in nanoseconds: four bytes each up to 4.29 s, eight beyond.
#[derive(Debug, Clone, Default)]
pub struct Distribution {
    short: Vec<u32>,
    long: Vec<u64>,
}

/// What there is to say of a distribution; all in nanoseconds but the count.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Numbers {
    /// How many durations.
    pub count: u64,
    /// Arithmetic mean.
    pub average: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Distribution {
    /// Adds one duration, in nanoseconds.
    pub fn add(&mut self, nanos: u64) {
        match u32::try_from(nanos) {
            Ok(short) => {
                grow(&mut self.short);
                self.short.push(short);
            }
            Err(_) => {
                grow(&mut self.long);
                self.long.push(nanos);
            }
        }
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: Self) {
        merge(&mut self.short, other.short);
        merge(&mut self.long, other.long);
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.short.len() + self.long.len()
    }

    /// Sorts, once, and says what there is to say; all zero for none.
    pub fn numbers(&mut self) -> Numbers {
        let Some(last) = self.count().checked_sub(1) else {
            return Numbers::default();
        };
        self.short.sort_unstable();
        self.long.sort_unstable();
        let sum: u128 = self.short.iter().map(|n| u128::from(*n)).sum::<u128>()
            + self.long.iter().map(|n| u128::from(*n)).sum::<u128>();
        let percentile = |q| percentile(self.count(), q, |rank| self.at(rank));
        Numbers {
            count: self.count() as u64,
            average: sum as f64 / self.count() as f64,
            min: self.at(0),
            max: self.at(last),
            p50: percentile(50.0),
            p90: percentile(90.0),
            p95: percentile(95.0),
            p99: percentile(99.0),
        }
    }

    fn at(&self, rank: usize) -> f64 {
        match self.short.get(rank) {
            Some(short) => f64::from(*short),
            None => self.long[rank - self.short.len()] as f64,
        }
    }
}

/// The `q`th percentile of `count` sorted values, as numpy's `percentile` gives it: linear
/// between the values on both sides of position `q / 100 * (count - 1)`. `count` is not 0.
pub fn percentile(count: usize, q: f64, at: impl Fn(usize) -> f64) -> f64 {
    let position = q / 100.0 * (count - 1) as f64;
    let (below, above) = (at(position.floor() as usize), at(position.ceil() as usize));
    below + (above - below) * position.fract()
}

/// By a quarter at a time: a vector that doubles wastes up to half.
fn grow<T>(values: &mut Vec<T>) {
    if values.len() == values.capacity() {
        values.reserve_exact((values.len() / 4).max(32));
    }
}

fn merge<T: Copy>(values: &mut Vec<T>, other: Vec<T>) {
    if values.is_empty() {
        *values = other;
        return;
    }
    if values.capacity() - values.len() < other.len() {
        values.reserve_exact(other.len().max(values.len() / 4));
    }
    values.extend_from_slice(&other);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_of_some_seconds_takes_five_bytes_at_most() {
        let mut distribution = Distribution::default();
        for n in 0..100_000u64 {
            distribution.add(n * 40_000);
        }
        assert_eq!(distribution.count(), 100_000);
        assert!(distribution.short.capacity() * 4 <= 100_000 * 5);
        assert_eq!(distribution.long.capacity(), 0);
    }
}
