//! Clocks: the times of many logs on one clock.
//!
//! ```text
//!  proxy's lines ─► LogClock ─► Boots: seconds since boot ─► wall clock
//!  requests ──────► Samples ──► Repair: each host's clock ─► the reference's
//!  spans ────────────────────► nest: no child outside its parent
//! ```
//! Both are fed as the logs are read, in a space that does not grow with them, and merged
//! where several threads read. Nothing here knows how events are held.

mod boots;
mod ceiling;
mod clocks;
mod fit;
mod graph;
mod link;
mod log_clock;
mod nest;
mod prefix;
mod repair;
mod report;
mod samples;

#[cfg(test)]
mod tests;

pub use boots::Boots;
pub use clocks::Clocks;
pub use log_clock::{LogClock, Register, is_since_boot};
pub use nest::{CUT_END, CUT_START, nest};
pub use repair::{Estimate, OFFSET, Repair, UNCERTAINTY};
pub use report::date;
pub use samples::{Host, HostInfo, Samples};

/// What is done about clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Times since boot become wall clock, hosts' clocks are brought onto one, and what
    /// is left is cut to fit.
    #[default]
    Auto,
    /// Times stay as they are in the logs.
    AsIs,
}
