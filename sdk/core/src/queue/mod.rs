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

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use record::PackedAttributes;
pub(crate) use record::{ActionRecord, Attributes, Bind, DecodedAction, DecodedPhase, DecodedSpan};
pub(crate) use record::{Cut, Encode, Kept, Limited, More, PhaseRecord, Record, SpanRecord};
pub(crate) use record::{kept_id, more};
use ring::Ring;

/// Distinguishes the queues of one process, so that a thread that outlives a
/// queue does not write into the wrong one.
static NEXT_QUEUE: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// This thread's rings; almost always one.
    static RINGS: RefCell<Vec<(u64, Arc<Ring>)>> = const { RefCell::new(Vec::new()) };
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
    pub(crate) fn push(&self, record: &impl Encode) -> Result<(), Refused> {
        let push = |rings: &RefCell<Vec<(u64, Arc<Ring>)>>| {
            let rings = &mut *rings.borrow_mut();
            if rings.first().is_none_or(|(queue, _)| *queue != self.id) {
                self.bring_forward(rings);
            }
            let Some((_, ring)) = rings.first() else {
                return Err(Refused::Full);
            };
            let pushed = match ring.push(|room| record.encode(room)) {
                true => Ok(()),
                false => push_measured(ring, record),
            };
            if (pushed == Err(Refused::Full) || ring.is_due())
                && !self.wake_pending.swap(true, Ordering::AcqRel)
            {
                (self.wake)();
            }
            pushed
        };
        // A thread that is ending, and drops what it still has, may have lost its rings.
        RINGS.try_with(push).unwrap_or_else(|_| {
            self.lost_before.fetch_add(1, Ordering::Relaxed);
            Err(Refused::Full)
        })
    }

    /// Puts this queue's ring of the thread in front, made where there is none.
    #[cold]
    fn bring_forward(&self, rings: &mut Vec<(u64, Arc<Ring>)>) {
        match rings.iter().position(|(queue, _)| *queue == self.id) {
            Some(at) => rings.swap(0, at),
            None => {
                // Rings of queues that have ended are dropped here.
                rings.retain(|(_, ring)| Arc::strong_count(ring) > 1);
                rings.insert(0, (self.id, self.add_ring()));
            }
        }
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
fn push_measured(ring: &Ring, record: &impl Encode) -> Result<(), Refused> {
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
