//! Attributes that become words one by one, before there is a record to hold them.

use std::borrow::Cow;

use crate::config::Limits;
use crate::encode::tail_word;
use crate::key::KeyRef;
use crate::value::ValueRef;

use super::super::writer::Writer;
use super::attributes::{Attributes, cut_key, cut_value, value_len, words_of_one, write};
use super::{MAX_ATTRIBUTE_WORDS, MAX_ATTRIBUTES, MAX_VALUE, Reader};

/// Where a record's words go.
pub(super) trait Words {
    fn word(&mut self, word: u64);
    /// Bytes, zero-padded to whole words.
    fn bytes(&mut self, bytes: &[u8]);
}

impl Words for Writer<'_> {
    #[inline]
    fn word(&mut self, word: u64) {
        Writer::word(self, word);
    }

    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        Writer::bytes(self, bytes);
    }
}

impl Words for Vec<u64> {
    #[inline]
    fn word(&mut self, word: u64) {
        self.push(word);
    }

    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        self.extend(words.iter().map(|word| u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            self.push(tail_word(bytes, rest));
        }
    }
}

/// Attributes as a record has them. What is too long is cut, what is too much is
/// counted.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(super) words: Vec<u64>,
    pub(super) count: usize,
    /// How many are left out.
    pub(crate) dropped: u32,
    /// How many there may be.
    most: usize,
    /// Bytes of a value that need not be looked at.
    longest: usize,
    /// Characters of a text.
    length: Option<usize>,
}

impl Default for Packed {
    fn default() -> Self {
        Self::NEW
    }
}

impl Packed {
    pub(crate) const NEW: Self = Self {
        words: Vec::new(),
        count: 0,
        dropped: 0,
        most: MAX_ATTRIBUTES,
        longest: MAX_VALUE,
        length: None,
    };

    /// Takes up to `most` attributes from now on, of the length that `limits` say.
    #[inline]
    pub(crate) fn limit(&mut self, most: usize, limits: &Limits) {
        self.most = most.min(MAX_ATTRIBUTES);
        self.length = limits.attribute_length;
        self.longest = self.length.unwrap_or(MAX_VALUE).min(MAX_VALUE);
    }

    /// Empties it and keeps memory for at most `kept` words.
    pub(crate) fn clear(&mut self, kept: usize) {
        self.words.clear();
        self.words.shrink_to(kept);
        self.count = 0;
        self.dropped = 0;
    }

    /// Adds an attribute whose key is not there yet.
    // So that what a caller knows of key and value need not be found out.
    #[inline(always)]
    pub(crate) fn push(&mut self, key: KeyRef<'_>, value: ValueRef<'_>) {
        let key = cut_key(key);
        let value = match value_len(&value) <= self.longest {
            true => value,
            false => self.cut(value),
        };
        let needed = words_of_one(key, &value);
        if self.count >= self.most || self.words.len() + needed > MAX_ATTRIBUTE_WORDS {
            self.dropped += 1;
            return;
        }
        self.words.reserve(needed);
        write(&mut self.words, key, &value);
        self.count += 1;
    }

