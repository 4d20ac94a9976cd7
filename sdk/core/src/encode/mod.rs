//! Spans as OTLP protobuf, written by hand: ten times cheaper than building the
//! messages first. A test holds every byte against prost's.
//!
//! Field numbers are those of `opentelemetry/proto/{common,trace}/v1`.

mod envelope;
mod span;

use crate::value::{ArrayRef, ValueRef};

pub(crate) use envelope::{Envelope, ScopeEnvelope};
pub(crate) use span::{dropped, event, finished_span, free_span, link, more, phase_span, span};

/// Wire types.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u8 = 5;

/// An attribute's value with its text as bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Raw<'a> {
    Text(&'a [u8]),
    I64(i64),
    F64(f64),
    Bool(bool),
    /// The bytes of an `ArrayValue`.
    Array(&'a [u8]),
}

impl<'a> From<ValueRef<'a>> for Raw<'a> {
    fn from(value: ValueRef<'a>) -> Self {
        match value {
            ValueRef::Str(text) => Self::Text(text.as_bytes()),
            ValueRef::I64(n) => Self::I64(n),
            ValueRef::F64(n) => Self::F64(n),
            ValueRef::Bool(b) => Self::Bool(b),
            ValueRef::Array(ArrayRef(bytes)) => Self::Array(bytes),
        }
    }
}

fn varint_len(n: u64) -> usize {
    // 7 bits a byte, and at least one byte: bits / 7 rounded up, without dividing.
    let bits = 64 - (n | 1).leading_zeros() as usize;
    (bits * 9 + 64) / 64
}

/// Bytes by which [`Out`] grows at most: slack that a batch may hold as it waits.
const BIG_STEP: usize = 256 << 10;

/// Bytes that are being written. There is always more room than is used, so that a
/// copy of a few bytes is a store of a whole word.
#[derive(Default)]
pub(crate) struct Out {
    bytes: Vec<u8>,
    at: usize,
}

impl Out {
    /// Over memory that has been used before, with `room` bytes kept in front.
    pub(crate) fn over(memory: Vec<u8>, room: usize) -> Self {
        let mut out = Self {
            bytes: memory,
            at: room,
        };
        out.ensure(0);
        out
    }

    /// Bytes written, the room in front included.
    pub(crate) fn len(&self) -> usize {
        self.at
    }

