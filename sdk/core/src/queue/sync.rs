//! What the ring is made of.

pub(super) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Zeroed by the allocator: pages are touched only when written.
pub(super) fn zeroed(words: usize) -> Box<[AtomicU64]> {
    bytemuck::zeroed_slice_box(words)
}
