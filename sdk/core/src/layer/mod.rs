//! `tracing` spans, recorded with our own recorder.
//!
//! [`layer()`] makes a [`Layer`] for a [`tracing_subscriber`] registry. Spans, their
//! fields and their events become what tracing-opentelemetry makes of them, special
//! fields included: `otel.name`, `otel.kind`, `otel.status_code` and
//! `otel.status_description`. Other than there,
//!
//! - unsigned integers are integers (those beyond 63 bits are text),
//! - a field that is recorded twice has its last value,
//! - what is the same for all spans of one place in the code (`target`, `code.*`,
//!   `level`) is only recorded if asked for: [`Layer::with_target`],
//!   [`Layer::with_location`], [`Layer::with_level`],
//! - threads and idle times are not recorded.
//!
//! A service joins its caller's trace with [`extract`] and has its callees join it with
//! [`inject`]; [`set_parent`], [`context_of`] and [`current`] are for what is no header.
//!
//! What happens on omnitrace's own thread is never recorded, its HTTP client included.

mod callsite;
mod context;
mod describe;
mod entered;
mod event;
mod fields;
mod open;
mod recording;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::Context;

use crate::carry::Passing;
use crate::clock;
use crate::context::SpanContext;
use crate::diagnostics;
use crate::id::{SpanId, random_root};
use crate::process::Process;
use crate::recorder::Recorder;

pub use context::{SetParentError, context_of, current, extract, inject, set_parent};

use callsite::Fields;
use describe::{Describe, Origin};
use fields::Values;
use open::{OpenSpan, OpenSpans};
use recording::{Recording, Said};

thread_local! {
    /// Memory for what is said next of a span that is open.
    static SAID: Cell<Option<Box<Said>>> = const { Cell::new(None) };
}

/// A layer that records for this process's tracing: what
/// [`start`](crate::start()) has started, else what the environment says.
///
/// ```no_run
/// use tracing_subscriber::layer::SubscriberExt as _;
/// use tracing_subscriber::util::SubscriberInitExt as _;
///
/// tracing_subscriber::registry().with(omnitrace::layer()).init();
/// // … the service …
/// omnitrace::shutdown(std::time::Duration::from_secs(2));
/// ```
pub fn layer() -> Layer {
    Layer::new(Process::first())
}

/// Records `tracing` spans. It goes with every other layer and with per-layer filters.
///
/// ```no_run
/// use tracing_subscriber::filter::LevelFilter;
/// use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
///
/// let recorded = omnitrace::layer()
///     .with_location(true)
///     .with_filter(LevelFilter::INFO);
/// let subscriber = tracing_subscriber::registry().with(recorded);
/// # drop(subscriber);
/// ```
pub struct Layer {
    process: Arc<Process>,
    /// Tells it from other layers of this process.
    number: u64,
    spans: OpenSpans,
    describe: Describe,
}

impl Layer {
    pub(crate) fn new(process: Arc<Process>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            process,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            spans: OpenSpans::new(),
            describe: Describe::default(),
        }
    }

    /// Whether each span has the attribute `target`, most often its module; off. Events
    /// always have it.
    ///
    /// ```no_run
    /// let layer = omnitrace::layer().with_target(true);
    /// # drop(layer);
    /// ```
    pub fn with_target(mut self, target: bool) -> Self {
        self.describe.target = target;
        self
    }

    /// Whether spans and events have the attributes `code.file.path`,
    /// `code.module.name` and `code.line.number`; off, for they are about as long as
    /// the rest of a span.
    ///
    /// ```no_run
    /// let layer = omnitrace::layer().with_location(true);
    /// # drop(layer);
    /// ```
    pub fn with_location(mut self, location: bool) -> Self {
        self.describe.location = location;
        self
    }

    /// Whether each span has the attribute `level` (`INFO`); off. Events always have it.
    ///
    /// ```no_run
    /// let layer = omnitrace::layer().with_level(true);
    /// # drop(layer);
    /// ```
    pub fn with_level(mut self, level: bool) -> Self {
        self.describe.level = level;
        self
    }

    /// The innermost span that this thread is in.
    #[inline]
    fn current(&self) -> Option<&OpenSpan> {
        entered::current(self.number).and_then(|id| self.spans.get(&id))
    }

    /// Fills in a new span.
    #[inline]
    fn begin(&self, recording: &mut Recording, attributes: &Attributes<'_>) {
        let metadata = attributes.metadata();
        recording.metadata = Some(metadata);
        let to = &mut recording.said;
        if !self.describe.is_nothing() {
            let origin = Origin::of(metadata);
            self.describe.add(&mut to.attributes, metadata, &origin);
        }
        let fields = Fields::of(metadata);
        attributes.record(&mut Values { fields, to });
    }
}

