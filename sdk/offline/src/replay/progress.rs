//! How far a replay has come, in a file: another one goes on from there.

use std::io;
use std::path::{Path, PathBuf};

use omnitrace::id::TraceId;

/// A trace's place in the order of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Of its first event, in nanoseconds since 1970.
    time: u64,
    trace: TraceId,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("--state {path}: {reason}")]
pub struct StateError {
    path: PathBuf,
    reason: String,
}

impl From<(u64, TraceId)> for Position {
    fn from((time, trace): (u64, TraceId)) -> Self {
        Self { time, trace }
    }
}

impl Position {
    /// Reads the file; none if there is no such file yet.
    pub fn load(path: &Path) -> Result<Option<Self>, StateError> {
        let failed = |reason: String| StateError {
            path: path.to_owned(),
            reason,
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error.to_string())),
        };
        let position = text.trim().split_once(' ').and_then(|(time, trace)| {
            Some(Self {
                time: time.parse().ok()?,
                trace: TraceId::parse(trace.as_bytes())?,
            })
        });
        let wrong = "is not a file that a replay has written; name another one";
        position.map(Some).ok_or_else(|| failed(wrong.to_owned()))
    }

    /// Writes the file, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), StateError> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let written = std::fs::write(&part, format!("{} {}\n", self.time, self.trace));
        let written = written.and_then(|()| std::fs::rename(&part, path));
        written.map_err(|error| StateError {
            path: path.to_owned(),
            reason: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_back_and_another_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert_eq!(Position::load(&path).unwrap(), None);
        let position = Position::from((1_795_334_645_577_302_011, TraceId::new(77).unwrap()));
        position.save(&path).unwrap();
        assert_eq!(Position::load(&path).unwrap(), Some(position));
        std::fs::write(&path, "something else\n").unwrap();
        assert_eq!(
            Position::load(&path).unwrap_err().to_string(),
            format!(
                "--state {}: is not a file that a replay has written; name another one",
                path.display()
            )
        );
    }
}
