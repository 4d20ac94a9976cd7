//! Attribute keys by identity: a literal is the same object each time.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use omnitrace::{KeyId, KeyRef};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::cpython::utf8;

const SLOTS: usize = 512;
/// Addresses of user space fit this many bits; the rest of a slot is the number.
const ADDRESS_BITS: u32 = 48;

/// Each slot: a string's address and its key's number. The string is kept alive by
/// a reference of ours, so no other object can have its address.
static SEEN: [AtomicU64; SLOTS] = [const { AtomicU64::new(0) }; SLOTS];

/// The key that a string is; none if the object is not exactly a string.
#[inline]
pub(crate) fn key<'a>(object: Borrowed<'a, '_, PyAny>) -> Option<KeyRef<'a>> {
    let address = object.as_ptr() as u64;
    let slot = &SEEN[(address >> 4) as usize % SLOTS];
    let seen = slot.load(Ordering::Relaxed);
    if seen << (64 - ADDRESS_BITS) >> (64 - ADDRESS_BITS) == address {
        return Some(KeyRef::Known(KeyId::from_number(
            (seen >> ADDRESS_BITS) as u16,
        )));
    }
    let text = utf8(object)?;
    if let Some(id) = KeyId::of(text)
        && address >> ADDRESS_BITS == 0
    {
        remember(
            &object,
            slot,
            address | u64::from(id.number()) << ADDRESS_BITS,
        );
    }
    Some(KeyRef::Text(text))
}

#[cold]
fn remember(object: &Bound<'_, PyAny>, slot: &AtomicU64, entry: u64) {
    // SAFETY: the object is alive; the reference is the slot's.
    unsafe { ffi::Py_IncRef(object.as_ptr()) };
    let old = slot.swap(entry, Ordering::Relaxed) & ((1 << ADDRESS_BITS) - 1);
    // SAFETY: the slot held a reference to the object at this address, and has just
    // given it up. Readers use a slot's address for comparison only.
    unsafe { ffi::Py_DecRef(old as *mut ffi::PyObject) };
}
