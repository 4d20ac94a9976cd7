//! Where the time of many requests goes.
//!
//! ```text
//!  spans of a request ─► Statistics (one a thread, merged) ─► Summary ─► table, CSV, JSON
//!  spans of a request ─► Durations ─► the four statistics traces of a converted file
//! ```
//! Percentiles are exact, by linear interpolation between the two nearest ranks (numpy's
//! default). A duration is kept in four bytes, so that a request needs some hundred.

mod digest;
mod distribution;
mod log;
mod path;
mod population;
mod sources;
mod summary;
mod timeline;
mod traces;

#[cfg(test)]
mod tests;

pub use distribution::{Distribution, Numbers, percentile};
pub use log::over;
pub use population::{Options, Statistics};
pub use summary::{
    Call, Latency, OnPath, Phase, PhaseOnNode, Request, RowMillis, Stop, Summary, Throughput,
};
pub use traces::{ALL, Durations, Outline, Statistic, roles_completed};
