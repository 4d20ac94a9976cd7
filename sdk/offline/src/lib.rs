//! Legacy logs in, traces out.
//!
//! ```text
//!  files ─► ingest ─► Store (requests by trace and time) ─► assemble ─► Span ─┬─► jaeger: one trace per request
//!                                                                             ├─► statistics: four more
//!                                                                             └─► replay: OTLP
//! ```
//! The spans come from the same assembler as the live ones.

pub mod assemble;
pub mod clock;
pub mod convert;
pub mod ingest;
pub mod jaeger;
mod ordered;
pub mod otlp_json;
pub mod reader;
pub mod replay;
pub mod statistics;
