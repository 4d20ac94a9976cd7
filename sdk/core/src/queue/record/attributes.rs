//! Attributes within a record.

use crate::config::{Limits, limits};
use crate::encode::{Out, Raw};
use crate::key::{KeyId, KeyRef};
use crate::value::{ArrayRef, Attribute, ValueRef};

use super::super::writer::Writer;
use super::packed::PackedAttributes;
use super::{MAX_ATTRIBUTE_WORDS, MAX_ATTRIBUTES, MAX_TEXT, MAX_VALUE, Reader, cut, words_of};

const TEXT: u64 = 0;
const I64: u64 = 1;
const F64: u64 = 2;
const BOOL: u64 = 3;
const ARRAY: u64 = 4;
/// Type bit: the key's number stands in place of its length.
pub(super) const KNOWN: u64 = 0x80;
/// Where the value's length begins in the first word.
pub(super) const HEAD_BITS: u32 = 24;

type Pairs<'a> = [(KeyRef<'a>, ValueRef<'a>)];

/// Attributes of a record.
#[derive(Clone, Copy)]
pub(crate) enum Kept<'a> {
    /// As the caller holds them: they may be more than is kept.
    Pairs(&'a Pairs<'a>, Bounds),
    /// As they will be written.
    Packed(&'a PackedAttributes),
}

/// Attributes of a record that is written where they are said: what each of them is is known
/// there, and it is nowhere but in the record.
pub(crate) struct Literal<'a, const N: usize>(&'a [(KeyRef<'a>, ValueRef<'a>); N], Bounds);

/// How much is kept.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// Attributes.
    most: usize,
    /// Bytes of a value; a text that has more may still have no more characters than are kept.
    longest: usize,
}

/// Attributes that a record can take.
pub(crate) trait WriteAttributes {
    /// How many there are.
    fn count(&self) -> usize;
    /// None: there is no room, or there is more than is kept.
    fn write<'w>(&self, writer: Writer<'w>) -> Option<Writer<'w>>;
}

/// What is left of attributes that are more than is kept.
pub(crate) struct Cut<'a> {
    pub(crate) list: Vec<(KeyRef<'a>, ValueRef<'a>)>,
    /// How many are left out.
    pub(crate) dropped: u32,
}

impl Bounds {
    const ALL: Self = Self {
        most: MAX_ATTRIBUTES,
        longest: MAX_VALUE,
    };

    #[inline(always)]
    fn of(limits: &Limits) -> Self {
        let longest = limits.attribute_length.unwrap_or(MAX_VALUE);
        Self {
            most: limits.attributes.min(MAX_ATTRIBUTES),
            longest: longest.min(MAX_VALUE),
        }
    }
}

impl<'a, const N: usize> Literal<'a, N> {
    #[inline(always)]
    pub(crate) fn new(list: &'a [(KeyRef<'a>, ValueRef<'a>); N], limits: &Limits) -> Self {
        Self(list, Bounds::of(limits))
    }
}

impl<const N: usize> WriteAttributes for Literal<'_, N> {
    #[inline(always)]
    fn count(&self) -> usize {
        N
    }

    #[inline(always)]
    fn write<'w>(&self, mut writer: Writer<'w>) -> Option<Writer<'w>> {
        let Self(list, bounds) = self;
        if N > bounds.most {
            return None;
        }
        let mut rest = &list[..];
        // One after the other: in a loop none would be known.
        macro_rules! write_next {
            ($($nth:literal)*) => {
                $(if $nth < N && let [(key, value), after @ ..] = rest {
                    writer = write_one(*key, value, bounds.longest, writer)?;
                    rest = after;
                })*
            };
        }
        write_next!(0 1 2 3 4 5 6 7 8 9);
        for (key, value) in rest {
            writer = write_one(*key, value, bounds.longest, writer)?;
        }
        Some(writer)
    }
}

impl<'a> Kept<'a> {
    /// What a [`Cut`] has left.
    #[inline]
    pub(crate) fn of_cut(list: &'a Pairs<'a>) -> Self {
        Self::Pairs(list, Bounds::ALL)
    }

