//! A single-producer, single-consumer ring of variable-length records.
//!
//! The ring is an array of atomic words rather than bytes: plain relaxed loads
//! and stores cost the same as ordinary ones, and no `unsafe` is needed.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

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

    pub(super) fn push(&self, record: &impl Encode) -> bool {
        let needed = record.words();
        let head = self.head.0.load(Ordering::Relaxed);
        let free = |tail: usize| self.words.len() - head.wrapping_sub(tail);
        if free(self.seen_tail.0.load(Ordering::Relaxed)) < needed {
            let tail = self.tail.0.load(Ordering::Acquire);
            self.seen_tail.0.store(tail, Ordering::Relaxed);
            if free(tail) < needed || needed > record::MAX_WORDS {
                self.lost.fetch_add(1, Ordering::Relaxed);
                return false;
            }
        }
        let mut writer = Writer {
            ring: self,
            at: head,
        };
        record.encode(&mut writer);
        debug_assert_eq!(writer.at.wrapping_sub(head), needed);
        self.head.0.store(writer.at, Ordering::Release);
        true
    }

    pub(super) fn drain(&self, scratch: &mut Vec<u8>, consume: &mut impl FnMut(Record<'_>)) {
        let head = self.head.0.load(Ordering::Acquire);
        let mut at = self.tail.0.load(Ordering::Relaxed);
        while at != head {
            let words = record::length(self.word(at));
            scratch.clear();
            scratch.extend((0..words).flat_map(|i| self.word(at.wrapping_add(i)).to_le_bytes()));
            at = at.wrapping_add(words);
            // The copy is done: the producer may have the room while we work.
            self.tail.0.store(at, Ordering::Release);
            if let Some(record) = record::decode(scratch) {
                consume(record);
            } else {
                debug_assert!(false, "a record that cannot be decoded");
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether the reader should come now: the rest is for the time until it does.
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

    fn word(&self, at: usize) -> u64 {
        self.words[at & (self.words.len() - 1)].load(Ordering::Relaxed)
    }
}

/// Writes one record into reserved room.
pub(crate) struct Writer<'r> {
    ring: &'r Ring,
    at: usize,
}

impl Writer<'_> {
    pub(super) fn word(&mut self, word: u64) {
        let mask = self.ring.words.len() - 1;
        self.ring.words[self.at & mask].store(word, Ordering::Relaxed);
        self.at = self.at.wrapping_add(1);
    }

    /// Bytes, zero-padded to whole words.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
        let rest = chunks.remainder();
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.word(u64::from_le_bytes(word));
        }
    }
}
