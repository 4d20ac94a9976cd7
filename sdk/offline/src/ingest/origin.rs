//! Who has recorded an event, as far as its log tells.

use std::path::Path;

/// A role, its node, and for a proxy, whose lines name neither, the log that they are in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Origin<T> {
    pub(crate) role: T,
    pub(crate) node: T,
    /// Empty where the line names its node.
    pub(crate) log: T,
}

impl<T> Origin<T> {
    pub(super) fn map<U>(self, of: impl Fn(T) -> U) -> Origin<U> {
        Origin {
            role: of(self.role),
            node: of(self.node),
            log: of(self.log),
        }
    }
}

impl<T: PartialEq> Origin<T> {
    /// Whether nothing but the log differs.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (&self.role, &self.node) == (&other.role, &other.node)
    }
}

/// What all files of one log have in common: their path without what rotation and
/// compression add to it, as in `error.log.2.gz` or `error.log-20261122.zst`.
pub(super) fn log_of(path: &Path) -> String {
    let whole = path.to_string_lossy();
    let bare = (whole.strip_suffix(".gz"))
        .or(whole.strip_suffix(".zst"))
        .unwrap_or(&whole);
    let digits = bare.trim_end_matches(|c: char| c.is_ascii_digit());
    let rotated = digits.strip_suffix(['.', '-']);
    match rotated.filter(|log| digits.len() < bare.len() && log.ends_with(".log")) {
        Some(log) => log.to_owned(),
        None => bare.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_rotated_log_are_one_and_others_are_not() {
        for (path, log) in [
            ("a/error.log", "a/error.log"),
            ("a/error.log.gz", "a/error.log"),
            ("a/error.log.1", "a/error.log"),
            ("a/error.log.12.gz", "a/error.log"),
            ("a/error.log-20261122.zst", "a/error.log"),
            ("b/error.log", "b/error.log"),
            ("nginx_10.0.0.1.log", "nginx_10.0.0.1.log"),
            ("nginx_10.0.0.1", "nginx_10.0.0.1"),
            ("nginx_10.0.0.2", "nginx_10.0.0.2"),
            ("-", "-"),
        ] {
            assert_eq!(log_of(Path::new(path)), log);
        }
    }
}
