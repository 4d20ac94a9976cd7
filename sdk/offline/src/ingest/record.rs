//! One line's content as it travels through the partitions: compact bytes.
//!
//! ```text
//! length u32 · hash u64 · time u64 · action u16 · source u16 · occurrence u16 · kind u8 · id length u16 · id · rest
//! ```
//! `length` counts what follows it. All numbers are little-endian.

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// An event; `rest` is its JSON object, or empty.
    Event,
    /// The same, and a caller's context is in its object.
    EventWithContext,
    /// A finished span; `id` is its trace and span id, `rest` the line it came from.
    Span,
}

/// A record, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    /// Of the request id, or of a span's trace id.
    pub(super) hash: u64,
    pub(super) time: u64,
    pub(super) action: u16,
    pub(super) source: u16,
    pub(super) occurrence: u16,
    pub(super) kind: Kind,
    pub(super) id: &'a [u8],
    pub(super) rest: &'a [u8],
}

const FIXED: usize = 8 + 8 + 2 + 2 + 2 + 1 + 2;

impl<'a> Record<'a> {
    /// Appends it. An id or rest too long for the format is none of ours: nothing is
    /// appended then, and the answer is false.
    pub(super) fn append(&self, out: &mut Vec<u8>) -> bool {
        let length = FIXED + self.id.len() + self.rest.len();
        let (Ok(length), Ok(id_length)) = (u32::try_from(length), u16::try_from(self.id.len()))
        else {
            return false;
        };
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&self.hash.to_le_bytes());
        out.extend_from_slice(&self.time.to_le_bytes());
        out.extend_from_slice(&self.action.to_le_bytes());
        out.extend_from_slice(&self.source.to_le_bytes());
        out.extend_from_slice(&self.occurrence.to_le_bytes());
        out.push(self.kind as u8);
        out.extend_from_slice(&id_length.to_le_bytes());
        out.extend_from_slice(self.id);
        out.extend_from_slice(self.rest);
        true
    }

    /// The record at the front, and what follows it.
    pub(super) fn read(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (length, bytes) = bytes.split_first_chunk::<4>()?;
        let (record, after) = bytes.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let (hash, record) = record.split_first_chunk()?;
        let (time, record) = record.split_first_chunk()?;
        let (action, record) = record.split_first_chunk()?;
        let (source, record) = record.split_first_chunk()?;
        let (occurrence, record) = record.split_first_chunk()?;
        let (kind, record) = record.split_first()?;
        let (id_length, record) = record.split_first_chunk()?;
        let (id, rest) = record.split_at_checked(usize::from(u16::from_le_bytes(*id_length)))?;
        let record = Self {
            hash: u64::from_le_bytes(*hash),
            time: u64::from_le_bytes(*time),
            action: u16::from_le_bytes(*action),
            source: u16::from_le_bytes(*source),
            occurrence: u16::from_le_bytes(*occurrence),
            kind: match kind {
                0 => Kind::Event,
                1 => Kind::EventWithContext,
                _ => Kind::Span,
            },
            id,
            rest,
        };
        Some((record, after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_as_it_was_written_and_half_a_record_is_none() {
        let record = Record {
            hash: 0x1234_5678_9abc_def0,
            time: 1_795_334_645_577_302_011,
            action: 36,
            source: 7,
            occurrence: 1,
            kind: Kind::EventWithContext,
            id: b"38a4",
            rest: b"{\"occurrence\":1}",
        };
        let mut bytes = Vec::new();
        assert!(record.append(&mut bytes) && record.append(&mut bytes));
        let (first, after) = Record::read(&bytes).unwrap();
        assert_eq!(first, record);
        assert_eq!(Record::read(after).unwrap(), (record, &[][..]));
        for length in 0..bytes.len() / 2 {
            assert_eq!(Record::read(&bytes[..length]), None);
        }
    }
}