    /// All of them, which may be more than is kept.
    #[inline]
    pub(crate) fn new(list: &'a Pairs<'a>, limits: &Limits) -> Self {
        Self::Pairs(list, Bounds::of(limits))
    }

    /// Words that [`Self::write`] writes. None: there is more than is kept.
    pub(super) fn words(&self) -> Option<usize> {
        let (list, Bounds { most, longest }) = match *self {
            Self::Pairs(list, bounds) => (list, bounds),
            Self::Packed(packed) => return Some(packed.words()),
        };
        let fits = |(key, value): &(KeyRef<'_>, ValueRef<'_>)| {
            key_len(*key) <= MAX_TEXT && value_len(value) <= longest
        };
        let of_one = |(key, value): &(KeyRef<'_>, ValueRef<'_>)| words_of_one(*key, value);
        let words = list.iter().map(of_one).sum();
        (list.len() <= most && list.iter().all(fits) && words <= MAX_ATTRIBUTE_WORDS)
            .then_some(words)
    }
}

impl WriteAttributes for Kept<'_> {
    #[inline]
    fn count(&self) -> usize {
        match self {
            Self::Pairs(list, ..) => list.len(),
            Self::Packed(packed) => packed.len(),
        }
    }

    #[inline]
    fn write<'w>(&self, mut writer: Writer<'w>) -> Option<Writer<'w>> {
        let (list, Bounds { most, longest }) = match *self {
            Self::Pairs(list, bounds) => (list, bounds),
            Self::Packed(packed) => return packed.write(writer),
        };
        if list.len() > most {
            return None;
        }
        for (key, value) in list {
            writer = write_one(*key, value, longest, writer)?;
        }
        Some(writer)
    }
}

#[inline(always)]
fn write_one<'w>(
    key: KeyRef<'_>,
    value: &ValueRef<'_>,
    longest: usize,
    writer: Writer<'w>,
) -> Option<Writer<'w>> {
    match value {
        ValueRef::Str(text) => write_bytes(key, TEXT, text.as_bytes(), longest, writer),
        ValueRef::I64(n) => write_scalar(key, I64, *n as u64, writer),
        ValueRef::F64(n) => write_scalar(key, F64, n.to_bits(), writer),
        ValueRef::Bool(b) => write_scalar(key, BOOL, u64::from(*b), writer),
        ValueRef::Array(ArrayRef(bytes)) => write_bytes(key, ARRAY, bytes, longest, writer),
    }
}

#[inline(always)]
fn write_scalar<'w>(
    key: KeyRef<'_>,
    kind: u64,
    scalar: u64,
    writer: Writer<'w>,
) -> Option<Writer<'w>> {
    match key {
        KeyRef::Known(id) => writer.words([known_head(id, kind, 8), scalar]),
        KeyRef::Text(text) => write_key(text, kind, 8, writer)?.words([scalar]),
    }
}

#[inline(always)]
fn write_bytes<'w>(
    key: KeyRef<'_>,
    kind: u64,
    bytes: &[u8],
    longest: usize,
    writer: Writer<'w>,
) -> Option<Writer<'w>> {
    if bytes.len() > longest {
        return None;
    }
    let writer = match key {
        KeyRef::Known(id) => writer.words([known_head(id, kind, bytes.len())])?,
        KeyRef::Text(text) => write_key(text, kind, bytes.len(), writer)?,
    };
    writer.bytes(bytes)
}

#[inline(always)]
fn known_head(id: KeyId, kind: u64, value_len: usize) -> u64 {
    u64::from(id.number()) | (kind | KNOWN) << 16 | (value_len as u64) << HEAD_BITS
}

/// A key that has no number: seldom, and not to be where the others are.
#[inline(never)]
fn write_key<'w>(key: &str, kind: u64, value_len: usize, writer: Writer<'w>) -> Option<Writer<'w>> {
    if key.len() > MAX_TEXT {
        return None;
    }
    writer
        .words([key.len() as u64 | kind << 16 | (value_len as u64) << HEAD_BITS])?
        .bytes(key.as_bytes())
}

