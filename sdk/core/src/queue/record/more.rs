//! A span's events and links, written as they come.

use crate::encode::{self, Out};
use crate::id::{SpanId, TraceId};
use crate::span::Dropped;

use super::MAX_MORE_WORDS;
use super::limited::Limited;

/// Most bytes of events and links: there is room left for the counts of what is not
/// there.
const MAX_BYTES: usize = 8 * MAX_MORE_WORDS - 32;

/// What few spans have, as OTLP fields, as much of it as a record has room for.
#[derive(Debug, Default)]
pub(crate) struct More {
    bytes: Vec<u8>,
    /// What is left out.
    pub(crate) dropped: Dropped,
}

impl More {
    pub(crate) const NEW: Self = Self {
        bytes: Vec::new(),
        dropped: Dropped {
            attributes: 0,
            events: 0,
            links: 0,
        },
    };

    /// Empties it and keeps memory for at most `kept` bytes.
    pub(crate) fn clear(&mut self, kept: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(kept);
        self.dropped = Dropped::default();
    }

    /// Adds an event; `time` is nanoseconds since 1970.
    pub(crate) fn event(&mut self, time: u64, name: &str, attributes: &Limited) {
        let name = name.as_bytes();
        let fits = self.add(|out| {
            let dropped = attributes.dropped;
            attributes.with(|list| encode::event(time, name, list, dropped, out));
        });
        self.dropped.events += u32::from(!fits);
    }

    /// Adds a link to another span.
    pub(crate) fn link(
        &mut self,
        trace_id: TraceId,
        span_id: SpanId,
        trace_state: &str,
        attributes: &Limited,
    ) {
        let state = trace_state.as_bytes();
        let fits = self.add(|out| {
            let dropped = attributes.dropped;
            attributes.with(|list| encode::link(trace_id, span_id, state, list, dropped, out));
        });
        self.dropped.links += u32::from(!fits);
    }

    fn add(&mut self, write: impl FnOnce(&mut Out)) -> bool {
        let before = self.bytes.len();
        let mut out = Out::over(std::mem::take(&mut self.bytes), before);
        write(&mut out);
        self.bytes = out.finish();
        let fits = self.bytes.len() <= MAX_BYTES;
        if !fits {
            self.bytes.truncate(before);
        }
        fits
    }

    /// All of it; nothing can be added any more.
    pub(crate) fn finish(&mut self) -> &[u8] {
        if self.dropped != Dropped::default() {
            let before = self.bytes.len();
            let mut out = Out::over(std::mem::take(&mut self.bytes), before);
            encode::dropped(self.dropped, &mut out);
            self.bytes = out.finish();
        }
        &self.bytes
    }
}
