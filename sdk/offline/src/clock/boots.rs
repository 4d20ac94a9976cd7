//! Omni Proxy stamps most of its lines with the seconds since its host booted. What the
//! wall clock showed at boot is found from three things, the best first:
//!
//! * a request's `Start to schedule` (wall clock) and `Time received` (since boot) are one
//!   moment but for some 50 µs, and the first never comes after the second: of all pairs
//!   the greatest difference is the nearest to the truth;
//! * a line of its access log holds both clocks, one of them in whole milliseconds;
//! * each line begins with the second in which it was written, in an unnamed time zone.
//!
//! A log may hold several boots. Lines of one boot are known by what they have in common:
//! the difference of prefix and stamp.

use std::collections::BTreeMap;

use super::log_clock::{Boot, LogClock, MICROS, MILLI, SINCE_BOOT};
use super::prefix::{SECOND, ZONE_STEP, zone};
use super::report::{self, Nanos};

/// Lines whose offsets differ by less belong to one boot.
pub(super) const SAME_BOOT: i64 = 2 * SECOND;
/// Well-known offsets that differ by less are one host's.
const SAME_HOST: i64 = 2 * MILLI;
/// nginx's idea of the time may be so old when it writes a line, so that upper bounds are
/// too low.
const STALE: i64 = 100 * MILLI;

/// What the wall clock showed at a boot, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Known {
    pub(super) offset: i64,
    pub(super) uncertainty: i64,
    pub(super) by: By,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum By {
    Pairs(u64),
    AccessLog,
    Prefixes,
    /// Prefixes, in the time zone of other logs.
    ZoneOfOthers,
    /// Prefixes, in the time zone of this machine for want of a better one.
    ZoneHere,
}

/// All boots with their wall clock times.
#[derive(Debug, Default)]
pub struct Boots {
    known: Vec<Option<Known>>,
    lines: Vec<u64>,
    as_is: bool,
}

impl Boots {
    /// Boots of nothing known: every stamp is taken as it stands in its log.
    pub fn as_is() -> Self {
        Self {
            as_is: true,
            ..Self::default()
        }
    }

    /// Puts together what all logs say. `zone_here` is this machine's difference to UTC,
    /// in seconds, at a local time in seconds; it is asked where no log tells its own.
    pub fn solve(logs: &[LogClock], zone_here: &dyn Fn(i64) -> i64) -> Self {
        let all = || logs.iter().flat_map(|log| &log.boots);
        let size = all().map(|b| usize::from(b.number) + 1).max().unwrap_or(0);
        let mut boots = Self {
            known: vec![None; size],
            lines: vec![0; size],
            as_is: false,
        };
        let hosts = hosts(all().filter_map(Boot::known).collect());
        let mut zones: BTreeMap<i64, u64> = BTreeMap::new();
        for (zone, lines) in logs.iter().flat_map(|log| &log.zones) {
            *zones.entry(*zone).or_default() += lines;
        }
        let rough = all().filter(|boot| boot.known().is_none());
        let rough = together(rough.filter_map(|boot| boot.local).collect());
        for log in logs {
            let own = commonest(&log.zones);
            for boot in &log.boots {
                let at = usize::from(boot.number);
                boots.lines[at] += boot.lines;
                boots.known[at] = match (boot.known(), boot.local) {
                    (Some(known), _) => host_of(&hosts, known.offset).or(Some(known)),
                    (None, None) => None,
                    (None, Some(local)) => {
                        let local = rough.get(&local).copied().unwrap_or(local);
                        Some(by_prefix(local, own, &zones, &hosts, zone_here))
                    }
                };
            }
        }
        boots
    }

    /// The wall clock's time, in nanoseconds since 1970, of what [`LogClock::time`] gave.
    /// Where nothing says when the host was booted, the time since then.
    pub fn wall(&self, kept: u64) -> u64 {
        if kept & SINCE_BOOT == 0 {
            return kept;
        }
        let stamp = (kept & MICROS) * 1_000;
        let boot = (kept & !SINCE_BOOT) >> 48;
        match self.known.get(boot as usize) {
            Some(Some(known)) if !self.as_is => {
                u64::try_from(stamp as i64 + known.offset).unwrap_or(stamp)
            }
            _ => stamp,
        }
    }

    /// Whether every time since boot is known to within seconds; else a time zone was
    /// guessed, or nothing was known at all.
    pub fn are_sure(&self) -> bool {
        let is_sure = |known: &Known| !matches!(known.by, By::ZoneOfOthers | By::ZoneHere);
        let mut used = self.known.iter().zip(&self.lines).filter(|(_, n)| **n > 0);
        used.all(|(known, _)| known.as_ref().is_some_and(is_sure))
    }

