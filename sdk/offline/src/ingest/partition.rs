//! Records by the hash of their request, so that each request is whole in one place.

use std::sync::{Mutex, PoisonError};

use super::record::Record;
use super::spill::{Piece, Spill, SpillError};

/// Bytes that all threads together hold back before they put them away.
const BUFFERS: usize = 8 << 20;
/// Bytes of one buffer.
const BUFFER: std::ops::RangeInclusive<usize> = (1 << 10)..=(64 << 10);
/// A partition beyond this is split again.
const LARGE: usize = 16 << 20;
/// Into two to the power of this many.
const SPLIT_BITS: u32 = 4;

/// What all threads have put away.
pub(super) struct Partitions {
    bits: u32,
    buffer: usize,
    parts: Vec<Mutex<Vec<Piece>>>,
}

impl Partitions {
    /// For about so many bytes of records.
    pub(super) fn new(expected: u64, threads: usize) -> Self {
        let wanted = (expected / (LARGE as u64 / 8)).clamp(16, 4096);
        let bits = wanted.next_power_of_two().trailing_zeros();
        let parts = 1 << bits;
        Self {
            bits,
            buffer: (BUFFERS / threads / parts).clamp(*BUFFER.start(), *BUFFER.end()),
            parts: (0..parts).map(|_| Mutex::default()).collect(),
        }
    }

    /// Bits of the hash that all records of a partition share.
    pub(super) fn bits(&self) -> u32 {
        self.bits
    }

    pub(super) fn into_parts(self) -> Vec<Vec<Piece>> {
        let parts = self.parts.into_iter();
        parts
            .map(|part| part.into_inner().unwrap_or_else(PoisonError::into_inner))
            .collect()
    }
}

/// One thread's way to the partitions.
pub(super) struct Router<'a> {
    partitions: &'a Partitions,
    spill: &'a Spill,
    buffers: Vec<Vec<u8>>,
}

impl<'a> Router<'a> {
    pub(super) fn new(partitions: &'a Partitions, spill: &'a Spill) -> Self {
        Self {
            partitions,
            spill,
            buffers: vec![Vec::new(); partitions.parts.len()],
        }
    }

    /// False: the record is too long to be one.
    pub(super) fn put(&mut self, record: &Record<'_>) -> Result<bool, SpillError> {
        let part = (record.hash >> (64 - self.partitions.bits)) as usize;
        let buffer = &mut self.buffers[part];
        let fits = record.append(buffer);
        if buffer.len() >= self.partitions.buffer {
            self.flush(part)?;
        }
        Ok(fits)
    }

    fn flush(&mut self, part: usize) -> Result<(), SpillError> {
        let piece = self.spill.put(&mut self.buffers[part])?;
        let mut pieces =
            (self.partitions.parts[part].lock()).unwrap_or_else(PoisonError::into_inner);
        pieces.push(piece);
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<(), SpillError> {
        for part in 0..self.buffers.len() {
            if !self.buffers[part].is_empty() {
                self.flush(part)?;
            }
        }
        Ok(())
    }
}

/// Gives `each` the records of one partition, in parts if they are many. All records of
/// a request are in the same part.
pub(super) fn load(
    pieces: Vec<Piece>,
    bits: u32,
    spill: &Spill,
    each: &mut dyn FnMut(&[u8]) -> Result<(), SpillError>,
) -> Result<(), SpillError> {
    let size: usize = pieces.iter().map(Piece::len).sum();
    let mut bytes = Vec::new();
    if size <= LARGE || bits + SPLIT_BITS > 64 {
        bytes.reserve_exact(size);
        for piece in pieces {
            spill.take(piece, &mut bytes)?;
        }
        return each(&bytes);
    }
    let mut parts: Vec<Vec<Piece>> = (0..1 << SPLIT_BITS).map(|_| Vec::new()).collect();
    let mut buffers = vec![Vec::new(); 1 << SPLIT_BITS];
    for piece in pieces {
        bytes.clear();
        spill.take(piece, &mut bytes)?;
        let mut rest = &bytes[..];
        while let Some((record, after)) = Record::read(rest) {
            rest = after;
            let part = (record.hash << bits >> (64 - SPLIT_BITS)) as usize;
            record.append(&mut buffers[part]);
            if buffers[part].len() >= *BUFFER.end() {
                parts[part].push(spill.put(&mut buffers[part])?);
            }
        }
    }
    drop(bytes);
    for (part, mut rest) in buffers.into_iter().enumerate() {
        if !rest.is_empty() {
            parts[part].push(spill.put(&mut rest)?);
        }
    }
    for part in parts {
        // A single request with so many events cannot be split any further.
        let whole: usize = part.iter().map(Piece::len).sum();
        let bits = if whole == size { 64 } else { bits + SPLIT_BITS };
        load(part, bits, spill, each)?;
    }
    Ok(())
}
