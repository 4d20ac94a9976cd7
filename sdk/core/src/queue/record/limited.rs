//! Attributes of an open span or event, as much of them as the limits allow.

use crate::key::KeyRef;
use crate::value::ValueRef;

use super::attributes::{Attributes, Kept, cut_key, cut_value, value_len};
use super::packed::PackedAttributes;
use super::{MAX_ATTRIBUTES, MAX_VALUE};

/// Packed attributes; what is too long is cut, what is too much is counted.
#[derive(Debug)]
pub(crate) struct Limited {
    packed: PackedAttributes,
    /// How many are left out.
    pub(crate) dropped: u32,
    /// How many there may be.
    most: usize,
    /// Bytes of a value that need not be looked at.
    longest: usize,
    /// Characters of a text.
    length: Option<usize>,
}

impl Default for Limited {
    fn default() -> Self {
        Self::NEW
    }
}

impl Limited {
    pub(crate) const NEW: Self = Self {
        packed: PackedAttributes::NEW,
        dropped: 0,
        most: MAX_ATTRIBUTES,
        longest: MAX_VALUE,
        length: None,
    };

    /// Takes up to `most` attributes from now on, with texts of up to `length` characters.
    #[inline]
    pub(crate) fn limit(&mut self, most: usize, length: Option<usize>) {
        self.most = most.min(MAX_ATTRIBUTES);
        self.length = length;
        self.longest = self.length.unwrap_or(MAX_VALUE).min(MAX_VALUE);
    }

    /// Empties it and keeps memory for at most `kept` bytes.
    pub(crate) fn clear(&mut self, kept: usize) {
        self.packed.clear(kept);
        self.dropped = 0;
    }

    /// Adds an attribute whose key is not there yet.
    // So that what a caller knows of key and value need not be found out.
    #[inline(always)]
    pub(crate) fn push(&mut self, key: KeyRef<'_>, value: ValueRef<'_>) {
        let key = cut_key(key);
        let value = match value_len(&value) <= self.longest {
            true => value,
            false => cut_value(value, self.length),
        };
        let fits = self.packed.len() < self.most && self.packed.push_short(key, value);
        self.dropped += u32::from(!fits);
    }

    /// Sets an attribute: the last value of a key counts.
    pub(crate) fn set(&mut self, key: KeyRef<'_>, value: ValueRef<'_>) {
        self.packed.remove(key);
        self.push(key, value);
    }

    /// As a record takes them.
    #[inline]
    pub(crate) fn kept(&self) -> Kept<'_> {
        Kept::Packed(&self.packed)
    }

    /// Reads them back.
    #[inline]
    pub(crate) fn with<T>(&self, read: impl FnOnce(Attributes<'_>) -> T) -> T {
        self.packed.with(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;
    use crate::value::Value;

    static MODEL: Key = Key::new("limited.test.model");

    fn pairs(limited: &Limited) -> Vec<(String, Value)> {
        let owned = |(key, value): (&str, ValueRef<'_>)| (key.to_owned(), value.to_value());
        limited.with(|attributes| attributes.typed().map(owned).collect())
    }

    #[test]
    fn the_last_value_of_a_key_counts() {
        let mut limited = Limited::default();
        limited.push(MODEL.get(), ValueRef::Str("first"));
        limited.push(KeyRef::Text("other"), ValueRef::I64(1));
        limited.set(KeyRef::Text("limited.test.model"), ValueRef::Bool(true));
        limited.set(KeyRef::Text("new"), ValueRef::I64(2));
        assert_eq!(
            pairs(&limited),
            [
                ("other".to_owned(), Value::I64(1)),
                ("limited.test.model".to_owned(), Value::Bool(true)),
                ("new".to_owned(), Value::I64(2)),
            ]
        );
    }

    #[test]
    fn what_is_beyond_the_limits_is_cut_or_counted() {
        let mut limited = Limited::default();
        limited.limit(2, Some(3));
        for key in ["a", "b", "c"] {
            limited.push(KeyRef::Text(key), ValueRef::Str("ümläut"));
        }
        let cut = |key: &str| (key.to_owned(), Value::from("üml"));
        assert_eq!(
            (pairs(&limited), limited.dropped),
            (vec![cut("a"), cut("b")], 1)
        );

        let mut limited = Limited::default();
        let long = "x".repeat(MAX_VALUE + 1);
        for n in 0..20 {
            limited.push(KeyRef::Text(&n.to_string()), ValueRef::Str(&long));
        }
        assert_eq!(pairs(&limited).len() + limited.dropped as usize, 20);
        assert!(limited.dropped > 0);
        limited.clear(128);
        assert_eq!((pairs(&limited), limited.dropped), (vec![], 0));
    }
}
