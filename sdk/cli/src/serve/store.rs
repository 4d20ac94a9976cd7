//! The traces, in memory and bounded.

mod catalogue;
mod weight;

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use omnitrace_offline::jaeger::model::{Process, Span, Trace};
use omnitrace_offline::jaeger::otlp::{self, ConvertedSpan};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use serde::Serialize;

use self::catalogue::Catalogue;
pub(super) use self::catalogue::Operation;
use super::search::Search;
use crate::say::say;

type TraceId = [u8; 16];
type SpanId = [u8; 8];

/// All traces. Conversion from OTLP and to the UI's JSON happens outside the lock.
#[derive(Debug)]
pub(super) struct Store {
    limit: u64,
    shelf: RwLock<Shelf>,
    received_requests: AtomicU64,
    rejected: AtomicU64,
}

/// What the lock guards.
#[derive(Debug, Default)]
struct Shelf {
    traces: HashMap<TraceId, StoredTrace>,
    /// Each trace with the number of the last request that added to it: the
    /// first one is the next to go.
    by_age: BTreeSet<(u64, TraceId)>,
    catalogue: Catalogue,
    bytes: usize,
    spans: u64,
    requests: u64,
    duplicates: u64,
    evicted: u64,
}

#[derive(Debug)]
struct StoredTrace {
    last_request: u64,
    spans: HashMap<SpanId, StoredSpan>,
    /// The distinct processes of the spans, so that equal ones are kept once.
    processes: Vec<Arc<Process>>,
    bytes: usize,
}

#[derive(Debug)]
struct StoredSpan {
    process: Arc<Process>,
    parent_id: Option<SpanId>,
    // Boxed, because the table it is in has up to twice the room it needs.
    span: Box<Span>,
}

/// What `/stats` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Stats {
    /// Traces in memory.
    pub(super) traces: u64,
    /// Spans in memory.
    pub(super) spans: u64,
    /// Export requests that could be read.
    pub(super) received_requests: u64,
    /// Spans that came again and replaced the first.
    pub(super) duplicates: u64,
    /// Spans refused for invalid ids.
    pub(super) rejected: u64,
    /// Traces given up to stay within the memory limit.
    pub(super) evicted: u64,
}

/// Calls from one service to another.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Dependency {
    pub(super) parent: String,
    pub(super) child: String,
    pub(super) call_count: u64,
}

