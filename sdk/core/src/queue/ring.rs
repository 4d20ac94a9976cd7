//! A single-producer, single-consumer ring of records of any length.
//!
//! The ring is an array of atomic words rather than bytes: plain relaxed loads
//! and stores cost the same as ordinary ones, and no `unsafe` is needed. A record's
//! first word says how many words it has; a record does not wrap.
//!
//! `tests/ring_model.rs` compiles this file with loom's atomics.

use super::sync::{AtomicU64, AtomicUsize, Ordering, zeroed};

/// The longest record, in words: its length has so many bits.
pub(crate) const MAX_WORDS: usize = u16::MAX as usize;

/// Most words of a record that is written without knowing how long it will be.
const MAX_UNMEASURED: usize = MAX_WORDS / 2;

/// With so many words waiting the reader should come: what it takes then is still in the
/// processor's caches, and makes few batches at once.
const DUE_WORDS: usize = 256 << 10 >> 3;

/// Bits 16 to 23 of a first word are the record's kind; this one is only room.
pub(crate) const KIND_SKIP: u64 = 0;

/// Words of the record that starts with this one.
fn length(first: u64) -> usize {
    // Never 0, or a reader would not get past it.
    ((first & 0xffff) as usize).max(1)
}

fn is_skip(first: u64) -> bool {
    first >> 16 & 0xff == KIND_SKIP
}

/// Keeps the producer's and the consumer's index on cache lines of their own.
#[repr(align(128))]
struct Aligned<T>(T);

pub(crate) struct Ring {
    words: Box<[AtomicU64]>,
    /// Next word to write; the producer stores it for the consumer.
    head: Aligned<AtomicUsize>,
    /// Next word to read; the consumer stores it for the producer.
    tail: Aligned<AtomicUsize>,
    /// The producer's own: it seldom touches a line that the consumer uses.
    producer: Aligned<Producer>,
    /// The consumer's copy of `tail`.
    consumer: Aligned<AtomicUsize>,
    lost: AtomicU64,
}

struct Producer {
    /// Its copy of `head`.
    head: AtomicUsize,
    /// Its last look at `tail`.
    tail: AtomicUsize,
}

impl Ring {
    /// `words` is a power of two.
    pub(crate) fn new(words: usize) -> Self {
        Self {
            words: zeroed(words),
            head: Aligned(AtomicUsize::new(0)),
            tail: Aligned(AtomicUsize::new(0)),
            producer: Aligned(Producer {
                head: AtomicUsize::new(0),
                tail: AtomicUsize::new(0),
            }),
            consumer: Aligned(AtomicUsize::new(0)),
            lost: AtomicU64::new(0),
        }
    }

    /// Room for one record that is not known to be long: what is written there is one with
    /// [`Self::publish`]. It is too short at the ring's end, and until the reader's progress has
    /// been looked at, by [`Self::push_measured`].
    #[inline(always)]
    pub(crate) fn room(&self) -> &[AtomicU64] {
        let head = self.producer.0.head.load(Ordering::Relaxed);
        let used = head.wrapping_sub(self.producer.0.tail.load(Ordering::Relaxed));
        let at = head & (self.words.len() - 1);
        let free = (self.words.len() - used).min(MAX_UNMEASURED);
        let end = self.words.len().min(at + free);
        self.words.get(at..end).unwrap_or_default()
    }

    /// The first words of [`Self::room`] are a record, the first of which says how many.
    #[inline(always)]
    pub(crate) fn publish(&self, words: usize) {
        let head = self.producer.0.head.load(Ordering::Relaxed);
        let head = head.wrapping_add(words);
        self.producer.0.head.store(head, Ordering::Relaxed);
        self.head.0.store(head, Ordering::Release);
    }

    /// Has `write` fill a record of exactly `needed` words, the first of which says
    /// so. False: there is no room; it is counted.
    pub(crate) fn push_measured(
        &self,
        needed: usize,
        write: impl FnOnce(&[AtomicU64]) -> Option<usize>,
    ) -> bool {
        let head = self.producer.0.head.load(Ordering::Relaxed);
        let at = head & (self.words.len() - 1);
        let to_end = self.words.len() - at;
        // What is left at the end is skipped.
        let skipped = if to_end < needed { to_end } else { 0 };
        if !self.has_room(head, skipped + needed) || needed > MAX_WORDS {
            self.lose();
            return false;
        }
        let begin = if skipped > 0 {
            // Shorter than the record, so its length has room too.
            self.words[at].store(skipped as u64 | KIND_SKIP << 16, Ordering::Relaxed);
            0
        } else {
            at
        };
        let written = write(&self.words[begin..begin + needed]);
        debug_assert_eq!(written, Some(needed));
        self.publish(skipped + needed);
        true
    }

    fn has_room(&self, head: usize, needed: usize) -> bool {
        let free = |tail: usize| self.words.len() - head.wrapping_sub(tail);
        if free(self.producer.0.tail.load(Ordering::Relaxed)) >= needed {
            return true;
        }
        let tail = self.tail.0.load(Ordering::Acquire);
        self.producer.0.tail.store(tail, Ordering::Relaxed);
        free(tail) >= needed
    }

    /// Copies each record that is there now to `scratch` and hands it to `consume`.
    pub(crate) fn drain(&self, scratch: &mut Vec<u64>, mut consume: impl FnMut(&mut [u64])) {
        let head = self.head.0.load(Ordering::Acquire);
        let mut tail = self.consumer.0.load(Ordering::Relaxed);
        while tail != head {
            let at = tail & (self.words.len() - 1);
            let first = self.words[at].load(Ordering::Relaxed);
            let words = length(first);
            tail = tail.wrapping_add(words);
            self.consumer.0.store(tail, Ordering::Relaxed);
            if is_skip(first) {
                self.tail.0.store(tail, Ordering::Release);
                continue;
            }
            let record = self.words.get(at..at + words).unwrap_or_default();
            scratch.clear();
            scratch.extend(record.iter().map(|word| word.load(Ordering::Relaxed)));
            // The copy is done: the producer may have the room while we work.
            self.tail.0.store(tail, Ordering::Release);
            consume(scratch);
        }
    }

    /// Whether the reader should come now: the rest is for the time until it does.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        let due = (self.words.len() / 4).min(DUE_WORDS);
        let head = self.producer.0.head.load(Ordering::Relaxed);
        let used = head.wrapping_sub(self.producer.0.tail.load(Ordering::Relaxed));
        used > due && {
            let tail = self.tail.0.load(Ordering::Acquire);
            self.producer.0.tail.store(tail, Ordering::Relaxed);
            head.wrapping_sub(tail) > due
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head.0.load(Ordering::Acquire) == self.tail.0.load(Ordering::Acquire)
    }

    /// Counts a record that could not be kept.
    #[cold]
    pub(crate) fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}
