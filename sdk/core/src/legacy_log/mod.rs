//! The legacy log: the line format that OmniInfer's tools read and write, with
//! what it cannot hold in an optional JSON object at the end of the line.

mod entry;
mod line;
mod writer;

pub(crate) use entry::{Entry, event_entry, loose_entry, merge, span_entries};
pub use entry::{SpanSuffix, Suffix};
pub(crate) use line::LineFormatter;
pub use line::{ActionLine, Line, LineError, MARKER, parse_line};
pub(crate) use writer::LegacyLog;
