//! The queue between the threads that record and the one that exports.
//!
//! ```text
//!  thread A ──► Ring A ─┐
//!  thread B ──► Ring B ─┼──► drain (exporter thread)
//!  thread C ──► Ring C ─┘
//! ```
//! Each recording thread owns a single-producer ring, so recording takes no lock
//! and waits for nobody. A full ring drops the record and counts it.

mod record;
mod ring;
mod sync;
mod writer;

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use record::PackedAttributes;
pub(crate) use record::{ActionRecord, Attributes, Bind, DecodedAction, DecodedPhase, DecodedSpan};
pub(crate) use record::{
    Cut, Encode, Kept, Limited, Literal, Measure, More, PhaseRecord, Record, SpanRecord,
};
pub(crate) use record::{kept_id, more};
use ring::Ring;

/// Distinguishes the queues of one process, so that a thread that outlives a
/// queue does not write into the wrong one.
static NEXT_QUEUE: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// This thread's ring of the queue that it used last, and that queue's id.
    static RING: Cell<Option<(u64, Arc<Ring>)>> = const { Cell::new(None) };
    /// Its rings of other queues; almost always none.
    static OTHER_RINGS: RefCell<Vec<(u64, Arc<Ring>)>> = const { RefCell::new(Vec::new()) };
}

/// Why a record is not in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is no room; it is counted.
    Full,
    /// It has more than is kept of its kind, see [`Cut`].
    TooLong,
}

/// A many-producer queue of records without shared state on the fast path.
pub(crate) struct Queue {
    id: u64,
    ring_words: usize,
    rings: Mutex<Vec<Arc<Ring>>>,
    /// Records lost with rings that are gone.
    lost_before: AtomicU64,
    wake: Box<dyn Fn() + Send + Sync>,
    wake_pending: AtomicBool,
}

