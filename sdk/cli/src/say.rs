//! Messages to a person.

use std::fmt::Display;
use std::io::Write;

/// Writes a line to stderr. Where nobody reads it any more, as behind `2>&1 | head`, the
/// work goes on without it.
pub(crate) fn say(message: impl Display) {
    let _ = writeln!(std::io::stderr(), "omnitrace: {message}");
}
