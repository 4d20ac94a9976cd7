//! Traces that a caller wants whatever any sampler says.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::id::TraceId;

/// Traces remembered; they are rare, and where two have one place the later one counts.
const PLACES: usize = 4_096;

/// The traces that have come with B3's debug flag, which goes on with each call that is
/// made for them (OpenTelemetry specification, "Propagators API", "B3 Extract"). It is not
/// one of the flags that a span's context has, so it is kept beside them.
///
/// No lock: a process may fork at any time.
pub struct DebugTraces([AtomicU64; PLACES]);

impl DebugTraces {
    /// None yet.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; PLACES])
    }

    /// Remembers a trace.
    pub fn insert(&self, trace_id: TraceId) {
        let (place, mark) = self.find(trace_id);
        place.store(mark, Ordering::Relaxed);
    }

    /// Whether this trace is one of them.
    pub fn contains(&self, trace_id: TraceId) -> bool {
        let (place, mark) = self.find(trace_id);
        place.load(Ordering::Relaxed) == mark
    }

    fn find(&self, trace_id: TraceId) -> (&AtomicU64, u64) {
        let mark = xxhash_rust::xxh3::xxh3_64(&trace_id.value().to_le_bytes()) | 1;
        (&self.0[(mark >> 32) as usize % PLACES], mark)
    }
}

impl Default for DebugTraces {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_known_until_another_one_takes_its_place() {
        let traces = DebugTraces::new();
        let ids: Vec<TraceId> = (1..=100_000).filter_map(TraceId::new).collect();
        assert!(!ids.iter().any(|id| traces.contains(*id)));
        for id in &ids {
            traces.insert(*id);
            assert!(traces.contains(*id));
        }
        let known = ids.iter().filter(|id| traces.contains(**id)).count();
        assert!((1..=PLACES).contains(&known), "{known}");
    }
}