impl Store {
    /// An empty store that holds at most about `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            shelf: RwLock::default(),
            received_requests: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
        }
    }

    /// Adds the spans of `request` and says how many were refused for their ids.
    pub(super) fn add(&self, request: ExportTraceServiceRequest) -> usize {
        let conversion = otlp::convert(request);
        let rejected = conversion.rejected as u64;
        self.received_requests.fetch_add(1, Ordering::Relaxed);
        self.rejected.fetch_add(rejected, Ordering::Relaxed);
        let first_eviction = self.write().add(conversion.spans, self.limit);
        if first_eviction {
            say(format_args!(
                "the memory limit of {} MiB is reached; from now on the traces that \
                 have gone longest without a new span make room (--memory-limit-mib sets the limit)",
                self.limit >> 20
            ));
        }
        conversion.rejected
    }

    /// The trace with this id.
    pub(super) fn trace(&self, trace_id: TraceId) -> Option<Trace> {
        let spans = self.read().traces.get(&trace_id)?.copy();
        Some(Trace::from_spans(otlp::hex(&trace_id), spans))
    }

    /// The newest traces, by their start, that have a span which matches.
    pub(super) fn search(&self, search: &Search) -> Vec<Trace> {
        let found: Vec<_> = {
            let shelf = self.read();
            let mut found: Vec<_> = shelf
                .traces
                .iter()
                .filter(|(_, trace)| trace.matches(search))
                .map(|(trace_id, trace)| (trace.start(), *trace_id, trace))
                .collect();
            found.sort_unstable_by_key(|(start, trace_id, _)| (Reverse(*start), *trace_id));
            found.truncate(search.limit);
            found
                .into_iter()
                .map(|(_, trace_id, trace)| (trace_id, trace.copy()))
                .collect()
        };
        found
            .into_iter()
            .map(|(trace_id, spans)| Trace::from_spans(otlp::hex(&trace_id), spans))
            .collect()
    }

    /// The names of all services, in order.
    pub(super) fn services(&self) -> Vec<String> {
        self.read().catalogue.services()
    }

    /// The operations of a service, in order.
    pub(super) fn operations(&self, service: &str) -> Vec<Operation> {
        self.read().catalogue.operations(service)
    }

    /// How often services called each other, in the traces that have a span
    /// which starts within `window`, in microseconds since 1970.
    pub(super) fn dependencies(&self, window: &RangeInclusive<u64>) -> Vec<Dependency> {
        let shelf = self.read();
        let mut calls: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        let traces = shelf.traces.values();
        for trace in traces.filter(|trace| trace.starts_within(window)) {
            for child in trace.spans.values() {
                let parent = child.parent_id.and_then(|id| trace.spans.get(&id));
                let Some(parent) = parent else { continue };
                let link = (
                    parent.process.service_name.as_str(),
                    child.process.service_name.as_str(),
                );
                if link.0 != link.1 {
                    *calls.entry(link).or_default() += 1;
                }
            }
        }
        calls
            .into_iter()
            .map(|((parent, child), call_count)| Dependency {
                parent: parent.to_owned(),
                child: child.to_owned(),
                call_count,
            })
            .collect()
    }

    /// The books.
    pub(super) fn stats(&self) -> Stats {
        let shelf = self.read();
        Stats {
            traces: shelf.traces.len() as u64,
            spans: shelf.spans,
            received_requests: self.received_requests.load(Ordering::Relaxed),
            duplicates: shelf.duplicates,
            rejected: self.rejected.load(Ordering::Relaxed),
            evicted: shelf.evicted,
        }
    }

    // A panic under the lock is a bug; the data is still better than none.
    fn read(&self) -> RwLockReadGuard<'_, Shelf> {
        self.shelf.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shelf> {
        self.shelf.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    /// Adds the spans of one request, makes room if it has to, and says whether
    /// it did so for the first time.
    fn add(&mut self, spans: Vec<ConvertedSpan>, limit: u64) -> bool {
        self.requests += 1;
        let evicted_before = self.evicted;
        for span in spans {
            self.put(span);
            while self.bytes as u64 > limit && self.evict_oldest() {}
        }
        evicted_before == 0 && self.evicted > 0
    }

    fn put(&mut self, converted: ConvertedSpan) {
        let ConvertedSpan {
            trace_id,
            span_id,
            parent_id,
            process,
            span,
        } = converted;
        let trace = self.traces.entry(trace_id).or_insert_with(|| {
            self.bytes += weight::OF_TRACE;
            self.by_age.insert((self.requests, trace_id));
            StoredTrace::new(self.requests)
        });
        if trace.last_request != self.requests {
            self.by_age.remove(&(trace.last_request, trace_id));
            self.by_age.insert((self.requests, trace_id));
            trace.last_request = self.requests;
        }
        let bytes_before = trace.bytes;
        let process = trace.intern(process);
        self.catalogue.add(&process, &span);
        trace.bytes += weight::of_span(&span);
        let stored = StoredSpan {
            process,
            parent_id,
            span: Box::new(span),
        };
        match trace.spans.entry(span_id) {
            Entry::Vacant(place) => {
                place.insert(stored);
                self.spans += 1;
            }
            Entry::Occupied(mut place) => {
                let old = place.insert(stored);
                trace.bytes -= weight::of_span(&old.span);
                self.catalogue.remove(&old.process, &old.span);
                self.duplicates += 1;
            }
        }
        self.bytes = self.bytes + trace.bytes - bytes_before;
    }

    /// Gives up one trace, if there is one.
    fn evict_oldest(&mut self) -> bool {
        let oldest = self.by_age.pop_first();
        let Some(trace) = oldest.and_then(|(_, trace_id)| self.traces.remove(&trace_id)) else {
            return false;
        };
        for stored in trace.spans.values() {
            self.catalogue.remove(&stored.process, &stored.span);
        }
        self.bytes -= trace.bytes + weight::OF_TRACE;
        self.spans -= trace.spans.len() as u64;
        self.evicted += 1;
        true
    }
}

impl StoredTrace {
    fn new(last_request: u64) -> Self {
        Self {
            last_request,
            spans: HashMap::new(),
            processes: Vec::new(),
            bytes: 0,
        }
    }

    /// The process that this trace already keeps, if it is equal to `process`.
    fn intern(&mut self, process: Arc<Process>) -> Arc<Process> {
        let mut known = self.processes.iter();
        if let Some(known) = known.find(|known| Arc::ptr_eq(known, &process) || **known == process)
        {
            return Arc::clone(known);
        }
        self.bytes += weight::of_process(&process);
        self.processes.push(Arc::clone(&process));
        process
    }

    fn matches(&self, search: &Search) -> bool {
        let wanted = search.service.as_ref();
        let mut processes = self.processes.iter();
        // Quick, and true for few traces where there are many services.
        processes.any(|process| wanted.is_none_or(|name| *name == process.service_name))
            && self
                .spans
                .values()
                .any(|stored| search.matches(&stored.process, &stored.span))
    }

    fn start(&self) -> u64 {
        let starts = self.spans.values().map(|stored| stored.span.start_time);
        starts.min().unwrap_or(0)
    }

    fn starts_within(&self, window: &RangeInclusive<u64>) -> bool {
        let mut spans = self.spans.values();
        spans.any(|stored| window.contains(&stored.span.start_time))
    }

    fn copy(&self) -> Vec<(Arc<Process>, Span)> {
        self.spans
            .values()
            .map(|stored| (Arc::clone(&stored.process), (*stored.span).clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests;