    /// Bytes of memory, written or not.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    pub(crate) fn written(&self) -> &[u8] {
        &self.bytes[..self.at]
    }

    pub(crate) fn written_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.at]
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.truncate(self.at);
        self.bytes
    }

    #[inline]
    fn ensure(&mut self, len: usize) {
        if self.bytes.len() < self.at + len {
            self.grow(len);
        }
    }

    #[cold]
    fn grow(&mut self, len: usize) {
        // What memory there is first; then twice as much, or a little more of what is
        // much already.
        let needed = (self.at + len).max(64);
        let more = self.bytes.len().min(BIG_STEP);
        let enough = needed.max(self.bytes.len() + more);
        if self.bytes.capacity() < needed {
            self.bytes.reserve_exact(enough - self.bytes.len());
        }
        self.bytes.resize(self.bytes.capacity(), 0);
    }

    #[inline]
    fn byte(&mut self, byte: u8) {
        self.ensure(1);
        self.bytes[self.at] = byte;
        self.at += 1;
    }

    /// The low `len` bytes of a word; the rest is written over by what follows.
    #[inline]
    fn word(&mut self, word: u64, len: usize) {
        self.ensure(8);
        self.bytes[self.at..self.at + 8].copy_from_slice(&word.to_le_bytes());
        self.at += len;
    }

    #[inline]
    pub(crate) fn copy(&mut self, bytes: &[u8]) {
        let len = bytes.len();
        if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
            self.ensure(len);
            let room = &mut self.bytes[self.at..self.at + len];
            if let (Some(head), Some(tail)) = (bytes.first_chunk::<16>(), bytes.last_chunk::<16>())
            {
                // Up to 32 bytes are two stores that may overlap; more is in between.
                if len > 32 {
                    room.copy_from_slice(bytes);
                } else {
                    room[..16].copy_from_slice(head);
                    room[len - 16..].copy_from_slice(tail);
                }
            } else {
                room[..8].copy_from_slice(first);
                room[len - 8..].copy_from_slice(last);
            }
            self.at += len;
        } else if len > 0 {
            self.word(last_word(bytes), len);
        }
    }

    #[inline]
    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.byte(n as u8 | 0x80);
            n >>= 7;
        }
        self.byte(n as u8);
    }

    /// A tag of one byte.
    #[inline]
    fn tag(&mut self, field: u8, wire: u8) {
        self.byte(field << 3 | wire);
    }

    /// A message within this one. Its length is written when it is known; `expected`
    /// is how many bytes that usually takes.
    #[inline]
    fn message(&mut self, field: u8, expected: usize, write: impl FnOnce(&mut Self)) {
        self.tag(field, LENGTH);
        let begin = self.at + expected;
        self.at = begin;
        self.ensure(0);
        write(self);
        let len = self.at - begin;
        let takes = varint_len(len as u64);
        if takes != expected {
            self.shift(begin, begin - expected + takes);
        }
        let end = std::mem::replace(&mut self.at, begin - expected);
        self.varint(len as u64);
        self.at = if takes == expected {
            end
        } else {
            self.at + len
        };
    }

    /// Moves what has been written since `from`.
    #[cold]
    fn shift(&mut self, from: usize, to: usize) {
        self.ensure(8);
        self.bytes.copy_within(from..self.at, to);
    }

    #[inline]
    fn bytes(&mut self, field: u8, value: &[u8]) {
        self.tag(field, LENGTH);
        self.varint(value.len() as u64);
        self.copy(value);
    }

    /// Protobuf leaves out empty text.
    #[inline]
    fn text(&mut self, field: u8, value: &[u8]) {
        if !value.is_empty() {
            self.bytes(field, value);
        }
    }

    #[inline]
    fn fixed64(&mut self, field: u8, value: u64) {
        if value != 0 {
            self.tag(field, FIXED64);
            self.word(value, 8);
        }
    }

    fn count(&mut self, field: u8, n: u32) {
        if n != 0 {
            self.tag(field, VARINT);
            self.varint(n.into());
        }
    }

    /// An `AnyValue` as field `field`. Its fields are a oneof, so zero and empty
    /// are written.
    #[inline]
    fn value(&mut self, field: u8, value: Raw<'_>) {
        let text_len = |len: usize| 1 + varint_len(len as u64) + len;
        self.tag(field, LENGTH);
        match value {
            Raw::Text(text) => {
                self.varint(text_len(text.len()) as u64);
                self.bytes(1, text);
            }
            Raw::Bool(b) => {
                self.byte(2);
                self.tag(2, VARINT);
                self.byte(u8::from(b));
            }
            Raw::I64(n) => {
                self.byte(1 + varint_len(n as u64) as u8);
                self.tag(3, VARINT);
                self.varint(n as u64);
            }
            Raw::F64(n) => {
                self.byte(9);
                self.tag(4, FIXED64);
                self.word(n.to_bits(), 8);
            }
            Raw::Array(bytes) => {
                self.varint(text_len(bytes.len()) as u64);
                self.bytes(5, bytes);
            }
        }
    }

    /// A `KeyValue` as field `field` of the message around it.
    #[inline]
    pub(crate) fn attribute(&mut self, field: u8, key: &[u8], value: Raw<'_>) {
        match value {
            Raw::Text(text) => self.text_attribute(field, key, text),
            Raw::I64(n) => self.i64_attribute(field, key, n),
            Raw::F64(n) => self.f64_attribute(field, key, n),
            Raw::Bool(b) => self.bool_attribute(field, key, b),
            Raw::Array(bytes) => self.array_attribute(field, key, bytes),
        }
    }

    #[inline]
    pub(crate) fn text_attribute(&mut self, field: u8, key: &[u8], text: &[u8]) {
        self.length_attribute(field, key, 1, text);
    }

    pub(crate) fn array_attribute(&mut self, field: u8, key: &[u8], bytes: &[u8]) {
        self.length_attribute(field, key, 5, bytes);
    }

    #[inline]
    pub(crate) fn i64_attribute(&mut self, field: u8, key: &[u8], n: i64) {
        self.begin_attribute(field, key, 1 + varint_len(n as u64));
        self.tag(3, VARINT);
        self.varint(n as u64);
    }

    #[inline]
    pub(crate) fn f64_attribute(&mut self, field: u8, key: &[u8], n: f64) {
        self.begin_attribute(field, key, 9);
        self.tag(4, FIXED64);
        self.word(n.to_bits(), 8);
    }

    #[inline]
    pub(crate) fn bool_attribute(&mut self, field: u8, key: &[u8], b: bool) {
        self.begin_attribute(field, key, 2);
        self.tag(2, VARINT);
        self.byte(u8::from(b));
    }

    /// An attribute whose value is field `any` of an `AnyValue`, of any length.
    #[inline]
    fn length_attribute(&mut self, field: u8, key: &[u8], any: u8, value: &[u8]) {
        let len = 1 + varint_len(value.len() as u64) + value.len();
        self.begin_attribute(field, key, len);
        self.bytes(any, value);
    }

    /// An attribute up to its value's own bytes, `len` of them. All lengths are known before
    /// anything is written.
    #[inline]
    fn begin_attribute(&mut self, field: u8, key: &[u8], len: usize) {
        let key_len = match key.len() {
            0 => 0,
            len => 1 + varint_len(len as u64) + len,
        };
        let value_len = 1 + varint_len(len as u64) + len;
        self.tag(field, LENGTH);
        self.varint((key_len + value_len) as u64);
        self.text(1, key);
        self.tag(2, LENGTH);
        self.varint(len as u64);
    }
}

/// The fields of an `ArrayValue`.
pub(crate) fn array<'a>(items: impl Iterator<Item = Raw<'a>>) -> Vec<u8> {
    let mut out = Out::default();
    items.for_each(|item| out.value(1, item));
    out.finish()
}

/// The last of the words that `bytes` are, little-endian and zero-padded.
#[inline]
pub(crate) fn last_word(bytes: &[u8]) -> u64 {
    let padding = 8 * (bytes.len().wrapping_neg() & 7);
    if let Some(last) = bytes.last_chunk::<8>() {
        return u64::from_le_bytes(*last) >> padding;
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        let high = u64::from(u32::from_le_bytes(*last)) << (32 - padding);
        return u64::from(u32::from_le_bytes(*first)) | high;
    }
    bytes
        .iter()
        .rev()
        .fold(0, |word, byte| word << 8 | u64::from(*byte))
}
