//! Which files there are to read.

use std::io;
use std::path::{Path, PathBuf};

use super::lines::Input;
use super::spill::SpillError;

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The path is not there, or may not be read.
    #[error("cannot read {path}: {source}")]
    Open {
        /// The path as given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// There is no action in any file.
    #[error(
        "no action lines (\"<<<Action: …\") and no spans in {} under {path}; is this the trace directory (TRACE_OUTPUT_DIRECTORY)?{}",
        count(*files),
        more(problems)
    )]
    Empty {
        /// The path as given.
        path: PathBuf,
        /// Files looked at.
        files: usize,
        /// What could not be read, a line each.
        problems: Vec<String>,
    },
    /// There is no room for what was read.
    #[error(transparent)]
    Spill(#[from] SpillError),
}

fn count(files: usize) -> String {
    match files {
        0 => "no file".to_owned(),
        1 => "the one file".to_owned(),
        more => format!("the {more} files"),
    }
}

fn more(problems: &[String]) -> String {
    problems.iter().map(|p| format!("\n  {p}")).collect()
}

/// The regular files below `path` with their sizes, sorted by name.
pub fn find(path: &Path) -> Result<Vec<(PathBuf, u64)>, ReadError> {
    let open = |path: &Path| {
        let path = path.to_owned();
        move |source| ReadError::Open { path, source }
    };
    if path == Path::new("-") {
        return Ok(vec![(path.to_owned(), 0)]);
    }
    let metadata = std::fs::metadata(path).map_err(open(path))?;
    if !metadata.is_dir() {
        return Ok(vec![(path.to_owned(), metadata.len())]);
    }
    let mut found = Vec::new();
    let mut directories = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).map_err(open(&directory))? {
            let entry = entry.map_err(open(&directory))?;
            // A link that leads nowhere, or a file that has just been rotated.
            let Ok(metadata) = std::fs::metadata(entry.path()) else {
                continue;
            };
            let is_link = entry.file_type().is_ok_and(|t| t.is_symlink());
            if metadata.is_dir() && !is_link {
                directories.push(entry.path());
            } else if metadata.is_file() {
                found.push((entry.path(), metadata.len()));
            }
        }
    }
    found.sort();
    Ok(found)
}

pub(super) fn inputs(path: &Path) -> Result<Vec<Input>, ReadError> {
    let input = |(path, size)| Input { path, size };
    Ok(find(path)?.into_iter().map(input).collect())
}
