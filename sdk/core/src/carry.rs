//! What must travel with a request between the processes of one node: what came with
//! it, its canonical id, and the start times of phases that end elsewhere.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use crate::context::SpanContext;
use crate::id::canonical_request_id;
use crate::propagation::Propagated;
use crate::vocabulary::ActionId;

/// Key of the canonical request id in a carrier.
pub(crate) const REQUEST_ID: &str = "omnitrace-request-id";
/// Key of the start times in a carrier: `<action>=<ns>,…`.
pub(crate) const STARTS: &str = "omnitrace-starts";

/// Requests remembered; the oldest make room. What is forgotten is only not
/// carried: the offline side still knows it.
const CAPACITY: usize = 16_384;
/// Bytes of baggage and tracestate remembered; a client may send 8 KiB with each
/// request.
const TEXT_CAPACITY: usize = 8 << 20;

/// What is known of one request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Carried {
    pub(crate) canonical: Arc<str>,
    pub(crate) context: Option<SpanContext>,
    pub(crate) passing: Passing,
    pub(crate) starts: Vec<(ActionId, u64)>,
}

/// What came with a request and goes on with it as it came.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Passing {
    debug: bool,
    tracestate: Option<Arc<str>>,
    baggage: Option<Arc<str>>,
}

impl Passing {
    fn of(propagated: &Propagated<'_>) -> Self {
        Self {
            debug: propagated.debug,
            tracestate: propagated.tracestate.map(Arc::from),
            baggage: propagated.baggage.map(Arc::from),
        }
    }

    fn len(&self) -> usize {
        let text = [&self.tracestate, &self.baggage].into_iter().flatten();
        text.map(|text| text.len()).sum()
    }

    /// The same with the context that it goes with.
    pub(crate) fn with(&self, context: Option<SpanContext>) -> Propagated<'_> {
        Propagated {
            context,
            deferred: false,
            debug: self.debug,
            tracestate: self.tracestate.as_deref(),
            baggage: self.baggage.as_deref(),
        }
    }
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
    /// Bytes of what they pass on.
    text: usize,
}

impl Inner {
    fn entry(&mut self, key: &str) -> &mut Carried {
        if !self.requests.contains_key(key) {
            if self.order.len() >= CAPACITY {
                self.forget_oldest();
            }
            self.order.push_back(key.into());
        }
        self.requests.entry(key.into()).or_insert_with(|| Carried {
            canonical: key.into(),
            context: None,
            passing: Passing::default(),
            starts: Vec::new(),
        })
    }

    fn forget_oldest(&mut self) {
        let oldest = self.order.pop_front();
        if let Some(carried) = oldest.and_then(|key| self.requests.remove(&key)) {
            self.text -= carried.passing.len();
        }
    }

    fn pass(&mut self, key: &str, passing: Passing) {
        let (new, old) = (passing.len(), self.entry(key).passing.len());
        self.text = self.text - old + new;
        self.entry(key).passing = passing;
        // The newest of all is kept, however long it is.
        while self.text > TEXT_CAPACITY && self.order.len() > 1 {
            self.forget_oldest();
        }
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

    /// Notes what came with a request, its context as it counts here.
    pub(crate) fn bind(
        &self,
        request_id: &str,
        canonical: &str,
        context: Option<SpanContext>,
        propagated: &Propagated<'_>,
    ) {
        let passing = Passing::of(propagated);
        self.with(|inner| {
            let key = canonical_request_id(request_id);
            let carried = inner.entry(key);
            let renewed = carried.context != context && context.is_some();
            if renewed {
                // The same id again is a new try: what it had is not its own.
                carried.starts.clear();
                carried.context = context;
            }
            carried.canonical = canonical.into();
            if renewed || passing != Passing::default() {
                inner.pass(key, passing);
            }
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

    #[test]
    fn long_baggage_makes_old_requests_go_and_what_is_left_is_counted_right() {
        let carry = Carry::default();
        let long = "k=".to_owned() + &"v".repeat(8190);
        let baggage = |text| Propagated {
            baggage: Some(text),
            ..Propagated::default()
        };
        for i in 0..2000 {
            let id = format!("request-{i}");
            // The second time takes the first one's place.
            carry.bind(&id, &id, None, &baggage("short=1"));
            carry.bind(&id, &id, None, &baggage(&long));
        }
        let kept = TEXT_CAPACITY / long.len();
        carry.with(|inner| {
            assert_eq!((inner.order.len(), inner.requests.len()), (kept, kept));
            assert_eq!(inner.text, kept * long.len());
        });
        let newest = carry.get("request-1999").unwrap();
        assert_eq!(newest.passing.with(None), baggage(&long));
        assert_eq!(carry.get("request-0"), None);
    }
}
