//! A request as the old converter sees it: for each action the earliest time, and who
//! recorded that.

use std::sync::Arc;

use omnitrace::id::TraceId;
use omnitrace::{SpanContext, Vocabulary};

use super::chain::{ACTIONS, SLOTS, slot};
use crate::reader::Request;

/// The earliest of an action's events.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Moment {
    /// Nanoseconds since 1970.
    pub(super) time: u64,
    pub(super) role: Arc<str>,
    pub(super) ip: Arc<str>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Legacy {
    pub(super) id: Box<str>,
    pub(super) trace_id: TraceId,
    pub(super) moments: Vec<Option<Moment>>,
}

impl Legacy {
    pub(super) fn new(vocabulary: &Vocabulary, request: &Request) -> Self {
        let mut moments: Vec<Option<Moment>> = vec![None; ACTIONS];
        let mut proxy: Option<Arc<str>> = None;
        let mut context: Option<SpanContext> = None;
        for event in &request.events {
            let extra = event.extra.as_deref();
            context = context.or(extra.and_then(|e| e.context));
            let host = extra.and_then(|e| e.host.as_ref());
            let ip = match host {
                Some(host) if event.source.node.is_empty() => host,
                _ => &event.source.node,
            };
            if &*event.source.role == "proxy" && !ip.is_empty() && proxy.is_none() {
                proxy = Some(Arc::clone(ip));
            }
            let action = vocabulary.action_named(&event.action);
            let Some(moment) = action.and_then(|a| moments.get_mut(usize::from(a.0))) else {
                continue;
            };
            if moment.as_ref().is_none_or(|m| event.time < m.time) {
                *moment = Some(Moment {
                    time: event.time,
                    role: Arc::clone(&event.source.role),
                    ip: Arc::clone(ip),
                });
            }
        }
        // The scheduler's lines name no host; it is the same proxy.
        let lost = moments.iter_mut().flatten();
        for moment in lost.filter(|m| &*m.role == "proxy" && m.ip.is_empty()) {
            if let Some(ip) = &proxy {
                moment.ip = Arc::clone(ip);
            }
        }
        Self {
            trace_id: context.map_or_else(|| TraceId::of_request(&request.id), |c| c.trace_id),
            id: request.id.clone(),
            moments,
        }
    }

    /// Whether at most one of the old catalogue's actions is missing.
    pub(super) fn is_complete(&self) -> bool {
        self.moments.iter().flatten().count() >= ACTIONS - 1
    }

    /// Both ends of a span, if both are known.
    pub(super) fn ends(&self, at: usize) -> Option<(&Moment, &Moment)> {
        let (start, end, _) = slot(at);
        Some((self.moments[start].as_ref()?, self.moments[end].as_ref()?))
    }

    pub(super) fn is_there(&self) -> [bool; SLOTS] {
        std::array::from_fn(|at| self.ends(at).is_some())
    }

    /// Microseconds of a span as the old converter counts them; never less than 0.
    pub(super) fn duration(&self, at: usize) -> Option<u64> {
        let (start, end) = self.ends(at)?;
        Some(((seconds(end.time) - seconds(start.time)) * 1e6) as u64)
    }
}

/// The number that stood in the log, as Python reads it.
pub(super) fn seconds(nanos: u64) -> f64 {
    let text = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    // Digits and a point are always a number.
    text.parse().unwrap_or_default()
}