/// A new trace with its first span.
fn root(recorder: &Recorder) -> SpanContext {
    let (trace_id, span_id) = random_root();
    SpanContext {
        trace_id,
        span_id,
        flags: recorder.sampler().flags(None, trace_id),
    }
}

impl<S: Subscriber> tracing_subscriber::Layer<S> for Layer {
    #[inline]
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        if diagnostics::is_own_thread() {
            return;
        }
        let Some(recorder) = self.process.recorder() else {
            return self.process.count_late();
        };
        let start = clock::now();
        let parent = match attributes.parent() {
            Some(parent) => self.spans.get(parent),
            None if attributes.is_contextual() => self.current(),
            None => None,
        };
        let above = parent.and_then(OpenSpan::context);
        let context = match above {
            Some(above) => SpanContext {
                span_id: SpanId::random(),
                ..above
            },
            None => root(recorder),
        };
        let passing = parent.and_then(OpenSpan::passing);
        self.spans.insert(id, &context, passing, |recording| {
            recording.start = start;
            recording.parent = above.map(|above| above.span_id);
            let limits = recorder.limits();
            let said = &mut recording.said.attributes;
            said.limit(limits.attributes, limits.attribute_length);
            self.begin(recording, attributes);
        });
    }

    #[inline]
    fn on_enter(&self, id: &Id, _: Context<'_, S>) {
        if self.spans.get(id).is_some() {
            entered::enter(self.number, id);
        }
    }

    #[inline]
    fn on_exit(&self, id: &Id, _: Context<'_, S>) {
        if let Some(span) = self.spans.get(id) {
            span.leave(clock::now());
            entered::exit(self.number, id);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let (Some(recorder), Some(span)) = (self.process.recorder(), self.spans.get(id)) else {
            return;
        };
        let Some(metadata) = span.lock().metadata else {
            return;
        };
        // Not into the span at once: a value's Debug may come here for the same span.
        let mut said = SAID.try_with(Cell::take).ok().flatten().unwrap_or_default();
        let (fields, limits) = (Fields::of(metadata), recorder.limits());
        said.attributes
            .limit(limits.attributes, limits.attribute_length);
        let to = &mut *said;
        values.record(&mut Values { fields, to });
        span.lock().said.update(&mut said);
        said.clear();
        // A thread that is about to end keeps nothing.
        let _ = SAID.try_with(|kept| kept.set(Some(said)));
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, _: Context<'_, S>) {
        let (Some(span), Some(followed)) = (self.spans.get(id), self.spans.get(follows)) else {
            return;
        };
        if let (Some(context), Some(recorder)) = (followed.context(), self.process.recorder()) {
            let passing = followed.passing();
            let state = passing.as_deref().map_or("", Passing::tracestate);
            span.lock().add_link(&context, state, recorder.limits());
        }
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if diagnostics::is_own_thread() {
            return;
        }
        let span = match event.parent() {
            Some(parent) => self.spans.get(parent),
            None if event.is_contextual() => self.current(),
            None => None,
        };
        let span = span.filter(|span| span.own_context().is_some_and(|own| own.is_sampled()));
        if let (Some(span), Some(recorder)) = (span, self.process.recorder()) {
            event::record(event, span, self.describe.location, recorder.limits());
        }
    }

    #[inline]
    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.spans.remove(&id, |span, recording| {
            let Some(recorder) = self.process.recorder() else {
                return self.process.count_late();
            };
            if let Some(context) = span.own_context() {
                // What other threads do in a span may keep it open after it was left.
                let end = span.left().unwrap_or_else(clock::now);
                recording.record(recorder, &context, end);
            }
        });
    }
}
