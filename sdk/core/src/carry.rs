//! What must travel with a request between the processes of one node: what came with
//! it, its canonical id, and the start times of phases that end elsewhere.

use std::fmt::Write as _;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::context::SpanContext;
use crate::id::canonical_request_id;
use crate::propagation::Propagated;
use crate::vocabulary::ActionId;

/// Key of the canonical request id in a carrier.
pub(crate) const REQUEST_ID: &str = "omnitrace-request-id";
/// Key of the start times in a carrier: `<action>=<ns>,…`.
pub(crate) const STARTS: &str = "omnitrace-starts";

/// Parts of the table, each with a lock of its own.
const SHARDS: usize = 16;
/// Requests remembered in each, 16,384 in all; the oldest make room. What is
/// forgotten is only not carried: the offline side still knows it.
const SHARD_CAPACITY: usize = 1_024;
/// Bytes of baggage and tracestate remembered in each, 8 MiB in all; a client may
/// send 8 KiB with each request.
const SHARD_TEXT_CAPACITY: usize = (8 << 20) / SHARDS;

/// What is known of one request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Carried {
    pub(crate) canonical: Arc<str>,
    pub(crate) context: Option<SpanContext>,
    pub(crate) passing: Passing,
    pub(crate) starts: Vec<(ActionId, u64)>,
}

/// What came with a request and goes on with it as it came.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Passing {
    debug: bool,
    tracestate: Option<Arc<str>>,
    baggage: Option<Arc<str>>,
}

impl Passing {
    pub(crate) fn of(propagated: &Propagated<'_>) -> Self {
        Self {
            debug: propagated.debug,
            tracestate: propagated.tracestate.map(Arc::from),
            baggage: propagated.baggage.map(Arc::from),
        }
    }

    /// Nothing but a context has come.
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// W3C `tracestate`; may be empty.
    pub(crate) fn tracestate(&self) -> &str {
        self.tracestate.as_deref().unwrap_or_default()
    }

    fn len(&self) -> usize {
        let text = [&self.tracestate, &self.baggage].into_iter().flatten();
        text.map(|text| text.len()).sum()
    }

    /// The same with the context that it goes with.
    pub(crate) fn with(&self, context: Option<SpanContext>) -> Propagated<'_> {
        Propagated {
            context,
            deferred: false,
            debug: self.debug,
            tracestate: self.tracestate.as_deref(),
            baggage: self.baggage.as_deref(),
        }
    }
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
    /// Bytes of what they pass on.
    text: usize,
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

    /// Where a request is; a new one is put somewhere.
    fn place(&mut self, hash: u64, id: &str) -> usize {
        match self.find(hash, id) {
            Some(at) => at,
            None => self.add(hash, id),
        }
    }

    fn add(&mut self, hash: u64, id: &str) -> usize {
        let id: Arc<str> = id.into();
        let request = |starts| Request {
            hash,
            id: Arc::clone(&id),
            carried: Carried {
                canonical: Arc::clone(&id),
                context: None,
                passing: Passing::default(),
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
            self.text -= place.carried.passing.len();
            let mut starts = std::mem::take(&mut place.carried.starts);
            starts.clear();
            *place = request(starts);
            at
        };
        let ring = &self.ring;
        self.index.insert_unique(hash, at, |at| ring[*at].hash);
        at
    }

    /// Notes what a request passes on. Where it becomes too much, the oldest
    /// requests pass nothing on any more.
    fn pass(&mut self, at: usize, passing: Passing) {
        self.text += passing.len();
        let old = std::mem::replace(&mut self.ring[at].carried.passing, passing);
        self.text -= old.len();
        let len = self.ring.len();
        let first = if len < SHARD_CAPACITY { 0 } else { self.oldest };
        for other in (first..first + len).map(|place| place % len) {
            if self.text <= SHARD_TEXT_CAPACITY {
                break;
            }
            // The newest of all is kept, however long it is.
            if other != at {
                let forgotten = std::mem::take(&mut self.ring[other].carried.passing);
                self.text -= forgotten.len();
            }
        }
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
            let at = requests.place(hash, id);
            let starts = &mut requests.ring[at].carried.starts;
            match starts.iter_mut().find(|(a, _)| *a == action) {
                Some((_, earliest)) => *earliest = time.min(*earliest),
                None => starts.push((action, time)),
            }
        });
    }

    /// Notes what came with a request, its context as it counts here.
    pub(crate) fn bind(
        &self,
        request_id: &str,
        canonical: &str,
        context: Option<SpanContext>,
        propagated: &Propagated<'_>,
    ) {
        // Written once: others read the cache line that it is on.
        if !self.is_bound.load(Ordering::Relaxed) {
            self.is_bound.store(true, Ordering::Relaxed);
        }
        let passing = Passing::of(propagated);
        self.with(request_id, |requests, hash, id| {
            let at = requests.place(hash, id);
            let carried = &mut requests.ring[at].carried;
            let renewed = carried.context != context && context.is_some();
            if renewed {
                // The same id again is a new try: what it had is not its own.
                carried.starts.clear();
                carried.context = context;
            }
            if *carried.canonical != *canonical {
                carried.canonical = canonical.into();
            }
            if renewed || passing != Passing::default() {
                requests.pass(at, passing);
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
        let nothing = Propagated::default();
        carry.bind("chatcmpl-own", "r", first, &nothing);
        carry.start("own", ActionId(1), 9);
        // What says nothing new changes nothing.
        carry.bind("own", "r", None, &nothing);
        carry.bind("own", "r", first, &nothing);
        let starts = vec![(ActionId(1), 9)];
        assert_eq!(
            carry.get("own"),
            Some(Carried {
                canonical: "r".into(),
                context: first,
                passing: Passing::default(),
                starts,
            })
        );
        carry.bind("own", "s", second, &nothing);
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

    #[test]
    fn too_much_baggage_is_forgotten_oldest_first_and_what_is_left_is_counted_right() {
        let carry = Carry::default();
        let long = "k=".to_owned() + &"v".repeat(8190);
        let baggage = |text| Propagated {
            baggage: Some(text),
            ..Propagated::default()
        };
        for i in 0..3000 {
            let id = format!("request-{i}");
            // The second time takes the first one's place.
            carry.bind(&id, &id, None, &baggage("short=1"));
            carry.bind(&id, &id, None, &baggage(&long));
        }
        for shard in &carry.shards {
            let requests = shard.0.lock().unwrap();
            let passing = requests.ring.iter().map(|r| r.carried.passing.len());
            assert_eq!(requests.text, SHARD_TEXT_CAPACITY / long.len() * long.len());
            assert_eq!(passing.sum::<usize>(), requests.text);
        }
        let newest = carry.get("request-2999").unwrap();
        assert_eq!(newest.passing.with(None), baggage(&long));
        let oldest = carry.get("request-0").unwrap();
        assert_eq!(oldest.passing, Passing::default());
    }
}