/// The first word of an attribute.
#[inline]
pub(super) fn head(key: KeyRef<'_>, value: &ValueRef<'_>) -> u64 {
    let kind = match value {
        ValueRef::Str(_) => TEXT,
        ValueRef::I64(_) => I64,
        ValueRef::F64(_) => F64,
        ValueRef::Bool(_) => BOOL,
        ValueRef::Array(_) => ARRAY,
    };
    let (key, known) = match key {
        KeyRef::Known(id) => (u64::from(id.number()), KNOWN),
        KeyRef::Text(text) => (text.len() as u64, 0),
    };
    key | (kind | known) << 16 | (value_len(value) as u64) << HEAD_BITS
}

/// A value as a word, or its bytes.
#[inline]
pub(super) fn scalar<'a>(value: &ValueRef<'a>) -> Result<u64, &'a [u8]> {
    match value {
        ValueRef::Str(text) => Err(text.as_bytes()),
        ValueRef::I64(n) => Ok(*n as u64),
        ValueRef::F64(n) => Ok(n.to_bits()),
        ValueRef::Bool(b) => Ok(u64::from(*b)),
        ValueRef::Array(ArrayRef(bytes)) => Err(bytes),
    }
}

impl<'a> Cut<'a> {
    #[cold]
    pub(crate) fn new(list: &'a Pairs<'a>, limits: &Limits) -> Self {
        let most = limits.attributes.min(MAX_ATTRIBUTES);
        let mut kept = Vec::new();
        let mut total = 0;
        for (key, value) in list {
            let (key, value) = (cut_key(*key), cut_value(*value, limits.attribute_length));
            let words = words_of_one(key, &value);
            if kept.len() == most || total + words > MAX_ATTRIBUTE_WORDS {
                break;
            }
            total += words;
            kept.push((key, value));
        }
        Self {
            dropped: (list.len() - kept.len()) as u32,
            list: kept,
        }
    }
}

/// Words of one attribute.
#[inline]
pub(super) fn words_of_one(key: KeyRef<'_>, value: &ValueRef<'_>) -> usize {
    1 + words_of(key_len(key)) + words_of(value_len(value))
}

/// Bytes of the key's text in the record.
#[inline]
fn key_len(key: KeyRef<'_>) -> usize {
    match key {
        KeyRef::Text(text) => text.len(),
        KeyRef::Known(_) => 0,
    }
}

#[inline]
pub(super) fn value_len(value: &ValueRef<'_>) -> usize {
    match value {
        ValueRef::Str(text) => text.len(),
        ValueRef::Array(ArrayRef(bytes)) => bytes.len(),
        _ => 8,
    }
}