    #[cold]
    fn cut<'v>(&self, value: ValueRef<'v>) -> ValueRef<'v> {
        let limits = Limits {
            attribute_length: self.length,
            ..Limits::default()
        };
        cut_value(value, &limits)
    }

    /// Sets an attribute: the last value of a key counts.
    pub(crate) fn set(&mut self, key: KeyRef<'_>, value: ValueRef<'_>) {
        let text = key.text();
        let others = self.with(|all| {
            let is_new = all.typed().all(|(known, _)| known != text);
            (!is_new).then(|| {
                let mut others = Self {
                    words: Vec::with_capacity(self.words.len()),
                    count: 0,
                    ..*self
                };
                for (known, value) in all.typed().filter(|(known, _)| *known != text) {
                    others.push(KeyRef::Text(known), value);
                }
                others
            })
        });
        if let Some(others) = others {
            *self = others;
        }
        self.push(key, value);
    }

    /// Reads them back.
    #[inline]
    pub(crate) fn with<T>(&self, read: impl FnOnce(Attributes<'_>) -> T) -> T {
        // A record's words are read as little-endian bytes.
        let words = match cfg!(target_endian = "little") {
            true => Cow::Borrowed(&self.words),
            false => Cow::Owned(self.words.iter().map(|word| word.to_le()).collect()),
        };
        let bytes = bytemuck::cast_slice(&words);
        read(Attributes::new(Reader { bytes }, self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::sync::{AtomicU64, Ordering};
    use super::super::attributes::Kept;
    use super::*;
    use crate::key::Key;
    use crate::value::{Array, Value};

    static MODEL: Key = Key::new("packed.test.model");

    fn words(kept: Kept<'_>) -> Vec<u64> {
        let room: Vec<AtomicU64> = (0..kept.words).map(|_| AtomicU64::new(0)).collect();
        let mut writer = Writer::new(&room);
        kept.write(&mut writer);
        assert!(writer.is_done());
        room.iter()
            .map(|word| word.load(Ordering::Relaxed))
            .collect()
    }

    fn pairs(packed: &Packed) -> Vec<(String, Value)> {
        let owned = |(key, value): (&str, ValueRef<'_>)| (key.to_owned(), value.to_value());
        packed.with(|attributes| attributes.typed().map(owned).collect())
    }

    #[test]
    fn attributes_that_come_one_by_one_make_the_words_of_a_list() {
        let array = Array::new([ValueRef::I64(1), ValueRef::Str("two")].into_iter());
        let list = [
            (MODEL.get(), ValueRef::Str("deepseek-r1")),
            (KeyRef::Text("text"), ValueRef::Str("")),
            (KeyRef::Text("eight by"), ValueRef::Str("12345678")),
            (KeyRef::Text("number"), ValueRef::I64(-1)),
            (MODEL.get(), ValueRef::F64(0.7)),
            (KeyRef::Text("truth"), ValueRef::Bool(true)),
            (KeyRef::Text("array"), ValueRef::Array(array.as_ref())),
        ];
        let mut packed = Packed::default();
        for (key, value) in list {
            packed.push(key, value);
        }
        let kept = Kept::new(&list, &Limits::default()).unwrap();
        assert_eq!(words(Kept::packed(&packed)), words(kept));
        let owned =
            |(key, value): &(KeyRef<'_>, ValueRef<'_>)| (key.text().to_owned(), value.to_value());
        assert_eq!(pairs(&packed), list.iter().map(owned).collect::<Vec<_>>());
    }

    #[test]
    fn the_last_value_of_a_key_counts() {
        let mut packed = Packed::default();
        packed.push(MODEL.get(), ValueRef::Str("first"));
        packed.push(KeyRef::Text("other"), ValueRef::I64(1));
        packed.set(KeyRef::Text("packed.test.model"), ValueRef::Bool(true));
        packed.set(KeyRef::Text("new"), ValueRef::I64(2));
        assert_eq!(
            pairs(&packed),
            [
                ("other".to_owned(), Value::I64(1)),
                ("packed.test.model".to_owned(), Value::Bool(true)),
                ("new".to_owned(), Value::I64(2)),
            ]
        );
    }

    #[test]
    fn what_is_beyond_the_limits_is_cut_or_counted() {
        let limits = Limits {
            attribute_length: Some(3),
            ..Limits::default()
        };
        let mut packed = Packed::default();
        packed.limit(2, &limits);
        for key in ["a", "b", "c"] {
            packed.push(KeyRef::Text(key), ValueRef::Str("ümläut"));
        }
        let cut = |key: &str| (key.to_owned(), Value::from("üml"));
        assert_eq!(
            (pairs(&packed), packed.dropped),
            (vec![cut("a"), cut("b")], 1)
        );

        let mut packed = Packed::default();
        let long = "x".repeat(MAX_VALUE + 1);
        for n in 0..20 {
            packed.push(KeyRef::Text(&n.to_string()), ValueRef::Str(&long));
        }
        assert!(packed.words.len() <= MAX_ATTRIBUTE_WORDS);
        assert_eq!(packed.count + packed.dropped as usize, 20);
        assert!(packed.dropped > 0);
        packed.clear(16);
        assert_eq!((pairs(&packed), packed.dropped), (vec![], 0));
        assert!(packed.words.capacity() <= 16);
    }
}
