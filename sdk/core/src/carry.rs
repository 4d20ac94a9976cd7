//! What must travel with a request between the processes of one node: its
//! context, its canonical id, and the start times of phases that end elsewhere.

use std::fmt::Write as _;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::context::SpanContext;
use crate::id::canonical_request_id;
use crate::vocabulary::ActionId;

/// Key of the canonical request id in a carrier.
pub(crate) const REQUEST_ID: &str = "omnitrace-request-id";
/// Key of the start times in a carrier: `<action>=<ns>,…`.
pub(crate) const STARTS: &str = "omnitrace-starts";
/// Key of the trace context in a carrier.
pub(crate) const TRACEPARENT: &str = "traceparent";

/// Parts of the table, each with a lock of its own.
const SHARDS: usize = 16;
/// Requests remembered in each, 16,384 in all; the oldest make room. What is
/// forgotten is only not carried: the offline side still knows it.
const SHARD_CAPACITY: usize = 1_024;

/// What is known of one request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Carried {
    pub(crate) canonical: Arc<str>,
    pub(crate) context: Option<SpanContext>,
    pub(crate) starts: Vec<(ActionId, u64)>,
}

/// The requests of this process, by the id it uses. A lock is held for one look-up
/// at a time, by few actions of a request, and threads seldom want the same one.
#[derive(Default)]
pub(crate) struct Carry {
    shards: [Shard; SHARDS],
    hashes: DefaultHashBuilder,
    /// Something came with some request, ever.
    is_bound: AtomicBool,
}

/// A lock on a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Shard(Mutex<Requests>);

/// A ring: when it is full, a new request takes the oldest one's place.
#[derive(Default)]
struct Requests {
    index: HashTable<usize>,
    ring: Vec<Request>,
    /// Place of the oldest, once the ring is full.
    oldest: usize,
}

struct Request {
    hash: u64,
    id: Arc<str>,
    carried: Carried,
}

impl Requests {
    fn find(&self, hash: u64, id: &str) -> Option<usize> {
        let same = |at: &usize| {
            let request = &self.ring[*at];
            request.hash == hash && *request.id == *id
        };
        self.index.find(hash, same).copied()
    }

    /// What is known of a request; nothing yet if it is a new one.
    fn entry(&mut self, hash: u64, id: &str) -> &mut Carried {
        let at = match self.find(hash, id) {
            Some(at) => at,
            None => self.add(hash, id),
        };
        &mut self.ring[at].carried
    }

    fn add(&mut self, hash: u64, id: &str) -> usize {
        let id: Arc<str> = id.into();
        let request = |starts| Request {
            hash,
            id: Arc::clone(&id),
            carried: Carried {
                canonical: Arc::clone(&id),
                context: None,
                starts,
            },
        };
        let at = if self.ring.len() < SHARD_CAPACITY {
            self.ring.push(request(Vec::new()));
            self.ring.len() - 1
        } else {
            let at = self.oldest;
            self.oldest = (at + 1) % SHARD_CAPACITY;
            let place = &mut self.ring[at];
            if let Ok(entry) = self.index.find_entry(place.hash, |other| *other == at) {
                entry.remove();
            }
            let mut starts = std::mem::take(&mut place.carried.starts);
            starts.clear();
            *place = request(starts);
            at
        };
        let ring = &self.ring;
        self.index.insert_unique(hash, at, |at| ring[*at].hash);
        at
    }
}

