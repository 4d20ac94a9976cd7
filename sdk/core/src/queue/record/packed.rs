//! Attributes of a span that is still open, as they will lie in its record.

use std::borrow::Cow;
use std::fmt;

use crate::encode::last_word;
use crate::key::{KeyId, KeyRef};
use crate::value::{Attribute, ValueRef};

use super::super::writer::Writer;
use super::attributes::{
    Attributes, HEAD_BITS, KNOWN, cut_key, cut_value, head, scalar, words_of_one,
};
use super::{MAX_ATTRIBUTE_WORDS, MAX_ATTRIBUTES, Reader, words_of};

/// Attributes that are copied as they are set, for a caller that has no place to hold
/// them until the span ends. What is too long is cut.
///
/// ```
/// use omnitrace::{KeyRef, PackedAttributes, Value, ValueRef};
/// let mut attributes = PackedAttributes::default();
/// attributes.push(KeyRef::Text("gen_ai.request.model"), ValueRef::Str("deepseek-r1"));
/// attributes.set(KeyRef::Text("gen_ai.request.model"), ValueRef::Str("deepseek-v3"));
/// assert_eq!(attributes.to_vec()[0].value, Value::from("deepseek-v3"));
/// ```
#[derive(Clone, Default)]
pub struct PackedAttributes {
    /// What is in use, and what has been: there is nearly always room for more.
    words: Vec<u64>,
    used: usize,
    count: usize,
}

impl PackedAttributes {
    /// None, and no memory for any.
    pub const NEW: Self = Self {
        words: Vec::new(),
        used: 0,
        count: 0,
    };

    /// Makes memory for so many bytes of attributes in all, unless it is there.
    #[inline]
    pub fn reserve(&mut self, bytes: usize) {
        if words_of(bytes) > self.words.len() {
            self.grow(words_of(bytes));
        }
    }

    /// Whether it has memory for any.
    #[inline]
    pub fn has_memory(&self) -> bool {
        !self.words.is_empty()
    }

    /// How many there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds an attribute whose key is not there yet. False: a span has no room for it.
    #[inline]
    pub fn push(&mut self, key: KeyRef<'_>, value: ValueRef<'_>) -> bool {
        self.push_short(cut_key(key), cut_value(value, None))
    }

    /// Adds what is known not to be too long.
    // So that what a caller knows of key and value need not be found out.
    #[inline(always)]
    pub(super) fn push_short(&mut self, key: KeyRef<'_>, value: ValueRef<'_>) -> bool {
        let end = self.used + words_of_one(key, &value);
        if self.count == MAX_ATTRIBUTES || end > MAX_ATTRIBUTE_WORDS {
            return false;
        }
        if end > self.words.len() {
            self.grow(end);
        }
        let Some((first, mut rest)) = self.words[self.used..end].split_first_mut() else {
            return false;
        };
        *first = head(key, &value);
        if let KeyRef::Text(text) = key {
            rest = write_bytes(rest, text.as_bytes());
        }
        match scalar(&value) {
            Ok(scalar) => rest.iter_mut().for_each(|word| *word = scalar),
            Err(bytes) => {
                write_bytes(rest, bytes);
            }
        }
        self.used = end;
        self.count += 1;
        true
    }

    #[cold]
    fn grow(&mut self, needed: usize) {
        self.words.resize((2 * self.words.len()).max(needed), 0);
    }

    /// Empties it and keeps memory for at most `kept` bytes.
    #[inline]
    pub fn clear(&mut self, kept: usize) {
        (self.used, self.count) = (0, 0);
        if self.words.len() > words_of(kept) {
            self.words.truncate(words_of(kept));
            self.words.shrink_to_fit();
        }
    }

    /// Sets a key, in place of the value that it has. False: a span has no room for it.
    pub fn set(&mut self, key: KeyRef<'_>, value: ValueRef<'_>) -> bool {
        self.remove(key);
        self.push(key, value)
    }

    /// Whether a key is there.
    pub fn contains(&self, key: KeyRef<'_>) -> bool {
        self.find(key).is_some()
    }

