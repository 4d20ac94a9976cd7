//! A file that takes its name only when it is complete.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The files of this process that have not taken their name yet.
static UNFINISHED: Mutex<Unfinished> = Mutex::new(Unfinished {
    parts: BTreeSet::new(),
    ended: false,
});

struct Unfinished {
    parts: BTreeSet<PathBuf>,
    ended: bool,
}

fn unfinished() -> MutexGuard<'static, Unfinished> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what [`convert`](super::convert) has written of files that are not complete, and
/// lets it begin no other: for a process that a signal ends, whose files are not dropped.
pub fn remove_unfinished() {
    let mut unfinished = unfinished();
    unfinished.ended = true;
    for part in std::mem::take(&mut unfinished.parts) {
        // There is nobody left to tell.
        let _ = std::fs::remove_file(part);
    }
}

/// `-` is stdout.
pub(super) struct WholeFile {
    out: Box<dyn Write>,
    rename: Option<(PathBuf, PathBuf)>,
}

impl WholeFile {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            let out = Box::new(io::stdout());
            return Ok(Self { out, rename: None });
        }
        if path.is_dir() {
            let reason = "is a directory";
            return Err(io::Error::new(io::ErrorKind::IsADirectory, reason));
        }
        if path.exists() && !path.is_file() {
            // A pipe or device: there is nothing to rename.
            let out = Box::new(File::create(path)?);
            return Ok(Self { out, rename: None });
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let part = path.with_file_name(name);
        let mut unfinished = unfinished();
        if unfinished.ended {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let file = File::create(&part)?;
        unfinished.parts.insert(part.clone());
        Ok(Self {
            out: Box::new(file),
            rename: Some((part, path.to_owned())),
        })
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.flush()?;
        if let Some((part, path)) = &self.rename {
            let mut unfinished = unfinished();
            std::fs::rename(part, path)?;
            unfinished.parts.remove(part);
            self.rename = None;
        }
        Ok(())
    }
}

impl Write for WholeFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.out.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if let Some((part, _)) = &self.rename {
            // Unfinished: better no file than half of one.
            let _ = std::fs::remove_file(part);
            unfinished().parts.remove(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_file_is_gone_and_the_old_one_stays_until_the_new_one_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.json");
        std::fs::write(&path, "old").unwrap();
        let names = || std::fs::read_dir(folder.path()).unwrap().count();
        let mut half = WholeFile::create(&path).unwrap();
        half.write_all(b"ne").unwrap();
        assert_eq!(names(), 2);
        drop(half);
        assert_eq!(
            (names(), std::fs::read_to_string(&path).unwrap()),
            (1, "old".into())
        );
        let mut whole = WholeFile::create(&path).unwrap();
        whole.write_all(b"new").unwrap();
        whole.finish().unwrap();
        assert_eq!(
            (names(), std::fs::read_to_string(&path).unwrap()),
            (1, "new".into())
        );
    }
}
