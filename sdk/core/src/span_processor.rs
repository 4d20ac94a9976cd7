//! Our recorder behind an OpenTelemetry SDK: for services that use
//! [`opentelemetry_sdk`] or tracing-opentelemetry already.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use opentelemetry::trace as otel;
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData};

use crate::config::Limits;
use crate::context::SpanContext;
use crate::event::{FreeSpan, Parent};
use crate::id::{SpanId, TraceId};
use crate::key::KeyRef;
use crate::process::{Process, tell};
use crate::queue::{Limited, More};
use crate::recorder::Recorder;
use crate::span::{Dropped, InstrumentationScope, ScopeId, SpanKind, StatusRef};
use crate::value::{Array, Attribute, ValueRef};

/// How long a flush may take that says no time, as the SDK's own processors have it.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// Memory that a thread keeps for its next span, in bytes, for each kind of thing.
const KEPT: usize = 8192;
/// Scopes that a thread remembers.
const KEPT_SCOPES: usize = 64;

thread_local! {
    static MEMORY: Cell<Memory> = const { Cell::new(Memory::NEW) };
    /// Numbers of scopes, for each processor by its own number.
    static SCOPES: RefCell<Vec<(u64, opentelemetry::InstrumentationScope, ScopeId)>> =
        const { RefCell::new(Vec::new()) };
}

/// A processor that records for this process's tracing: what
/// [`start`](crate::start()) has started, else what the environment says.
///
/// ```no_run
/// use opentelemetry_sdk::trace::SdkTracerProvider;
///
/// let provider = SdkTracerProvider::builder()
///     .with_span_processor(omnitrace::span_processor())
///     .build();
/// opentelemetry::global::set_tracer_provider(provider.clone());
/// // … the service …
/// let _ = provider.shutdown();
/// ```
pub fn span_processor() -> SpanProcessor {
    SpanProcessor::new(Process::first())
}

/// Hands each finished span to our recorder, whole.
///
/// The provider's resource is added to ours if it is built before the first span is
/// recorded; where both say something, the provider's counts. Its shutdown delivers
/// what there is; tracing itself goes on for the others that use it.
///
/// ```no_run
/// use opentelemetry::trace::{Tracer as _, TracerProvider as _};
/// use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
///
/// let provider = SdkTracerProvider::builder()
///     .with_resource(Resource::builder().with_service_name("checkout").build())
///     .with_span_processor(omnitrace::span_processor())
///     .build();
/// provider.tracer("cart").in_span("add", |_| { /* … */ });
/// let _ = provider.shutdown();
/// ```
pub struct SpanProcessor {
    process: Arc<Process>,
    /// Tells it from other processors of this process.
    number: u64,
    has_ended: AtomicBool,
}

impl SpanProcessor {
    pub(crate) fn new(process: Arc<Process>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            process,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            has_ended: AtomicBool::new(false),
        }
    }

    fn scope(&self, recorder: &Recorder, scope: &opentelemetry::InstrumentationScope) -> ScopeId {
        let find = |scopes: &RefCell<Vec<_>>| {
            let scopes: &mut Vec<(u64, _, _)> = &mut scopes.borrow_mut();
            let mut known = scopes.iter();
            if let Some((.., id)) = known.find(|(n, s, _)| *n == self.number && s == scope) {
                return *id;
            }
            let id = recorder.scope(&scope_of(scope));
            if scopes.len() == KEPT_SCOPES {
                scopes.clear();
            }
            scopes.push((self.number, scope.clone(), id));
            id
        };
        SCOPES
            .try_with(find)
            .unwrap_or_else(|_| recorder.scope(&scope_of(scope)))
    }

    fn deliver(&self, timeout: Duration) -> OTelSdkResult {
        let began = Instant::now();
        if self.process.flush(timeout) {
            return Ok(());
        }
        if began.elapsed() >= timeout {
            return Err(OTelSdkError::Timeout(timeout));
        }
        let reason = "spans had to be dropped, omnitrace's messages say why";
        Err(OTelSdkError::InternalFailure(reason.to_owned()))
    }
}