    /// Takes the attribute out that was set first.
    pub fn remove_oldest(&mut self) {
        if self.count > 0 {
            self.remove_at(0);
        }
    }

    pub(super) fn remove(&mut self, key: KeyRef<'_>) {
        if let Some(at) = self.find(key) {
            self.remove_at(at);
        }
    }

    fn remove_at(&mut self, at: usize) {
        let length = self.length(at);
        self.words.copy_within(at + length..self.used, at);
        self.used -= length;
        self.count -= 1;
    }

    /// Where an attribute begins.
    fn find(&self, key: KeyRef<'_>) -> Option<usize> {
        let key = cut_key(key);
        let mut at = 0;
        while at < self.used {
            if self.has_key(at, key) {
                return Some(at);
            }
            at += self.length(at);
        }
        None
    }

    /// Words of the attribute that begins here.
    fn length(&self, at: usize) -> usize {
        let head = self.words[at];
        let key = match head >> 16 & KNOWN {
            0 => words_of((head & 0xffff) as usize),
            _ => 0,
        };
        1 + key + words_of((head >> HEAD_BITS) as usize)
    }

    fn has_key(&self, at: usize, key: KeyRef<'_>) -> bool {
        let head = self.words[at];
        if head >> 16 & KNOWN != 0 {
            let id = KeyId::from_number(head as u16);
            // A text may have two numbers.
            return key == KeyRef::Known(id) || id.text() == key.text();
        }
        let text = key.text().as_bytes();
        let kept = &self.words[at + 1..];
        let word = |chunk: &[u8]| match chunk.first_chunk::<8>() {
            Some(word) => u64::from_le_bytes(*word),
            None => last_word(chunk),
        };
        (head & 0xffff) as usize == text.len()
            && text
                .chunks(8)
                .zip(kept)
                .all(|(chunk, kept)| word(chunk) == *kept)
    }

    /// As owned attributes.
    pub fn to_vec(&self) -> Vec<Attribute> {
        self.with(|attributes| attributes.to_vec())
    }

    /// Reads them back.
    #[inline]
    pub(super) fn with<T>(&self, read: impl FnOnce(Attributes<'_>) -> T) -> T {
        let words = &self.words[..self.used];
        // A record's words are read as little-endian bytes.
        let words = match cfg!(target_endian = "little") {
            true => Cow::Borrowed(words),
            false => Cow::Owned(words.iter().map(|word| word.to_le()).collect()),
        };
        let bytes = bytemuck::cast_slice(&words);
        read(Attributes::new(Reader { bytes }, self.count))
    }

    /// Words that [`Self::write`] writes.
    #[inline]
    pub(super) fn words(&self) -> usize {
        self.used
    }

    #[inline]
    pub(super) fn write<'w>(&self, writer: Writer<'w>) -> Option<Writer<'w>> {
        writer.slice(&self.words[..self.used])
    }
}

impl fmt::Debug for PackedAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.to_vec()).finish()
    }
}

