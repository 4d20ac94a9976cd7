//! Fills a record's room.

use std::slice::Iter;

use crate::encode::tail_word;

use super::sync::{AtomicU64, Ordering};

/// Writes one record into its room.
pub(crate) struct Writer<'r> {
    slots: Iter<'r, AtomicU64>,
}

impl<'r> Writer<'r> {
    #[inline]
    pub(super) fn new(room: &'r [AtomicU64]) -> Self {
        Self { slots: room.iter() }
    }

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

    /// Whether all of the room has been written.
    pub(super) fn is_done(&self) -> bool {
        self.slots.len() == 0
    }
}
