//! The legacy log: the line format that OmniInfer's tools read and write, with
//! what it cannot hold in an optional JSON object at the end of the line.

mod entry;
mod line;
mod span_suffix;
mod writer;

pub use entry::{AttributeMap, Suffix};
pub(crate) use entry::{Entry, event_entry, loose_entry, merge, span_entries};
pub(crate) use line::LineFormatter;
pub use line::{ActionLine, Line, LineError, MARKER, parse_line};
pub use span_suffix::{EventSuffix, LinkSuffix, ScopeSuffix, SpanSuffix};
pub(crate) use writer::{LegacyLog, thread_id};
