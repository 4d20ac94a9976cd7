//! Times that one worker sees and another one needs.
//!
//! Omni Proxy's master worker schedules the requests of all workers. It posts when it did so; the
//! request's own worker takes that out some milliseconds later, when the request moves on. What
//! nobody takes out makes room for what is newer.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::requests::Key;

/// Places, a power of two. Letters are taken out within milliseconds.
const SETS: usize = 512;
const WAYS: usize = 8;

/// What a letter says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Letter {
    /// When the request was given to a prefill node.
    PScheduled,
    /// When the request was given to a decode node.
    DScheduled,
}

impl Letter {
    /// How many kinds there are.
    pub(super) const COUNT: usize = 2;
}

/// Letters of all workers, in shared memory; all zero is empty.
#[repr(C)]
pub(crate) struct Mailbox {
    sets: [[Place; WAYS]; SETS],
}

/// Room for one letter.
#[repr(C)]
struct Place {
    /// Odd while somebody changes it. Who dies at that moment leaves a place that is lost.
    version: AtomicU64,
    key: [AtomicU64; 2],
    /// Nanoseconds since 1970; 0: there is no letter.
    time: AtomicU64,
}

impl Mailbox {
    /// Leaves a letter, in place of the oldest one if there is no room.
    pub(super) fn post(&self, key: Key, letter: Letter, time: u64) {
        let key = words(key, letter);
        let places = self.places(key);
        let mut order: [usize; WAYS] = std::array::from_fn(|at| at);
        order.sort_unstable_by_key(|at| {
            let place = &places[*at];
            (place.key() != key, place.time.load(Ordering::Relaxed))
        });
        for at in order {
            if places[at].change(|_, _| Some((key, time))).is_some() {
                return;
            }
        }
    }

    /// Takes a letter out, if it is there.
    pub(super) fn take(&self, key: Key, letter: Letter) -> Option<u64> {
        let key = words(key, letter);
        let places = self.places(key).iter();
        places.filter(|place| place.key() == key).find_map(|place| {
            let (_, time) = place.change(|found, _| (found == key).then_some(([0; 2], 0)))?;
            Some(time).filter(|time| *time != 0)
        })
    }

    fn places(&self, key: [u64; 2]) -> &[Place; WAYS] {
        &self.sets[key[0] as usize % SETS]
    }
}

impl Place {
    fn key(&self) -> [u64; 2] {
        [0, 1].map(|at| self.key[at].load(Ordering::Relaxed))
    }

    /// Replaces what is there by what `change` makes of it; the answer is what was there. None:
    /// somebody else is at it, or `change` does not want to.
    fn change(
        &self,
        change: impl FnOnce([u64; 2], u64) -> Option<([u64; 2], u64)>,
    ) -> Option<([u64; 2], u64)> {
        let version = self.version.load(Ordering::Relaxed) & !1;
        self.version
            .compare_exchange(version, version + 1, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        let found = (self.key(), self.time.load(Ordering::Relaxed));
        let changed = change(found.0, found.1);
        if let Some((key, time)) = changed {
            self.key[0].store(key[0], Ordering::Relaxed);
            self.key[1].store(key[1], Ordering::Relaxed);
            self.time.store(time, Ordering::Relaxed);
        }
        fence(Ordering::Release);
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
        changed.map(|_| found)
    }
}

/// A key that tells the letters of a request apart.
fn words(key: Key, letter: Letter) -> [u64; 2] {
    [(key >> 64) as u64, (key as u64) ^ (letter as u64 + 1)]
}
