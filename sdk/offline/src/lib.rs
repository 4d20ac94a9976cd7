//! Legacy logs in, traces out.
//!
//! ```text
//!  files ─► reader ─► Log (events by request) ─► assemble ─► Span ─┬─► jaeger: one trace per request
//!                                                                  ├─► statistics: four more
//!                                                                  └─► replay: OTLP
//! ```
//! The spans come from the same assembler as the live ones.

pub mod assemble;
pub mod clock;
pub mod convert;
pub mod jaeger;
pub mod reader;
pub mod replay;
pub mod statistics;