impl Queue {
    /// `bytes_per_thread` is rounded up to a power of two. `wake` is called, at
    /// most once per drain, when there is enough in a ring for the reader to come.
    pub(crate) fn new(bytes_per_thread: usize, wake: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            id: NEXT_QUEUE.fetch_add(1, Ordering::Relaxed),
            ring_words: (bytes_per_thread / 8)
                .clamp(1 << 10, 1 << 27)
                .next_power_of_two(),
            rings: Mutex::new(Vec::new()),
            lost_before: AtomicU64::new(0),
            wake,
            wake_pending: AtomicBool::new(false),
        }
    }

    /// Tells it from every other queue of this process.
    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Copies a record into this thread's ring.
    #[inline]
    pub(crate) fn push(&self, record: &impl Measure) -> Result<(), Refused> {
        let Some(ring) = self.take_ring() else {
            self.lost_before.fetch_add(1, Ordering::Relaxed);
            return Err(Refused::Full);
        };
        let pushed = match record.encode(ring.room()) {
            Some(words) => {
                ring.publish(words);
                Ok(())
            }
            None => push_measured(&ring, record),
        };
        self.put_back(ring, pushed == Err(Refused::Full));
        pushed
    }

    /// The same, with no second look at a record that found no room or was too long: it is
    /// to be pushed then.
    // No closure of any of this would be inlined everywhere.
    #[inline(always)]
    pub(crate) fn try_push(&self, record: &impl Encode) -> bool {
        let Some(ring) = self.take_ring() else {
            return false;
        };
        let written = record.encode(ring.room());
        if let Some(words) = written {
            ring.publish(words);
        }
        self.put_back(ring, false);
        written.is_some()
    }

    /// This queue's ring of the thread, out of its place. None: the thread is ending, and has
    /// lost what it had of its own.
    #[inline(always)]
    fn take_ring(&self) -> Option<Arc<Ring>> {
        match RING.try_with(Cell::take) {
            Ok(Some((queue, ring))) if queue == self.id => Some(ring),
            Ok(other) => Some(self.find_ring(other)),
            Err(_) => None,
        }
    }

    #[inline(always)]
    fn put_back(&self, ring: Arc<Ring>, is_full: bool) {
        let is_due = is_full || ring.is_due();
        // A thread that is ending has no place for it any more.
        let _ = RING.try_with(|place| place.set(Some((self.id, ring))));
        if is_due && !self.wake_pending.swap(true, Ordering::AcqRel) {
            (self.wake)();
        }
    }

    /// This queue's ring of the thread, made where there is none; `other` is another queue's.
    #[cold]
    fn find_ring(&self, other: Option<(u64, Arc<Ring>)>) -> Arc<Ring> {
        let find = |others: &RefCell<Vec<(u64, Arc<Ring>)>>| {
            let others = &mut *others.borrow_mut();
            others.extend(other);
            // Rings of queues that have ended are dropped here.
            others.retain(|(_, ring)| Arc::strong_count(ring) > 1);
            let at = others.iter().position(|(queue, _)| *queue == self.id)?;
            Some(others.swap_remove(at).1)
        };
        let found = OTHER_RINGS.try_with(find).ok().flatten();
        found.unwrap_or_else(|| self.add_ring())
    }

    fn add_ring(&self) -> Arc<Ring> {
        let ring = Arc::new(Ring::new(self.ring_words));
        self.lock().push(Arc::clone(&ring));
        ring
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Ring>>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands every record that is in the queue now to `consume`, ring by ring,
    /// each in the order it was recorded. Only one thread may drain.
    pub(crate) fn drain(&self, mut consume: impl FnMut(Record<'_>)) {
        self.wake_pending.store(false, Ordering::Release);
        let rings: Vec<Arc<Ring>> = self.lock().clone();
        let mut scratch = Vec::new();
        for ring in &rings {
            ring.drain(&mut scratch, |words| {
                // Texts were written as little-endian words.
                words.iter_mut().for_each(|word| *word = word.to_le());
                match record::decode(bytemuck::cast_slice(words)) {
                    Some(record) => consume(record),
                    None => {
                        debug_assert!(false, "a record that cannot be decoded");
                        ring.lose();
                    }
                }
            });
        }
        drop(rings);
        self.lock().retain(|ring| {
            // One count is ours: its thread has ended.
            let ended = Arc::strong_count(ring) == 1 && ring.is_empty();
            if ended {
                self.lost_before.fetch_add(ring.lost(), Ordering::Relaxed);
            }
            !ended
        });
    }

    /// Records lost because a ring was full.
    pub(crate) fn lost(&self) -> u64 {
        let now: u64 = self.lock().iter().map(|ring| ring.lost()).sum();
        now + self.lost_before.load(Ordering::Relaxed)
    }
}

/// For a record that found no room where it could be of any length.
#[cold]
fn push_measured(ring: &Ring, record: &impl Measure) -> Result<(), Refused> {
    let words = record.words().ok_or(Refused::TooLong)?;
    match ring.push_measured(words, |room| record.encode(room)) {
        true => Ok(()),
        false => Err(Refused::Full),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Action, ActionName, Attributes};
    use crate::key::KeyRef;
    use crate::queue::record::ActionRecord;
    use crate::value::ValueRef;
    use crate::vocabulary::ActionId;

    fn action(time: u64, request_id: &str) -> ActionRecord<'_> {
        action_with(time, request_id, &[])
    }

    fn action_with<'a>(
        time: u64,
        request_id: &'a str,
        attributes: Attributes<'a>,
    ) -> ActionRecord<'a> {
        let action = Action {
            name: "n",
            time,
            request_id,
            occurrence: 0,
            context: None,
            attributes,
        };
        ActionRecord::new(Some(ActionId(7)), false, &action, Kept::of_cut(attributes))
    }

    /// Miri takes its time.
    const RECORDS: u64 = if cfg!(miri) { 40 } else { 2_000 };

    #[test]
    fn threads_lose_nothing_and_keep_their_order() {
        let queue = Arc::new(Queue::new(RECORDS as usize * 512, Box::new(|| {})));
        let threads: Vec<_> = (0..4)
            .map(|t| {
                let queue = Arc::clone(&queue);
                std::thread::spawn(move || {
                    let id = format!("request-{t}");
                    for time in 0..RECORDS {
                        assert_eq!(queue.push(&action(time, &id)), Ok(()));
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let mut seen = std::collections::BTreeMap::<String, Vec<u64>>::new();
        queue.drain(|record| match record {
            Record::Action(event) => {
                assert_eq!(event.name, ActionName::Known(ActionId(7)));
                seen.entry(event.request_id.to_owned())
                    .or_default()
                    .push(event.time);
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(seen.len(), 4);
        assert!(
            seen.values()
                .all(|times| times.iter().copied().eq(0..RECORDS))
        );
        assert_eq!((queue.lost(), queue.lock().len()), (0, 0));
    }

    #[test]
    fn a_record_is_the_same_wherever_in_the_ring_it_lies() {
        let queue = Queue::new(0, Box::new(|| {}));
        let (value, key) = ("v".repeat(77), "k".repeat(13));
        let attributes = [
            (KeyRef::Text(&key), ValueRef::Str(&value)),
            (KeyRef::Text("n"), ValueRef::I64(-1)),
        ];
        let simple = action(1, "request");
        let long = action_with(2, "request", &attributes);
        let said = |record: &ActionRecord<'_>| {
            assert_eq!(queue.push(record), Ok(()));
            let mut said = String::new();
            queue.drain(|record| match record {
                Record::Action(action) => {
                    said = format!("{action:?} {:?}", action.attributes.to_vec());
                }
                other => panic!("{other:?}"),
            });
            said
        };
        let (first_simple, first_long) = (said(&simple), said(&long));
        // Of 4 and of 20 words: the ring's end comes in the midst of them.
        for _ in 0..200 {
            assert_eq!(
                (said(&simple), said(&long)),
                (first_simple.clone(), first_long.clone())
            );
        }
        assert_eq!(queue.lost(), 0);
    }

    #[test]
    fn a_thread_has_one_ring_in_each_queue_until_the_queue_is_gone() {
        let queues = [(); 2].map(|()| Queue::new(0, Box::new(|| {})));
        for time in 0..9 {
            for queue in &queues {
                assert_eq!(queue.push(&action(time, "r")), Ok(()));
            }
        }
        for queue in &queues {
            let mut times = Vec::new();
            queue.drain(|record| match record {
                Record::Action(action) => times.push(action.time),
                other => panic!("{other:?}"),
            });
            assert_eq!(times, Vec::from_iter(0..9));
        }
        let rings = queues.each_ref().map(|queue| {
            let rings = queue.lock();
            assert_eq!(rings.len(), 1);
            Arc::downgrade(&rings[0])
        });
        drop(queues);
        // The next queue's first record looks at what is left.
        assert_eq!(Queue::new(0, Box::new(|| {})).push(&action(1, "r")), Ok(()));
        assert!(rings.iter().all(|ring| ring.strong_count() == 0));
    }

    #[test]
    fn a_thread_that_records_waits_for_no_lock() {
        let queue = Queue::new(1 << 16, Box::new(|| {}));
        // The first record makes the ring and takes its place among the others.
        assert_eq!(queue.push(&action(1, "r")), Ok(()));
        let _held = queue.lock();
        assert_eq!(queue.push(&action(2, "r")), Ok(()));
    }

    #[test]
    fn a_full_ring_counts_what_it_refuses_and_wakes_the_reader_once() {
        let woken = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&woken);
        let queue = Queue::new(
            0,
            Box::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
            }),
        );
        let mut pushed = 0;
        while queue.push(&action(1, "r")).is_ok() {
            pushed += 1;
        }
        let mut drained = 0;
        queue.drain(|_| drained += 1);
        assert_eq!(
            (drained, queue.lost(), woken.load(Ordering::Relaxed)),
            (pushed, 1, 1)
        );
        assert_eq!(queue.push(&action(2, "r")), Ok(()));
    }
}
