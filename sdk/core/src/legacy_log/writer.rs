//! The file behind the legacy log: one per process, rotated by size.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
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
    size: u64,
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
        let size = file.metadata()?.len();
        Ok(Open { file, size })
    }
}

/// This thread's number in the kernel, without a foreign call.
fn thread_id() -> u32 {
    std::fs::read_link("/proc/thread-self")
        .ok()
        .and_then(|link| link.file_name()?.to_str()?.parse().ok())
        .unwrap_or_else(std::process::id)
}
