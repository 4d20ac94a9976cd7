//! The attributes of an open span within its limits.

use std::cell::Cell;

use omnitrace::config::{Limits, limits};
use omnitrace::{Attribute, KeyRef, PackedAttributes, Value, ValueRef};

/// Memory for this many bytes of attributes is made at once.
const USUAL: usize = 512;
/// As much of it is left to the thread's next span.
const KEPT: usize = 2048;

thread_local! {
    /// Memory that the last span of this thread has left.
    static SPARE: Cell<PackedAttributes> = const { Cell::new(PackedAttributes::NEW) };
}

/// Attributes, copied: callers may change what they handed over.
#[derive(Default)]
pub(crate) struct Packed {
    pub(crate) kept: PackedAttributes,
    /// What a limit has kept out.
    pub(crate) dropped: u32,
}

/// Most of what is kept: attributes, and characters of a text.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    pub(crate) attributes: usize,
    pub(crate) length: Option<usize>,
}

impl Room {
    pub(crate) const UNLIMITED: Self = Self {
        attributes: usize::MAX,
        length: None,
    };

    /// For a span's attributes.
    #[inline]
    pub(crate) fn of_span(limits: &Limits) -> Self {
        Self {
            attributes: limits.attributes,
            length: limits.attribute_length,
        }
    }

    pub(crate) fn of_event(limits: &Limits) -> Self {
        Self {
            attributes: limits.event_attributes,
            length: limits.other_length,
        }
    }

    pub(crate) fn of_link(limits: &Limits) -> Self {
        Self {
            attributes: limits.link_attributes,
            length: limits.other_length,
        }
    }
}

impl Packed {
    #[inline]
    pub(crate) fn usual() -> Self {
        // A thread that is about to end has none.
        let mut kept = SPARE.try_with(Cell::take).unwrap_or_default();
        kept.reserve(USUAL);
        Self { kept, dropped: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.dropped == 0
    }

    /// Adds a key that is not there yet. False: it needs [`Self::set`].
    #[inline]
    pub(crate) fn push(&mut self, key: KeyRef<'_>, value: ValueRef<'_>, room: Room) -> bool {
        let fits = self.kept.len() < room.attributes
            && !matches!((value, room.length), (ValueRef::Str(text), Some(most)) if text.len() > most);
        fits && self.kept.push(key, value)
    }

    /// Sets a key: the last value counts. Where there is no room, the oldest attribute
    /// goes, as with opentelemetry-python.
    pub(crate) fn set(&mut self, key: KeyRef<'_>, value: ValueRef<'_>, room: Room) {
        let shorter = room.length.and_then(|length| shorter(value, length));
        let value = shorter.as_ref().map_or(value, Value::as_ref);
        if room.attributes == 0 {
            self.dropped += 1;
            return;
        }
        if self.kept.len() >= room.attributes && !self.kept.contains(key) {
            self.kept.remove_oldest();
            self.dropped += 1;
        }
        if !self.kept.set(key, value) {
            self.dropped += 1;
        }
    }

    /// Sets each of another's.
    pub(crate) fn set_all(&mut self, other: Self, room: Room) {
        if self.is_empty() {
            *self = other;
            return;
        }
        for Attribute { key, value } in other.kept.to_vec() {
            self.set(KeyRef::Text(&key), value.as_ref(), room);
        }
        self.dropped += other.dropped;
    }

    pub(crate) fn to_vec(&self) -> Vec<Attribute> {
        self.kept.to_vec()
    }
}

impl Drop for Packed {
    #[inline]
    fn drop(&mut self) {
        let mut kept = std::mem::take(&mut self.kept);
        if kept.has_memory() {
            kept.clear(KEPT);
            // What cannot be left is freed.
            let _ = SPARE.try_with(|spare| spare.set(kept));
        }
    }
}

/// A value whose texts have at most so many characters, where it has longer ones.
fn shorter(value: ValueRef<'_>, length: usize) -> Option<Value> {
    match value.to_value() {
        Value::Str(text) => Some(limits::cut(&text, Some(length)).into()),
        Value::Array(array) => {
            let items = array.items().into_iter();
            let items = items.map(|item| shorter(item.as_ref(), length).unwrap_or(item));
            Some(Value::Array(items.collect()))
        }
        _ => None,
    }
}
