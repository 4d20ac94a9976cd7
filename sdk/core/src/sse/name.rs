//! The name of an event.

/// More than any name that matters has.
const MOST: usize = 64;

/// What follows `event:`, as far as it is kept.
#[derive(Debug)]
pub(super) struct Name {
    bytes: [u8; MOST],
    /// Of all of it.
    len: usize,
}

impl Default for Name {
    fn default() -> Self {
        Self {
            bytes: [0; MOST],
            len: 0,
        }
    }
}

impl Name {
    #[inline]
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    pub(super) fn extend(&mut self, part: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.len..) {
            let kept = part.len().min(room.len());
            room[..kept].copy_from_slice(&part[..kept]);
        }
        self.len = self.len.saturating_add(part.len());
    }

    /// Nothing, where it is longer than all that matter.
    fn get(&self) -> &[u8] {
        let name = self.bytes.get(..self.len).unwrap_or_default();
        name.strip_prefix(b" ").unwrap_or(name)
    }

    /// Whether a content of the event is new: `response.output_text.done`, `response.completed`
    /// and the like repeat what the `….delta` before them have said.
    #[inline]
    pub(super) fn may_be_tokens(&self) -> bool {
        self.len == 0
            || self
                .get()
                .strip_prefix(b"response.")
                .is_none_or(|kind| kind.ends_with(b".delta"))
    }

    pub(super) fn is_error(&self) -> bool {
        self.get() == b"error"
    }
}