impl fmt::Debug for SpanProcessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpanProcessor").finish_non_exhaustive()
    }
}

impl opentelemetry_sdk::trace::SpanProcessor for SpanProcessor {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        let recorder = self.process.recorder();
        let Some(recorder) = recorder.filter(|_| !self.has_ended.load(Ordering::Relaxed)) else {
            return self.process.count_late();
        };
        let scope = self.scope(recorder, &span.instrumentation_scope);
        let mut memory = MEMORY.try_with(Cell::take).unwrap_or_default();
        memory.record(recorder, &span, scope);
        memory.clear();
        // A thread that is about to end keeps nothing.
        let _ = MEMORY.try_with(|kept| kept.set(memory));
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.deliver(FLUSH_TIMEOUT)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        if self.has_ended.swap(true, Ordering::Relaxed) {
            return Err(OTelSdkError::AlreadyShutdown);
        }
        self.deliver(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        let attributes = resource.iter().filter(|(key, value)| {
            let nobody_said =
                key.as_str() == "service.name" && value.as_str().starts_with("unknown_service");
            // Who delivers them are we.
            !nobody_said && !key.as_str().starts_with("telemetry.sdk.")
        });
        let attributes = attributes.map(|(key, value)| owned(key, value));
        if !self.process.merge_resource(attributes.collect()) {
            tell(
                "an OpenTelemetry provider was built after the first span was recorded: \
                 its resource does not count, only what omnitrace was started with",
            );
        }
    }
}

/// What a span is made in.
struct Memory {
    attributes: Limited,
    /// Of one event or link.
    of_one: Limited,
    more: More,
}

impl Memory {
    const NEW: Self = Self {
        attributes: Limited::NEW,
        of_one: Limited::NEW,
        more: More::NEW,
    };

    fn clear(&mut self) {
        self.attributes.clear(KEPT);
        self.of_one.clear(KEPT);
        self.more.clear(KEPT);
    }

    fn record(&mut self, recorder: &Recorder, span: &SpanData, scope: ScopeId) {
        let own = &span.span_context;
        let (Some(trace_id), Some(span_id)) = (trace_id(own), span_id(own.span_id())) else {
            // The SDK makes no such span.
            return;
        };
        let parent = self::span_id(span.parent_span_id);
        let parent = parent.map_or(Parent::Root(trace_id), |span_id| {
            Parent::Span(SpanContext {
                trace_id,
                span_id,
                flags: own.trace_flags().to_u8(),
            })
        });
        let (start, end) = (nanoseconds(span.start_time), nanoseconds(span.end_time));
        let limits = recorder.limits();
        self.attributes
            .limit(limits.attributes, limits.attribute_length);
        pack(
            &span.attributes,
            span.dropped_attributes_count,
            &mut self.attributes,
        );
        self.add_more(span, limits);
        let free = FreeSpan {
            parent_is_remote: span.parent_span_is_remote,
            trace_state: &own.trace_state().header(),
            kind: kind(&span.span_kind),
            status: status(&span.status),
            scope,
            ..FreeSpan::new(&span.name, start, end, span_id, parent)
        };
        recorder.packed_span(&free, &self.attributes, self.more.finish());
    }

    fn add_more(&mut self, span: &SpanData, limits: &Limits) {
        let (events, links) = (&span.events, &span.links);
        let beyond = |there: usize, most: usize| there.saturating_sub(most) as u32;
        self.more.dropped = Dropped {
            attributes: self.attributes.dropped,
            events: events.dropped_count + beyond(events.len(), limits.events),
            links: links.dropped_count + beyond(links.len(), limits.links),
        };
        self.of_one
            .limit(limits.event_attributes, limits.other_length);
        for event in events.iter().take(limits.events) {
            let (time, dropped) = (nanoseconds(event.timestamp), event.dropped_attributes_count);
            pack(&event.attributes, dropped, &mut self.of_one);
            self.more.event(time, &event.name, &self.of_one);
        }
        self.of_one
            .limit(limits.link_attributes, limits.other_length);
        for link in links.iter().take(limits.links) {
            let (to, dropped) = (&link.span_context, link.dropped_attributes_count);
            let (Some(trace_id), Some(span_id)) = (trace_id(to), span_id(to.span_id())) else {
                self.more.dropped.links += 1;
                continue;
            };
            pack(&link.attributes, dropped, &mut self.of_one);
            let state = to.trace_state().header();
            self.more.link(trace_id, span_id, &state, &self.of_one);
        }
    }
}

