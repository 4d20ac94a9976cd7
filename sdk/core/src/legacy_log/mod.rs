//! The legacy log: the line format that OmniInfer's tools read and write, with
//! what it cannot hold in an optional JSON object at the end of the line, or before the
//! fields of an engine's step.

mod entry;
mod line;
mod profile;
mod proxy_line;
mod sglang;
mod span_suffix;
mod writer;

pub use entry::{AttributeMap, Suffix};
pub(crate) use entry::{Entry, event_entry, loose_entry, merge, span_entries};
pub use line::{ActionLine, Line, LineError, MARKER, parse_line};
pub(crate) use line::{LineFormatter, parse_seconds};
pub use proxy_line::{MAX_PROXY_ID, ProxyAction, ProxyLine, ProxySays, parse_proxy_line};
pub use sglang::{SglangAction, SglangLine, SglangStep, sglang_node};
pub use span_suffix::{EventSuffix, LinkSuffix, ScopeSuffix, SpanSuffix};
pub(crate) use writer::{LegacyLog, thread_id};