    /// What a person should know, a line for each boot.
    pub fn notes(&self) -> Vec<String> {
        let mut by_offset: BTreeMap<Option<i64>, (Option<Known>, u64)> = BTreeMap::new();
        for (known, lines) in self.known.iter().zip(&self.lines) {
            if *lines > 0 {
                let entry = by_offset.entry(known.map(|k| k.offset)).or_default();
                entry.0 = entry.0.or(*known);
                entry.1 += lines;
            }
        }
        by_offset
            .into_values()
            .map(|(known, lines)| match known {
                None => format!(
                    "{lines} lines have times since boot, and nothing says when that was: they stand in January 1970"
                ),
                Some(Known { offset, uncertainty, by }) => {
                    let how = match by {
                        By::Pairs(n) => format!("from {n} requests whose start has both clocks"),
                        By::AccessLog => "from the proxy's access log".to_owned(),
                        By::Prefixes => "from the dates of the lines".to_owned(),
                        By::ZoneOfOthers => {
                            "from the dates of the lines, taken for the time zone of the other logs".to_owned()
                        }
                        By::ZoneHere => {
                            "from the dates of the lines, taken for this machine's time zone (set TZ for another)".to_owned()
                        }
                    };
                    format!(
                        "{lines} lines with times since boot: the proxy's host was booted at {} UTC, ± {}, {how}",
                        report::date(offset),
                        Nanos(uncertainty as f64),
                    )
                }
            })
            .collect()
    }
}

/// Offsets that are one host's, as one: that of the pairs nearest to the truth, else the
/// most certain one.
fn hosts(mut known: Vec<Known>) -> Vec<Known> {
    known.sort_by_key(|k| k.offset);
    let mut hosts: Vec<Known> = Vec::new();
    let mut last = i64::MIN;
    for k in known {
        let is_new = k.offset.saturating_sub(last) > SAME_HOST;
        last = k.offset;
        match hosts.last_mut().filter(|_| !is_new) {
            None => hosts.push(k),
            Some(host) => match (host.by, k.by) {
                (By::Pairs(a), By::Pairs(b)) => {
                    let by = By::Pairs(a + b);
                    *host = Known { by, ..k };
                }
                (By::Pairs(_), _) => {}
                (_, By::Pairs(_)) => *host = k,
                _ => host.uncertainty = host.uncertainty.max(k.uncertainty),
            },
        }
    }
    hosts
}

/// Least and greatest offset that a log's prefixes allow.
pub(super) type Bounds = (i64, i64);

/// What the prefixes in several files say, or in several parts of one, where it may be of
/// one boot: for each pair of bounds those that keep all of them.
fn together(mut all: Vec<Bounds>) -> BTreeMap<Bounds, Bounds> {
    all.sort_unstable();
    let mut common = BTreeMap::new();
    let mut rest = &all[..];
    while let Some((first, _)) = rest.first() {
        let (mut now, mut count) = (rest[0], 0);
        // In the order of `least` this is the greatest so far.
        for (least, greatest) in rest {
            if *least > now.1 + STALE || least - first > SAME_BOOT {
                break;
            }
            now = (*least, now.1.min(*greatest).max(*least));
            count += 1;
        }
        // The first always fits unless it contradicts itself.
        let (boot, later) = rest.split_at(count.max(1));
        common.extend(boot.iter().map(|own| (*own, now)));
        rest = later;
    }
    common
}

fn host_of(hosts: &[Known], offset: i64) -> Option<Known> {
    let near = hosts
        .iter()
        .min_by_key(|host| (host.offset - offset).abs())?;
    ((near.offset - offset).abs() <= SAME_HOST).then_some(*near)
}

fn commonest(zones: &BTreeMap<i64, u64>) -> Option<i64> {
    zones
        .iter()
        .max_by_key(|(_, lines)| **lines)
        .map(|(zone, _)| *zone)
}

/// A boot of which only the prefixes speak.
fn by_prefix(
    (least, greatest): (i64, i64),
    own: Option<i64>,
    others: &BTreeMap<i64, u64>,
    hosts: &[Known],
    zone_here: &dyn Fn(i64) -> i64,
) -> Known {
    let greatest = greatest.max(least);
    let step = ZONE_STEP * SECOND;
    // Another log of the same host may know better: its offset lies between these bounds,
    // in some zone.
    let fits = |host: &&Known| {
        let zone = zone(least - host.offset);
        let fits = |zone: i64| {
            let at = host.offset + zone * step;
            (least - SAME_HOST..=greatest + SAME_HOST).contains(&at)
        };
        zone.is_some_and(|zone| own.is_none_or(|own| own == zone) && fits(zone))
    };
    let mut fitting = hosts.iter().filter(fits);
    if let (Some(host), None) = (fitting.next(), fitting.next()) {
        return *host;
    }
    let middle = least + (greatest - least) / 2;
    let (zone, by) = match (own, commonest(others)) {
        (Some(own), _) => (own * step, By::Prefixes),
        (None, Some(others)) => (others * step, By::ZoneOfOthers),
        (None, None) => (zone_here(middle / SECOND) * SECOND, By::ZoneHere),
    };
    Known {
        offset: middle - zone,
        uncertainty: ((greatest - least) / 2).max(MILLI),
        by,
    }
}

#[cfg(test)]
mod tests;