/// Bytes into the first of these words, zero-padded; the words after them.
#[inline]
fn write_bytes<'w>(words: &'w mut [u64], bytes: &[u8]) -> &'w mut [u64] {
    let (into, after) = words.split_at_mut(words_of(bytes.len()).min(words.len()));
    if let Some((last, into)) = into.split_last_mut() {
        for (word, chunk) in into.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        *last = last_word(bytes);
    }
    after
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::attributes::Kept;
    use super::super::{MAX_TEXT, Measure, SpanRecord};
    use super::*;
    use crate::config::Limits;
    use crate::event::{FreeSpan, Parent};
    use crate::id::{SpanId, TraceId};
    use crate::queue::{Queue, Record};
    use crate::value::{Value, set_attribute};

    /// What a record says of its span.
    fn said(record: &impl Measure) -> String {
        let queue = Queue::new(1 << 17, Box::new(|| {}));
        assert_eq!(queue.push(record), Ok(()));
        let mut said = String::new();
        queue.drain(|record| match record {
            Record::Span(span) => said = format!("{span:?} {:?}", span.attributes.to_vec()),
            other => panic!("{other:?}"),
        });
        said
    }

    fn value() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            any::<String>().prop_map(|text| Value::from(text.as_str())),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(|n| Value::from(if n.is_nan() { 0.0 } else { n })),
            any::<bool>().prop_map(Value::from),
        ];
        let array = prop::collection::vec(scalar.clone(), 0..4);
        prop_oneof![4 => scalar, 1 => array.prop_map(|items| Value::Array(items.into_iter().collect()))]
    }

    /// Of every two texts one has a number.
    fn key(text: &str) -> KeyRef<'_> {
        let number = KeyId::of(text).filter(|_| text.len().is_multiple_of(2));
        number.map_or(KeyRef::Text(text), KeyRef::Known)
    }

    /// Miri takes its time.
    const CASES: u32 = if cfg!(miri) { 3 } else { 256 };

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: CASES, ..ProptestConfig::default() })]

        #[test]
        fn packed_attributes_make_the_record_that_the_same_attributes_make(
            given in prop::collection::btree_map("[a-zé.]{0,20}", value(), 0..20),
        ) {
            let mut packed = PackedAttributes::default();
            for (text, value) in &given {
                prop_assert!(packed.push(key(text), value.as_ref()));
            }
            let pairs: Vec<_> = given.iter().map(|(k, v)| (key(k), v.as_ref())).collect();
            let (trace, id) = (TraceId::new(1).unwrap(), SpanId::new(2).unwrap());
            let span = FreeSpan::new("name", 1, 2, id, Parent::Root(trace));
            let from_packed = said(&SpanRecord::new(&span, Kept::Packed(&packed), &[]));
            let kept = Kept::new(&pairs, &Limits::default());
            prop_assert_eq!(from_packed, said(&SpanRecord::new(&span, kept, &[])));
        }

        #[test]
        fn attributes_that_are_set_again_are_those_that_were_set_last(
            steps in prop::collection::vec(("[a-d]{1,2}", value(), any::<bool>()), 0..40),
        ) {
            let mut packed = PackedAttributes::default();
            let mut expected: Vec<Attribute> = Vec::new();
            for (text, value, forget) in steps {
                prop_assert_eq!(packed.contains(key(&text)), expected.iter().any(|a| *a.key == *text));
                expected.retain(|a| *a.key != *text);
                set_attribute(&mut expected, &text, value.clone());
                // Under its other name as well.
                prop_assert!(packed.set(KeyRef::Text(&text), value.as_ref()));
                prop_assert!(packed.set(key(&text), value.as_ref()));
                if forget {
                    packed.remove_oldest();
                    expected.remove(0);
                }
                prop_assert_eq!(packed.to_vec(), expected.clone());
                prop_assert_eq!(packed.len(), expected.len());
            }
        }
    }

    #[test]
    fn what_does_not_fit_a_record_is_refused_and_what_is_too_long_is_cut() {
        let long = "é".repeat(MAX_ATTRIBUTE_WORDS * 8);
        let mut packed = PackedAttributes::default();
        let mut pushed = 0;
        while packed.push(KeyRef::Text(&long), ValueRef::Str(&long)) {
            pushed += 1;
        }
        assert_eq!((packed.len(), pushed > 1), (pushed, true));
        assert!(packed.contains(KeyRef::Text(&long)));
        let first = packed.to_vec().remove(0);
        assert_eq!(first.key.len(), MAX_TEXT);
        assert!(packed.words() <= MAX_ATTRIBUTE_WORDS);

        let mut packed = PackedAttributes::default();
        for n in 0..MAX_ATTRIBUTES {
            assert!(packed.push(KeyRef::Text(&n.to_string()), ValueRef::Bool(true)));
        }
        assert!(!packed.push(KeyRef::Text("one more"), ValueRef::Bool(true)));
        assert_eq!(packed.len(), MAX_ATTRIBUTES);
    }
}
