//! What a log says of its proxy's clock, line by line: the evidence of its boots.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::boots::{Bounds, By, Known, SAME_BOOT};
use super::prefix::{self, SECOND, ZONE_STEP, zone};

pub(super) const START: &str = "Start to schedule";
pub(super) const RECEIVED: &str = "Time received";

const MICRO: i64 = 1_000;
pub(super) const MILLI: i64 = 1_000_000;
/// Lines of the access log whose offsets differ by less belong to one boot.
const LINGER: i64 = 120 * SECOND;
/// Without a prefix: a stamp that is this much before the last one is another boot's.
const BACK: i64 = 60 * SECOND;
/// `Start to schedule` lines that wait for the other half of their pair.
const PENDING: usize = 256;
/// Lines of a log that are asked for its time zone.
const ZONE_LINES: u64 = 64;
/// The year 2116: a later time is none, and differences up to here fit 64 bits.
const LAST_TIME: u64 = 1 << 62;

/// Marks a time since boot: bit 63, then 15 bits for the boot and 48 for microseconds.
pub(super) const SINCE_BOOT: u64 = 1 << 63;
pub(super) const MICROS: u64 = (1 << 48) - 1;
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
    pub(super) boots: Vec<Boot>,
    current: usize,
    /// Requests by their hash, with the wall clock's time of `Start to schedule`.
    pending: VecDeque<(u64, i64)>,
    /// Lines by the zone of their prefix, in steps of a quarter of an hour.
    pub(super) zones: BTreeMap<i64, u64>,
    zone_lines: u64,
}

/// One boot as one log shows it. An offset is wall clock minus stamp.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) number: u16,
    pub(super) lines: u64,
    last: i64,
    /// By the prefixes, in the writer's zone: least and greatest offset.
    pub(super) local: Option<Bounds>,
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
    pub(super) fn known(&self) -> Option<Known> {
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
