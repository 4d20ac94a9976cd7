//! What must travel with a request between the processes of one node: its
//! context, its canonical id, and the start times of phases that end elsewhere.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use crate::context::SpanContext;
use crate::id::canonical_request_id;
use crate::vocabulary::ActionId;

/// Key of the canonical request id in a carrier.
pub(crate) const REQUEST_ID: &str = "omnitrace-request-id";
/// Key of the start times in a carrier: `<action>=<ns>,…`.
pub(crate) const STARTS: &str = "omnitrace-starts";
/// Key of the trace context in a carrier.
pub(crate) const TRACEPARENT: &str = "traceparent";

/// Requests remembered; the oldest make room. What is forgotten is only not
/// carried: the offline side still knows it.
const CAPACITY: usize = 16_384;

/// What is known of one request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Carried {
    pub(crate) canonical: Arc<str>,
    pub(crate) context: Option<SpanContext>,
    pub(crate) starts: Vec<(ActionId, u64)>,
}

/// The requests of this process, by the id it uses. The lock is held for one
/// look-up at a time, by few actions of a request.
#[derive(Default)]
pub(crate) struct Carry {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    requests: HashMap<Box<str>, Carried>,
    order: VecDeque<Box<str>>,
}

impl Inner {
    fn entry(&mut self, key: &str) -> &mut Carried {
        if !self.requests.contains_key(key) {
            if self.order.len() >= CAPACITY
                && let Some(oldest) = self.order.pop_front()
            {
                self.requests.remove(&oldest);
            }
            self.order.push_back(key.into());
        }
        self.requests.entry(key.into()).or_insert_with(|| Carried {
            canonical: key.into(),
            context: None,
            starts: Vec::new(),
        })
    }
}

impl Carry {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes the start of a phase that ends in another process.
    pub(crate) fn start(&self, request_id: &str, action: ActionId, time: u64) {
        self.with(|inner| {
            let carried = inner.entry(canonical_request_id(request_id));
            match carried.starts.iter_mut().find(|(a, _)| *a == action) {
                Some((_, earliest)) => *earliest = time.min(*earliest),
                None => carried.starts.push((action, time)),
            }
        });
    }

    /// Notes what came with a request.
    pub(crate) fn bind(&self, request_id: &str, canonical: &str, context: Option<SpanContext>) {
        self.with(|inner| {
            let carried = inner.entry(canonical_request_id(request_id));
            if carried.context != context && context.is_some() {
                // The same id again is a new try: its old starts are not its own.
                carried.starts.clear();
                carried.context = context;
            }
            carried.canonical = canonical.into();
        });
    }

    pub(crate) fn get(&self, request_id: &str) -> Option<Carried> {
        self.with(|inner| {
            inner
                .requests
                .get(canonical_request_id(request_id))
                .cloned()
        })
    }
}

/// Start times as text.
pub(crate) fn write_starts(starts: &[(ActionId, u64)]) -> String {
    let mut text = String::new();
    for (action, time) in starts {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "{}{}={time}",
            if text.is_empty() { "" } else { "," },
            action.0
        );
    }
    text
}

/// Start times from text; what is not one is left out.
pub(crate) fn read_starts(text: &str, actions: usize) -> impl Iterator<Item = (ActionId, u64)> {
    text.split(',').filter_map(move |pair| {
        let (action, time) = pair.split_once('=')?;
        let action: u16 = action.trim().parse().ok()?;
        Some((ActionId(action), time.trim().parse().ok()?))
            .filter(|_| usize::from(action) < actions)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_survive_the_carrier_and_rubbish_does_not() {
        let starts = vec![(ActionId(7), 5), (ActionId(15), 6)];
        let text = write_starts(&starts);
        assert_eq!(text, "7=5,15=6");
        assert_eq!(read_starts(&text, 40).collect::<Vec<_>>(), starts);
        assert_eq!(
            read_starts("99=1,x=2,7=,7=8", 40).collect::<Vec<_>>(),
            [(ActionId(7), 8)]
        );
    }

    #[test]
    fn the_earliest_start_counts_and_the_oldest_request_makes_room() {
        let carry = Carry::default();
        carry.start("chatcmpl-r", ActionId(1), 9);
        carry.start("r", ActionId(1), 7);
        assert_eq!(carry.get("r").unwrap().starts, [(ActionId(1), 7)]);
        for i in 0..CAPACITY {
            carry.start(&format!("other-{i}"), ActionId(1), 1);
        }
        assert_eq!(carry.get("r"), None);
        assert_eq!(
            carry.with(|inner| (inner.requests.len(), inner.order.len())),
            (CAPACITY, CAPACITY)
        );
    }
}
