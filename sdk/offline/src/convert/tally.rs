//! Which requests the statistics count is known only when all have been seen: until
//! then those that may be left out are kept apart.

use std::collections::BTreeMap;

use omnitrace::vocabulary::RoleId;

use crate::statistics::{Durations, Outline};

/// A request's place in the order of time: first event, then number.
type Place = (u64, u64);

/// Adds requests up by the roles that they have passed through.
#[derive(Default)]
pub(super) struct Tally {
    skip: usize,
    seen: u64,
    /// Requests that passed through no role completely.
    incomplete: u64,
    kinds: BTreeMap<Vec<RoleId>, Kind>,
}

/// Requests with the same roles.
#[derive(Default)]
struct Kind {
    count: u64,
    /// The first and the last ones.
    head: BTreeMap<Place, Outline>,
    tail: BTreeMap<Place, Outline>,
    /// The others.
    durations: Durations,
}

/// What came of it.
pub(super) struct Counted {
    pub(super) durations: Durations,
    /// Requests that have passed through all the roles that most pass through. (Logs
    /// need not come from every node.)
    pub(super) complete: usize,
    /// Whether there were too few of them to leave any out.
    pub(super) too_few: bool,
}

impl Tally {
    /// Leaves out the first and the last `skip` complete requests.
    pub(super) fn new(skip: usize) -> Self {
        Self {
            skip,
            ..Self::default()
        }
    }

    /// Adds a request that began at `time`; no roles if it is incomplete.
    pub(super) fn add(&mut self, time: u64, roles: Vec<RoleId>, outline: Outline) {
        self.seen += 1;
        if roles.is_empty() {
            self.incomplete += 1;
            return;
        }
        let kind = self.kinds.entry(roles).or_default();
        kind.count += 1;
        kind.head.insert((time, self.seen), outline);
        if kind.head.len() > self.skip
            && let Some((place, outline)) = kind.head.pop_last()
        {
            kind.tail.insert(place, outline);
        }
        if kind.tail.len() > self.skip
            && let Some((_, outline)) = kind.tail.pop_first()
        {
            kind.durations.push(&outline);
        }
    }

    /// To be called after the last request.
    pub(super) fn finish(self) -> Counted {
        let whole: u64 = self.kinds.values().map(|k| k.count).sum();
        let passing = |role: &RoleId| {
            let kinds = self.kinds.iter().filter(|(roles, _)| roles.contains(role));
            kinds.map(|(_, kind)| kind.count).sum::<u64>()
        };
        let mut usual: Vec<RoleId> = self.kinds.keys().flatten().copied().collect();
        usual.sort_unstable();
        usual.dedup();
        usual.retain(|role| 2 * passing(role) > whole);
        let mut durations = Durations::default();
        let mut ends = BTreeMap::new();
        let mut complete = 0;
        for (roles, kind) in self.kinds {
            if usual.iter().all(|role| roles.contains(role)) {
                complete += kind.count as usize;
                durations.absorb(kind.durations);
                ends.extend(kind.head);
                ends.extend(kind.tail);
            }
        }
        let too_few = self.skip > 0 && complete <= self.skip.saturating_mul(2);
        if !too_few {
            for _ in 0..self.skip {
                ends.pop_first();
                ends.pop_last();
            }
        }
        ends.values().for_each(|outline| durations.push(outline));
        durations.sort();
        Counted {
            durations,
            complete,
            too_few,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests by their time, which is also their length; the statistics' count and
    /// the times of those that are counted.
    fn counted(skip: usize, requests: &[(u64, &[u16])]) -> (usize, bool, Durations) {
        let mut tally = Tally::new(skip);
        for (time, roles) in requests {
            let outline = outline(*time);
            tally.add(*time, roles.iter().map(|r| RoleId(*r)).collect(), outline);
        }
        let counted = tally.finish();
        (counted.complete, counted.too_few, counted.durations)
    }

    fn outline(time: u64) -> Outline {
        Outline {
            start: time,
            total: time,
            phases: Vec::new(),
        }
    }

    fn durations(times: &[u64]) -> Durations {
        let mut durations = Durations::default();
        times
            .iter()
            .for_each(|time| durations.push(&outline(*time)));
        durations.sort();
        durations
    }

    #[test]
    fn the_first_and_last_of_the_complete_requests_are_left_out_in_whatever_order_they_come() {
        let (all, half): (&[u16], &[u16]) = (&[0, 1, 2], &[1]);
        let more: &[u16] = &[0, 1, 2, 3];
        let requests = [
            (5, all),
            (1, half),
            (3, all),
            (4, more),
            (2, &[][..]),
            (7, all),
            (6, all),
        ];
        assert_eq!(counted(1, &requests), (5, false, durations(&[4, 5, 6])));
        assert_eq!(counted(2, &requests), (5, false, durations(&[5])));
        assert_eq!(
            counted(0, &requests),
            (5, false, durations(&[3, 4, 5, 6, 7]))
        );
        assert_eq!(
            counted(3, &requests),
            (5, true, durations(&[3, 4, 5, 6, 7]))
        );
        assert_eq!(counted(1, &[]), (0, true, durations(&[])));
    }
}
