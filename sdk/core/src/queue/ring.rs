//! A single-producer, single-consumer ring of variable-length records.
//!
//! The ring is an array of atomic words rather than bytes: plain relaxed loads
//! and stores cost the same as ordinary ones, and no `unsafe` is needed.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::encode::tail_word;

use super::record::{self, Encode, Record};

/// Keeps the producer's and the consumer's index on cache lines of their own.
#[repr(align(128))]
struct Aligned<T>(T);

pub(super) struct Ring {
    words: Box<[AtomicU64]>,
    /// Next word to write; only the producer stores it.
    head: Aligned<AtomicUsize>,
    /// Next word to read; only the consumer stores it.
    tail: Aligned<AtomicUsize>,
    /// The producer's last look at `tail`, so that it seldom touches that line.
    seen_tail: Aligned<AtomicUsize>,
    lost: AtomicU64,
}

impl Ring {
    /// `words` is a power of two.
    pub(super) fn new(words: usize) -> Self {
        Self {
            // Zeroed by the allocator: pages are touched only when written.
            words: bytemuck::zeroed_slice_box(words),
            head: Aligned(AtomicUsize::new(0)),
            tail: Aligned(AtomicUsize::new(0)),
            seen_tail: Aligned(AtomicUsize::new(0)),
            lost: AtomicU64::new(0),
        }
    }

    /// False: there is no room; it is counted.
    #[inline]
    pub(super) fn push(&self, record: &impl Encode) -> bool {
        let needed = record.words();
        let head = self.head.0.load(Ordering::Relaxed);
        let at = head & (self.words.len() - 1);
        // A record does not wrap: what is left at the end is skipped.
        let to_end = self.words.len() - at;
        let skipped = if to_end < needed { to_end } else { 0 };
        if !self.has_room(head, skipped + needed) || needed > record::MAX_WORDS {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let begin = if skipped > 0 {
            // Shorter than the record, so its length fits a header too.
            let skip = record::header(skipped, record::KIND_SKIP, 0, 0, 0);
            self.words[at].store(skip, Ordering::Relaxed);
            0
        } else {
            at
        };
        let mut writer = Writer {
            slots: self.words[begin..begin + needed].iter(),
        };
        record.encode(&mut writer);
        debug_assert_eq!(writer.slots.len(), 0);
        let head = head.wrapping_add(skipped + needed);
        self.head.0.store(head, Ordering::Release);
        true
    }

    #[inline]
    fn has_room(&self, head: usize, needed: usize) -> bool {
        let free = |tail: usize| self.words.len() - head.wrapping_sub(tail);
        if free(self.seen_tail.0.load(Ordering::Relaxed)) >= needed {
            return true;
        }
        let tail = self.tail.0.load(Ordering::Acquire);
        self.seen_tail.0.store(tail, Ordering::Relaxed);
        free(tail) >= needed
    }

    pub(super) fn drain(&self, scratch: &mut Vec<u64>, consume: &mut impl FnMut(Record<'_>)) {
        let head = self.head.0.load(Ordering::Acquire);
        let mut tail = self.tail.0.load(Ordering::Relaxed);
        while tail != head {
            let at = tail & (self.words.len() - 1);
            let header = self.words[at].load(Ordering::Relaxed);
            let words = record::length(header);
            scratch.clear();
            if !record::is_skip(header) {
                let record = self.words.get(at..at + words).unwrap_or_default();
                let word = |word: &AtomicU64| word.load(Ordering::Relaxed).to_le();
                scratch.extend(record.iter().map(word));
            }
            tail = tail.wrapping_add(words);
            // The copy is done: the producer may have the room while we work.
            self.tail.0.store(tail, Ordering::Release);
            if record::is_skip(header) {
                continue;
            }
            if let Some(record) = record::decode(bytemuck::cast_slice(scratch)) {
                consume(record);
            } else {
                debug_assert!(false, "a record that cannot be decoded");
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether the reader should come now: the rest is for the time until it does.
    #[inline]
    pub(super) fn is_quarter_full(&self) -> bool {
        let used = self
            .head
            .0
            .load(Ordering::Relaxed)
            .wrapping_sub(self.seen_tail.0.load(Ordering::Relaxed));
        used > self.words.len() / 4 && {
            let tail = self.tail.0.load(Ordering::Acquire);
            self.seen_tail.0.store(tail, Ordering::Relaxed);
            self.head.0.load(Ordering::Relaxed).wrapping_sub(tail) > self.words.len() / 4
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head.0.load(Ordering::Acquire) == self.tail.0.load(Ordering::Acquire)
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Writes one record into its room.
pub(crate) struct Writer<'r> {
    slots: std::slice::Iter<'r, AtomicU64>,
}

impl Writer<'_> {
    #[inline]
    pub(super) fn word(&mut self, word: u64) {
        if let Some(slot) = self.slots.next() {
            slot.store(word, Ordering::Relaxed);
        }
    }

    /// Bytes, zero-padded to whole words.
    #[inline]
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            self.word(tail_word(bytes, rest));
        }
    }
}