#[inline]
pub(super) fn cut_key(key: KeyRef<'_>) -> KeyRef<'_> {
    match key {
        KeyRef::Text(text) => KeyRef::Text(cut(text, MAX_TEXT)),
        known => known,
    }
}

#[inline]
pub(super) fn cut_value(value: ValueRef<'_>, length: Option<usize>) -> ValueRef<'_> {
    match value {
        ValueRef::Str(text) => ValueRef::Str(cut(limits::cut(text, length), MAX_VALUE)),
        // Half an array would say something else than the whole.
        ValueRef::Array(ArrayRef(bytes)) if bytes.len() > MAX_VALUE => {
            ValueRef::Str("(array too long)")
        }
        other => other,
    }
}

/// Attributes out of a record, decoded as they are asked for.
#[derive(Debug, Clone)]
pub(crate) struct Attributes<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(reader: Reader<'a>, count: usize) -> Self {
        Self {
            reader,
            left: count,
        }
    }

    /// With texts as such, and keys by their numbers where they have one.
    pub(crate) fn keyed(&self) -> impl Iterator<Item = (KeyRef<'a>, ValueRef<'a>)> + use<'a> {
        let mut rest = self.clone();
        std::iter::from_fn(move || {
            let (key, value) = rest.read()?;
            let key = match key {
                Key::Known(id) => KeyRef::Known(id),
                Key::Text(bytes) => KeyRef::Text(text(bytes)),
            };
            Some((key, typed(value)))
        })
    }

    /// With texts as such.
    pub(crate) fn typed(&self) -> impl Iterator<Item = (&'a str, ValueRef<'a>)> + use<'a> {
        self.clone().map(|(key, value)| (text(key), typed(value)))
    }

    /// As owned attributes.
    pub(crate) fn to_vec(&self) -> Vec<Attribute> {
        let owned = |(key, value): (&str, ValueRef<'_>)| Attribute::new(key, value.to_value());
        self.typed().map(owned).collect()
    }

    /// How many they are.
    pub(crate) fn len(&self) -> usize {
        self.left
    }

    /// The first text under each of these keys, in one pass.
    pub(crate) fn texts<const N: usize>(&self, keys: [KeyRef<'_>; N]) -> [Option<&'a [u8]>; N] {
        let mut found = [None; N];
        let mut rest = self.clone();
        while let Some((key, kind, len)) = rest.head() {
            let scalar = matches!(kind, I64 | F64 | BOOL);
            let value = rest.reader.bytes(if scalar { 8 } else { len });
            if kind != TEXT {
                continue;
            }
            for (wanted, found) in keys.iter().zip(&mut found) {
                let same = match (&key, wanted) {
                    (Key::Known(id), KeyRef::Known(wanted)) => id == wanted,
                    (Key::Known(id), KeyRef::Text(wanted)) => id.text() == *wanted,
                    (Key::Text(bytes), wanted) => *bytes == wanted.text().as_bytes(),
                };
                if same && found.is_none() {
                    *found = value;
                }
            }
        }
        found
    }

    /// Writes each as field `field` of a message: on its way no value is anything in between,
    /// which would cost more than the writing.
    pub(crate) fn write(&self, field: u8, out: &mut Out) {
        let mut rest = self.clone();
        while let Some((key, kind, len)) = rest.head() {
            let key = match key {
                Key::Known(id) => id.text().as_bytes(),
                Key::Text(bytes) => bytes,
            };
            if let TEXT | ARRAY = kind {
                let Some(bytes) = rest.reader.bytes(len) else {
                    return;
                };
                match kind {
                    TEXT => out.text_attribute(field, key, bytes),
                    _ => out.array_attribute(field, key, bytes),
                }
                continue;
            }
            let Some(word) = rest.reader.word() else {
                return;
            };
            match kind {
                I64 => out.i64_attribute(field, key, word as i64),
                F64 => out.f64_attribute(field, key, f64::from_bits(word)),
                _ => out.bool_attribute(field, key, word != 0),
            }
        }
    }

    /// The next one's key, type and length, up to its value.
    #[inline]
    fn head(&mut self) -> Option<(Key<'a>, u64, usize)> {
        self.left = self.left.checked_sub(1)?;
        let head = self.reader.word()?;
        let kind = head >> 16 & 0xff;
        let key = if kind & KNOWN != 0 {
            Key::Known(KeyId::from_number(head as u16))
        } else {
            Key::Text(self.reader.bytes((head & 0xffff) as usize)?)
        };
        Some((key, kind & !KNOWN, (head >> HEAD_BITS) as usize))
    }

    fn read(&mut self) -> Option<(Key<'a>, Raw<'a>)> {
        let (key, kind, len) = self.head()?;
        let value = match kind {
            TEXT => Raw::Text(self.reader.bytes(len)?),
            I64 => Raw::I64(self.reader.word()? as i64),
            F64 => Raw::F64(f64::from_bits(self.reader.word()?)),
            BOOL => Raw::Bool(self.reader.word()? != 0),
            _ => Raw::Array(self.reader.bytes(len)?),
        };
        Some((key, value))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (&'a [u8], Raw<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value) = self.read()?;
        let key = match key {
            Key::Known(id) => id.text().as_bytes(),
            Key::Text(bytes) => bytes,
        };
        Some((key, value))
    }
}

/// A key as it is in a record.
enum Key<'a> {
    Known(KeyId),
    Text(&'a [u8]),
}

/// Texts were written from such texts.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn typed(value: Raw<'_>) -> ValueRef<'_> {
    match value {
        Raw::Text(bytes) => ValueRef::Str(text(bytes)),
        Raw::I64(n) => ValueRef::I64(n),
        Raw::F64(n) => ValueRef::F64(n),
        Raw::Bool(b) => ValueRef::Bool(b),
        Raw::Array(bytes) => ValueRef::Array(ArrayRef(bytes)),
    }
}
