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

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::prefix;
use super::report::{self, Nanos};

const START: &str = "Start to schedule";
const RECEIVED: &str = "Time received";

const MICRO: i64 = 1_000;
const MILLI: i64 = 1_000_000;
const SECOND: i64 = 1_000_000_000;
/// Every zone's difference to UTC is a multiple of this, in seconds.
const ZONE_STEP: i64 = 900;
/// Lines whose offsets differ by less belong to one boot.
const SAME_BOOT: i64 = 2 * SECOND;
/// Well-known offsets that differ by less are one host's.
const SAME_HOST: i64 = 2 * MILLI;
/// Lines of the access log whose offsets differ by less belong to one boot.
const LINGER: i64 = 120 * SECOND;
/// Without a prefix: a stamp that is this much before the last one is another boot's.
const BACK: i64 = 60 * SECOND;
/// nginx's idea of the time may be so old when it writes a line, so that upper bounds are
/// too low.
const STALE: i64 = 100 * MILLI;
/// `Start to schedule` lines that wait for the other half of their pair.
const PENDING: usize = 256;
/// Lines of a log that are asked for its time zone.
const ZONE_LINES: u64 = 64;

/// The year 2116: a later time is none, and differences up to here fit 64 bits.
const LAST_TIME: u64 = 1 << 62;

/// Marks a time since boot: bit 63, then 15 bits for the boot and 48 for microseconds.
const SINCE_BOOT: u64 = 1 << 63;
const MICROS: u64 = (1 << 48) - 1;
const MAX_BOOTS: u16 = (1 << 15) - 1;

/// Whether a stamp, in nanoseconds, counts from a boot: none is up for nine years, and no
/// log is from before 1979.
pub fn is_since_boot(time: u64) -> bool {
    time / 1_000 <= MICROS
}

/// Gives each boot of each log a number of its own.
#[derive(Debug, Default)]
pub struct Register {
    next: AtomicU16,
    hashes: RandomState,
}

impl Register {
    fn number(&self) -> u16 {
        let next = |n: u16| Some(n.saturating_add(1).min(MAX_BOOTS));
        self.next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .unwrap_or(MAX_BOOTS)
    }
}

/// What one log says of its proxy's clock, line by line.
#[derive(Debug)]
pub struct LogClock {
    register: Arc<Register>,
    boots: Vec<Boot>,
    current: usize,
    /// Requests by their hash, with the wall clock's time of `Start to schedule`.
    pending: VecDeque<(u64, i64)>,
    /// Lines by the zone of their prefix, in steps of a quarter of an hour.
    zones: BTreeMap<i64, u64>,
    zone_lines: u64,
}

/// One boot as one log shows it. An offset is wall clock minus stamp.
#[derive(Debug)]
struct Boot {
    number: u16,
    lines: u64,
    last: i64,
    /// By the prefixes, in the writer's zone: least and greatest offset.
    local: Option<Bounds>,
    pairs: Option<Pairs>,
    /// By the access log: the least offset, cut to milliseconds.
    ended: Option<i64>,
}

#[derive(Debug)]
struct Pairs {
    count: u64,
    greatest: i64,
    /// Sum of the differences to the first, for the mean.
    first: i64,
    sum: i64,
}

impl LogClock {
    /// Of one log file, or of a part of one; `register` is shared by all that are solved
    /// together.
    pub fn new(register: Arc<Register>) -> Self {
        Self {
            register,
            boots: Vec::new(),
            current: 0,
            pending: VecDeque::new(),
            zones: BTreeMap::new(),
            zone_lines: 0,
        }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.boots.is_empty() && self.zones.is_empty()
    }

    /// Takes the evidence of a proxy's action line, `line` being its whole text and
    /// `time` its stamp in nanoseconds. Returns what is to be kept as its time until
    /// [`Boots::wall`] can say what it means: a time of the wall clock is returned as it is.
    pub fn time(&mut self, line: &[u8], action: &str, request_id: &str, time: u64) -> u64 {
        if !is_since_boot(time) {
            self.wall(line, action, request_id, time);
            return time;
        }
        let stamp = time as i64;
        let written = prefix::written(line).map(|second| second * SECOND - stamp);
        let pair = (action == RECEIVED)
            .then(|| self.start_of(request_id))
            .flatten()
            .map(|start| start - stamp);
        let at = self.boot(stamp, written, pair);
        let boot = &mut self.boots[at];
        boot.lines += 1;
        boot.last = boot.last.max(stamp);
        if let Some(least) = written {
            let known = boot.local.unwrap_or((least, least + SECOND));
            boot.local = Some((known.0.max(least), known.1.min(least + SECOND)));
        }
        if let Some(offset) = pair {
            boot.pair(offset);
        }
        SINCE_BOOT | (u64::from(boot.number) << 48) | (time / 1_000)
    }

