//! Fills a record's room.

use crate::encode::last_word;

use super::sync::{AtomicU64, Ordering};

/// Room that is left of a record's. What writes to it returns the room after that, none where
/// there is too little.
#[derive(Clone, Copy)]
pub(crate) struct Writer<'r> {
    rest: &'r [AtomicU64],
}

/// A record's first word and how much room there is from there on.
pub(super) struct First<'r> {
    word: &'r AtomicU64,
    room: usize,
}

impl<'r> Writer<'r> {
    /// Room after a first word, which is written last.
    #[inline(always)]
    pub(super) fn after_first(room: &'r [AtomicU64]) -> Option<(First<'r>, Self)> {
        let (word, rest) = room.split_first()?;
        let room = room.len();
        Some((First { word, room }, Self { rest }))
    }

    #[inline(always)]
    pub(super) fn words<const N: usize>(self, words: [u64; N]) -> Option<Self> {
        let (slots, rest) = self.rest.split_first_chunk::<N>()?;
        store(slots, &words);
        Some(Self { rest })
    }

    #[inline(always)]
    pub(super) fn slice(self, words: &[u64]) -> Option<Self> {
        let (slots, rest) = self.rest.split_at_checked(words.len())?;
        store(slots, words);
        Some(Self { rest })
    }

    /// Bytes, zero-padded to whole words.
    #[inline(always)]
    pub(super) fn bytes(self, bytes: &[u8]) -> Option<Self> {
        let (slots, rest) = self.rest.split_at_checked(bytes.len().div_ceil(8))?;
        let Some((last, slots)) = slots.split_last() else {
            return Some(self);
        };
        for (slot, word) in slots.iter().zip(bytes.as_chunks::<8>().0) {
            slot.store(u64::from_le_bytes(*word), Ordering::Relaxed);
        }
        last.store(last_word(bytes), Ordering::Relaxed);
        Some(Self { rest })
    }
}

impl First<'_> {
    /// Writes it for the record that ends here, whose length it has in its lowest bits; the
    /// length.
    #[inline(always)]
    pub(super) fn finish(self, header: u64, end: Writer<'_>) -> usize {
        let words = self.room - end.rest.len();
        self.word.store(header | words as u64, Ordering::Relaxed);
        words
    }
}

#[inline(always)]
fn store(slots: &[AtomicU64], words: &[u64]) {
    for (slot, word) in slots.iter().zip(words) {
        slot.store(*word, Ordering::Relaxed);
    }
}
