//! The file behind the legacy log: one per process, rotated by size.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Appends whole lines to `log_pid_<pid>_tid_<tid>.log`, opened when the first
/// line comes. A full file is left and `….1.log`, `….2.log` follow, so that the
/// old tools' `*.log` still finds them all.
pub(crate) struct LegacyLog {
    directory: PathBuf,
    max_bytes: u64,
    open: Option<Open>,
    rotation: u32,
}

struct Open {
    file: File,
    /// Device and inode.
    identity: (u64, u64),
    size: u64,
}

/// What has become of the file that is open.
enum Fate {
    Here,
    /// Somebody has taken it away: what is written to it is lost.
    Deleted,
    /// The host has closed it; the descriptor may be another file's by now.
    Closed,
}

impl Open {
    fn fate(&self) -> Fate {
        match self.file.metadata() {
            Ok(now) if identity(&now) != self.identity => Fate::Closed,
            Ok(now) if now.nlink() == 0 => Fate::Deleted,
            Ok(_) => Fate::Here,
            Err(_) => Fate::Closed,
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl LegacyLog {
    pub(crate) fn new(directory: PathBuf, max_bytes: u64) -> Self {
        Self {
            directory,
            max_bytes,
            open: None,
            rotation: 0,
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Appends lines. On failure none of them is in the file, not even in part.
    pub(crate) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        match self.open.as_ref().map(Open::fate) {
            Some(Fate::Deleted) => self.open = None,
            // To close it could close what is not ours.
            Some(Fate::Closed) => std::mem::forget(self.open.take()),
            Some(Fate::Here) | None => {}
        }
        if self
            .open
            .as_ref()
            .is_some_and(|o| o.size > 0 && o.size + lines.len() as u64 > self.max_bytes)
        {
            self.open = None;
            self.rotation += 1;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let opened = self.open_file()?;
                self.open.insert(opened)
            }
        };
        match open.file.write_all(lines) {
            Ok(()) => {
                open.size += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                // A full disk may have taken half a line.
                let _ = open.file.set_len(open.size);
                self.open = None;
                Err(error)
            }
        }
    }

    fn open_file(&self) -> io::Result<Open> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(&self.directory)?;
        let rotation = if self.rotation > 0 {
            format!(".{}", self.rotation)
        } else {
            String::new()
        };
        let name = format!(
            "log_pid_{}_tid_{}{rotation}.log",
            std::process::id(),
            thread_id()
        );
        let path = self.directory.join(name);
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(path)?;
        let metadata = file.metadata()?;
        Ok(Open {
            file,
            identity: identity(&metadata),
            size: metadata.len(),
        })
    }
}

/// This thread's number in the kernel, without a foreign call.
pub(crate) fn thread_id() -> u32 {
    std::fs::read_link("/proc/thread-self")
        .ok()
        .and_then(|link| link.file_name()?.to_str()?.parse().ok())
        .unwrap_or_else(std::process::id)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_was_taken_away_takes_no_more_lines() {
        let directory = std::env::temp_dir().join(format!("omnitrace-log-{}", thread_id()));
        let mut log = LegacyLog::new(directory.clone(), 1 << 20);
        let files = || {
            let found = fs::read_dir(&directory).unwrap();
            found
                .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
                .collect::<Vec<_>>()
        };
        log.append(b"one\n").unwrap();
        log.append(b"two\n").unwrap();
        assert_eq!(files(), ["one\ntwo\n"]);
        for entry in fs::read_dir(&directory).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        log.append(b"three\n").unwrap();
        log.append(b"four\n").unwrap();
        assert_eq!(files(), ["three\nfour\n"]);
        fs::remove_dir_all(&directory).unwrap();
    }
}