    /// Takes the evidence of a line that is no action: those of the access log have some.
    pub fn other(&mut self, line: &[u8]) {
        let Some(offset) = prefix::ended(line) else {
            return;
        };
        // A connection that is kept open ends long after its request: of all lines of a
        // boot the least offset is the nearest to the truth.
        let is = |boot: &&mut Boot| boot.ended.is_some_and(|e| (e - offset).abs() < LINGER);
        match self.boots.iter_mut().find(is) {
            Some(boot) => boot.ended = boot.ended.map(|known| known.min(offset)),
            None => self
                .boots
                .push(Boot::new(&self.register, i64::MIN, Some(offset))),
        }
    }

    fn wall(&mut self, line: &[u8], action: &str, request_id: &str, time: u64) {
        if time > LAST_TIME {
            return;
        }
        if action == START {
            if self.pending.len() == PENDING {
                self.pending.pop_front();
            }
            let id = self.register.hashes.hash_one(request_id);
            self.pending.push_back((id, time as i64));
        }
        if self.zone_lines < ZONE_LINES {
            self.zone_lines += 1;
            let zone = prefix::written(line).and_then(|s| zone(s * SECOND - time as i64));
            if let Some(zone) = zone {
                *self.zones.entry(zone).or_default() += 1;
            }
        }
    }

    fn start_of(&mut self, request_id: &str) -> Option<i64> {
        if self.pending.is_empty() {
            return None;
        }
        let id = self.register.hashes.hash_one(request_id);
        let at = self.pending.iter().rposition(|(known, _)| *known == id)?;
        self.pending.remove(at).map(|(_, start)| start)
    }

    /// The boot that a line belongs to.
    fn boot(&mut self, stamp: i64, written: Option<i64>, pair: Option<i64>) -> usize {
        let near = |a: i64, b: i64| (a - b).abs() <= SAME_BOOT;
        let is = |boot: &Boot| match (written, boot.local, pair, &boot.pairs) {
            (Some(written), Some((least, _)), ..) => near(written, least),
            (_, _, Some(pair), Some(known)) => near(pair, known.greatest),
            _ => boot.lines > 0 && stamp > boot.last - BACK,
        };
        if self.boots.get(self.current).is_some_and(is) {
            return self.current;
        }
        self.current = self.boots.iter().position(is).unwrap_or_else(|| {
            self.boots.push(Boot::new(&self.register, stamp, None));
            self.boots.len() - 1
        });
        self.current
    }
}

impl Boot {
    fn new(register: &Register, last: i64, ended: Option<i64>) -> Self {
        Self {
            number: register.number(),
            lines: 0,
            last,
            local: None,
            pairs: None,
            ended,
        }
    }

    fn pair(&mut self, offset: i64) {
        // A pair that the prefixes contradict is of two requests.
        let is_odd = |(least, greatest): (i64, i64)| {
            let off = |bound: i64| {
                let step = ZONE_STEP * SECOND;
                let rest = (bound - offset).rem_euclid(step);
                rest.min(step - rest)
            };
            off(least).min(off(greatest)) > SAME_BOOT
        };
        if self.local.is_some_and(is_odd) {
            return;
        }
        let pairs = self.pairs.get_or_insert(Pairs {
            count: 0,
            greatest: offset,
            first: offset,
            sum: 0,
        });
        pairs.count += 1;
        pairs.greatest = pairs.greatest.max(offset);
        pairs.sum += offset - pairs.first;
    }

    /// Offset and uncertainty, where something other than the prefixes says it.
    fn known(&self) -> Option<Known> {
        if let Some(pairs) = &self.pairs {
            let mean = pairs.first + pairs.sum / pairs.count as i64;
            return Some(Known {
                offset: pairs.greatest,
                uncertainty: (pairs.greatest - mean).max(MICRO),
                by: By::Pairs(pairs.count),
            });
        }
        self.ended.map(|least| Known {
            offset: least + MILLI / 2,
            uncertainty: MILLI / 2,
            by: By::AccessLog,
        })
    }
}

/// The zone, in its steps, of which this is the difference of prefix and wall clock.
fn zone(difference: i64) -> Option<i64> {
    let steps = (difference + ZONE_STEP * SECOND / 2).div_euclid(ZONE_STEP * SECOND);
    let rest = difference - steps * ZONE_STEP * SECOND;
    (rest.abs() < 120 * SECOND && steps.abs() <= 60).then_some(steps)
}

/// What the wall clock showed at a boot, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Known {
    offset: i64,
    uncertainty: i64,
    by: By,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum By {
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
type Bounds = (i64, i64);

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
