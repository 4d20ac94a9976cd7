//! The books: what became of every span.

use std::collections::BTreeMap;

/// What became of every span and event of this process. At any time
/// `created = exported + in_flight + logged + dropped`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Spans made.
    pub created: u64,
    /// Spans that a Collector has taken.
    pub exported: u64,
    /// Spans waiting or on the wire.
    pub in_flight: u64,
    /// Spans that are in the legacy log and that no Collector has taken.
    pub logged: u64,
    /// Spans lost, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Events taken from the queue.
    pub events: u64,
    /// Events lost because the queue was full, or because they came after the end.
    pub events_lost: u64,
    /// Events that became part of no span.
    pub events_loose: u64,
    /// Spans not made because their trace is not sampled.
    pub unsampled: u64,
    /// Phases not made because they would end before they start.
    pub contradictory: u64,
    /// Requests that may still get events.
    pub open_requests: u64,
    /// Why the last export failed, until one succeeds.
    pub last_error: Option<String>,
}

impl Stats {
    /// Spans lost for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }
}