impl Carry {
    fn with<T>(&self, request_id: &str, f: impl FnOnce(&mut Requests, u64, &str) -> T) -> T {
        let id = canonical_request_id(request_id);
        let hash = self.hashes.hash_one(id);
        // Bits that the table itself makes no use of.
        let shard = &self.shards[(hash >> 32) as usize % SHARDS];
        let mut requests = shard.0.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut requests, hash, id)
    }

    /// Notes the start of a phase that ends in another process.
    pub(crate) fn start(&self, request_id: &str, action: ActionId, time: u64) {
        self.with(request_id, |requests, hash, id| {
            let starts = &mut requests.entry(hash, id).starts;
            match starts.iter_mut().find(|(a, _)| *a == action) {
                Some((_, earliest)) => *earliest = time.min(*earliest),
                None => starts.push((action, time)),
            }
        });
    }

    /// Notes what came with a request.
    pub(crate) fn bind(&self, request_id: &str, canonical: &str, context: Option<SpanContext>) {
        // Written once: others read the cache line that it is on.
        if !self.is_bound.load(Ordering::Relaxed) {
            self.is_bound.store(true, Ordering::Relaxed);
        }
        self.with(request_id, |requests, hash, id| {
            let carried = requests.entry(hash, id);
            if carried.context != context && context.is_some() {
                // The same id again is a new try: its old starts are not its own.
                carried.starts.clear();
                carried.context = context;
            }
            if *carried.canonical != *canonical {
                carried.canonical = canonical.into();
            }
        });
    }

    /// Canonical id and context of a request with which anything came, and of some
    /// others.
    pub(crate) fn bound(&self, request_id: &str) -> Option<(Arc<str>, Option<SpanContext>)> {
        if !self.is_bound.load(Ordering::Relaxed) {
            return None;
        }
        self.with(request_id, |requests, hash, id| {
            let carried = &requests.ring[requests.find(hash, id)?].carried;
            Some((Arc::clone(&carried.canonical), carried.context))
        })
    }

    /// All that is known of a request.
    pub(crate) fn get(&self, request_id: &str) -> Option<Carried> {
        self.with(request_id, |requests, hash, id| {
            let at = requests.find(hash, id)?;
            Some(requests.ring[at].carried.clone())
        })
    }
}

/// Start times as text.
pub(crate) fn write_starts(starts: &[(ActionId, u64)]) -> String {
    let mut text = String::new();
    for (action, time) in starts {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "{}{}={time}",
            if text.is_empty() { "" } else { "," },
            action.0
        );
    }
    text
}

/// Start times from text; what is not one is left out.
pub(crate) fn read_starts(text: &str, actions: usize) -> impl Iterator<Item = (ActionId, u64)> {
    text.split(',').filter_map(move |pair| {
        let (action, time) = pair.split_once('=')?;
        let action: u16 = action.trim().parse().ok()?;
        Some((ActionId(action), time.trim().parse().ok()?))
            .filter(|_| usize::from(action) < actions)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_survive_the_carrier_and_rubbish_does_not() {
        let starts = vec![(ActionId(7), 5), (ActionId(15), 6)];
        let text = write_starts(&starts);
        assert_eq!(text, "7=5,15=6");
        assert_eq!(read_starts(&text, 40).collect::<Vec<_>>(), starts);
        assert_eq!(
            read_starts("99=1,x=2,7=,7=8", 40).collect::<Vec<_>>(),
            [(ActionId(7), 8)]
        );
    }

    #[test]
    fn the_same_id_with_another_context_is_a_new_try() {
        let context = |text: &str| SpanContext::parse(text.as_bytes());
        let first = context("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let second = context("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b8-01");
        let carry = Carry::default();
        assert_eq!(carry.bound("own"), None);
        carry.bind("chatcmpl-own", "r", first);
        carry.start("own", ActionId(1), 9);
        // What says nothing new changes nothing.
        carry.bind("own", "r", None);
        carry.bind("own", "r", first);
        let starts = vec![(ActionId(1), 9)];
        assert_eq!(
            carry.get("own"),
            Some(Carried {
                canonical: "r".into(),
                context: first,
                starts,
            })
        );
        carry.bind("own", "s", second);
        assert_eq!(carry.get("own").unwrap().starts, []);
        assert_eq!(carry.bound("own"), Some(("s".into(), second)));
        assert_eq!(carry.bound("other"), None);
    }

    #[test]
    fn the_earliest_start_counts_and_the_oldest_request_makes_room() {
        let carry = Carry::default();
        carry.start("chatcmpl-r", ActionId(1), 9);
        carry.start("r", ActionId(1), 7);
        assert_eq!(carry.get("r").unwrap().starts, [(ActionId(1), 7)]);
        // Enough for each part of the table to be full.
        for i in 0..2 * SHARDS * SHARD_CAPACITY {
            carry.start(&format!("other-{i}"), ActionId(1), 1);
        }
        assert_eq!(carry.get("r"), None);
        let kept = |shard: &Shard| {
            let requests = shard.0.lock().unwrap();
            (requests.ring.len(), requests.index.len())
        };
        assert!(
            carry
                .shards
                .iter()
                .all(|shard| kept(shard) == (SHARD_CAPACITY, SHARD_CAPACITY))
        );
        let newest = format!("other-{}", 2 * SHARDS * SHARD_CAPACITY - 1);
        assert_eq!(carry.get(&newest).unwrap().starts, [(ActionId(1), 1)]);
    }
}
