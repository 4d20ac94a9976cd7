//! Where bytes wait: in memory up to a limit, beyond it in a temporary file.
//!
//! The file has no name, so nothing of it is left however the program ends.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Bytes put away.
#[derive(Debug)]
pub(crate) enum Piece {
    Memory(Vec<u8>),
    File { offset: u64, length: usize },
}

impl Piece {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::File { length, .. } => *length,
        }
    }
}

/// A store of pieces with a limit on their memory.
#[derive(Debug)]
pub(crate) struct Spill {
    folder: PathBuf,
    limit: usize,
    held: AtomicUsize,
    file: OnceLock<File>,
    opening: Mutex<()>,
    end: AtomicU64,
}

/// The temporary file failed.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot keep the events in a temporary file in {folder}: {source}; --temp-dir names another folder"
)]
pub struct SpillError {
    /// The folder.
    pub folder: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

impl Spill {
    /// A store that keeps at most about `limit` bytes in memory.
    pub(crate) fn new(folder: &Path, limit: usize) -> Self {
        Self {
            folder: folder.to_owned(),
            limit,
            held: AtomicUsize::new(0),
            file: OnceLock::new(),
            opening: Mutex::new(()),
            end: AtomicU64::new(0),
        }
    }

    /// Puts bytes away and leaves the buffer empty.
    pub(crate) fn put(&self, bytes: &mut Vec<u8>) -> Result<Piece, SpillError> {
        let length = bytes.len();
        let held = self.held.fetch_add(length, Ordering::Relaxed);
        if held + length <= self.limit {
            // The buffer itself is used again: what waits takes no more than it needs.
            let piece = Piece::Memory(bytes.as_slice().to_vec());
            bytes.clear();
            return Ok(piece);
        }
        self.held.fetch_sub(length, Ordering::Relaxed);
        let offset = self.end.fetch_add(length as u64, Ordering::Relaxed);
        (self.file()?.write_all_at(bytes, offset)).map_err(|source| self.failed(source))?;
        bytes.clear();
        Ok(Piece::File { offset, length })
    }

    /// Appends a piece to `out` and gives up what it held.
    pub(crate) fn take(&self, piece: Piece, out: &mut Vec<u8>) -> Result<(), SpillError> {
        match piece {
            Piece::Memory(bytes) => {
                out.extend_from_slice(&bytes);
                self.held.fetch_sub(bytes.len(), Ordering::Relaxed);
                Ok(())
            }
            Piece::File { offset, length } => self.read(offset, length, out),
        }
    }

    /// Appends `length` bytes of the file to `out`.
    pub(crate) fn read(
        &self,
        offset: u64,
        length: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), SpillError> {
        let from = out.len();
        out.resize(from + length, 0);
        (self.file()?.read_exact_at(&mut out[from..], offset)).map_err(|source| self.failed(source))
    }

    fn file(&self) -> Result<&File, SpillError> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let _one = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if self.file.get().is_none() {
            let file = tempfile::tempfile_in(&self.folder).map_err(|source| self.failed(source))?;
            // Nobody else can have set it: the lock is held.
            let _ = self.file.set(file);
        }
        match self.file.get() {
            Some(file) => Ok(file),
            None => Err(self.failed(io::Error::other("it cannot be opened"))),
        }
    }

    fn failed(&self, source: io::Error) -> SpillError {
        SpillError {
            folder: self.folder.clone(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_beyond_the_limit_go_to_a_file_that_has_no_name_and_come_back_whole() {
        let folder = tempfile::tempdir().unwrap();
        let spill = Spill::new(folder.path(), 10);
        let put = |text: &str| spill.put(&mut text.as_bytes().to_vec()).unwrap();
        let pieces = [
            put("in memory"),
            put("in the file"),
            put("!"),
            put("file too"),
        ];
        let places: Vec<bool> = (pieces.iter())
            .map(|piece| matches!(piece, Piece::File { .. }))
            .collect();
        assert_eq!(places, [false, true, false, true]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut all = Vec::new();
        for piece in pieces {
            spill.take(piece, &mut all).unwrap();
        }
        assert_eq!(all, b"in memoryin the file!file too");
        assert_eq!(spill.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_folder_that_cannot_take_the_file_is_named_in_the_error() {
        let spill = Spill::new(Path::new("/nowhere/at/all"), 0);
        let error = spill.put(&mut b"x".to_vec()).unwrap_err().to_string();
        assert!(
            error.starts_with(
                "cannot keep the events in a temporary file in /nowhere/at/all: No such file"
            ),
            "{error}"
        );
    }
}
