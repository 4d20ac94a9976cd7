//! Attribute keys that are said once: a span then holds only their numbers.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};

use xxhash_rust::xxh3::xxh3_64;

/// Most keys of a process that have a number; later ones are copied into each span.
const CAPACITY: usize = 1024;
/// Longest key that gets a number, in bytes.
const MAX_TEXT: usize = 256;

/// Keys by number. Written without a lock, so that a fork at any moment is harmless.
static KEYS: [OnceLock<&'static str>; CAPACITY] = [const { OnceLock::new() }; CAPACITY];
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// Where each text's number is found: by its hash, else in a place after that. 0 is
/// nothing, else the number and 1.
static INDEX: [AtomicU16; 4 * CAPACITY] = [const { AtomicU16::new(0) }; 4 * CAPACITY];

/// An attribute key that is known when the program is built.
///
/// ```
/// use omnitrace::{Key, ValueRef};
/// static MODEL: Key = Key::new("gen_ai.request.model");
/// let attribute = (MODEL.get(), ValueRef::Str("deepseek-r1"));
/// # let _ = attribute;
/// ```
pub struct Key {
    text: &'static str,
    /// 0 while it has not been asked for, else its number and 1; [`NONE`] where
    /// there is none.
    number: AtomicU64,
}

const NONE: u64 = u64::MAX;

/// The number of a key in this process.
// A whole word: half of one that has just been written is slow to read as part of a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyId(u64);

/// An attribute key as the caller holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRef<'a> {
    /// Its text, which is copied.
    Text(&'a str),
    /// Its number.
    Known(KeyId),
}

impl Key {
    /// A key of this text.
    pub const fn new(text: &'static str) -> Self {
        Self {
            text,
            number: AtomicU64::new(0),
        }
    }

    /// The key for one attribute.
    #[inline]
    pub fn get(&self) -> KeyRef<'static> {
        match self.number.load(Ordering::Relaxed) {
            0 => self.register(),
            NONE => KeyRef::Text(self.text),
            number => KeyRef::Known(KeyId(number - 1)),
        }
    }

    #[cold]
    fn register(&self) -> KeyRef<'static> {
        let id = KeyId::of(self.text);
        let number = id.map_or(NONE, |id| id.0 + 1);
        self.number.store(number, Ordering::Relaxed);
        id.map_or(KeyRef::Text(self.text), KeyRef::Known)
    }
}

impl KeyId {
    /// The number of this key, now or from now on; none where the text is too long
    /// or there are too many.
    pub fn of(text: &str) -> Option<Self> {
        if text.len() > MAX_TEXT {
            return None;
        }
        let hash = xxh3_64(text.as_bytes()) as usize;
        // The index is never more than a quarter full.
        for place in (hash..).map(|place| &INDEX[place % INDEX.len()]) {
            match place.load(Ordering::Acquire) {
                0 => {
                    let id = Self::new(text)?;
                    // Another thread may have been faster, here or with the same
                    // text: two numbers of one text are both right.
                    let _ = place.compare_exchange(
                        0,
                        id.number() + 1,
                        Ordering::Release,
                        Ordering::Relaxed,
                    );
                    return Some(id);
                }
                number => {
                    let id = Self::from_number(number - 1);
                    if id.text() == text {
                        return Some(id);
                    }
                }
            }
        }
        None
    }

    #[cold]
    fn new(text: &str) -> Option<Self> {
        let at = NEXT.fetch_add(1, Ordering::Relaxed);
        let Some(slot) = KEYS.get(at) else {
            // It must not come round.
            NEXT.store(CAPACITY, Ordering::Relaxed);
            return None;
        };
        // There are few, and they are for ever.
        slot.get_or_init(|| Box::leak(text.into()));
        Some(Self(at as u64))
    }

    /// As an integer, for whoever keeps numbers in a table of its own.
    #[inline]
    pub fn number(self) -> u16 {
        self.0 as u16
    }

    /// The id with this [`KeyId::number`].
    #[inline]
    pub fn from_number(number: u16) -> Self {
        Self(u64::from(number))
    }

    /// The key's text.
    pub fn text(self) -> &'static str {
        let slot = KEYS.get(self.0 as usize);
        slot.and_then(OnceLock::get).copied().unwrap_or_default()
    }
}

impl<'a> KeyRef<'a> {
    /// The key's text.
    pub fn text(self) -> &'a str {
        match self {
            Self::Text(text) => text,
            Self::Known(id) => id.text(),
        }
    }
}

impl<'a> From<&'a str> for KeyRef<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_one_number_and_the_number_its_text() {
        static KEY: Key = Key::new("key.test.static");
        let KeyRef::Known(id) = KEY.get() else {
            panic!("the table is not full")
        };
        assert_eq!(id.text(), "key.test.static");
        assert_eq!(KeyId::of("key.test.static"), Some(id));
        assert_eq!(KEY.get(), KeyRef::Known(id));
        assert_eq!(KeyId::of(&"x".repeat(MAX_TEXT + 1)), None);
    }
}