/// Writes attributes, of which `dropped` are not there.
fn pack(attributes: &[KeyValue], dropped: u32, to: &mut Limited) {
    to.clear(KEPT);
    to.dropped = dropped;
    for KeyValue { key, value, .. } in attributes {
        let key = KeyRef::Text(key.as_str());
        with_value(value, |value| to.push(key, value));
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::NEW
    }
}

fn trace_id(context: &otel::SpanContext) -> Option<TraceId> {
    TraceId::new(u128::from_be_bytes(context.trace_id().to_bytes()))
}

fn span_id(id: otel::SpanId) -> Option<SpanId> {
    SpanId::new(u64::from_be_bytes(id.to_bytes()))
}

/// Since 1970.
fn nanoseconds(time: SystemTime) -> u64 {
    // Before 1970 there was no OpenTelemetry.
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

fn kind(kind: &otel::SpanKind) -> SpanKind {
    match kind {
        otel::SpanKind::Server => SpanKind::Server,
        otel::SpanKind::Client => SpanKind::Client,
        otel::SpanKind::Producer => SpanKind::Producer,
        otel::SpanKind::Consumer => SpanKind::Consumer,
        otel::SpanKind::Internal => SpanKind::Internal,
    }
}

fn status(status: &otel::Status) -> StatusRef<'_> {
    match status {
        otel::Status::Unset => StatusRef::Unset,
        otel::Status::Ok => StatusRef::Ok,
        otel::Status::Error { description } => StatusRef::Error(description),
    }
}

fn scope_of(scope: &opentelemetry::InstrumentationScope) -> InstrumentationScope {
    let attributes = scope.attributes().map(|each| owned(&each.key, &each.value));
    InstrumentationScope {
        name: scope.name().into(),
        version: scope.version().unwrap_or_default().into(),
        schema_url: scope.schema_url().unwrap_or_default().into(),
        attributes: attributes.collect(),
    }
}

fn owned(key: &opentelemetry::Key, value: &opentelemetry::Value) -> Attribute {
    Attribute::new(key.as_str(), with_value(value, |value| value.to_value()))
}

/// Lends a value.
fn with_value<T>(value: &opentelemetry::Value, f: impl FnOnce(ValueRef<'_>) -> T) -> T {
    match value {
        opentelemetry::Value::Bool(b) => f(ValueRef::Bool(*b)),
        opentelemetry::Value::I64(n) => f(ValueRef::I64(*n)),
        opentelemetry::Value::F64(n) => f(ValueRef::F64(*n)),
        opentelemetry::Value::String(text) => f(ValueRef::Str(text.as_str())),
        opentelemetry::Value::Array(array) => f(ValueRef::Array(array_of(array).as_ref())),
        // Of a later version.
        other => f(ValueRef::Str(&other.as_str())),
    }
}

fn array_of(array: &opentelemetry::Array) -> Array {
    match array {
        opentelemetry::Array::Bool(list) => Array::new(list.iter().map(|b| ValueRef::Bool(*b))),
        opentelemetry::Array::I64(list) => Array::new(list.iter().map(|n| ValueRef::I64(*n))),
        opentelemetry::Array::F64(list) => Array::new(list.iter().map(|n| ValueRef::F64(*n))),
        opentelemetry::Array::String(list) => {
            Array::new(list.iter().map(|text| ValueRef::Str(text.as_str())))
        }
        // Of a later version.
        other => Array::new(std::iter::once(ValueRef::Str(&other.to_string()))),
    }
}
