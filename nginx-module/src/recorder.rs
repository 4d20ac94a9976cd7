//! The way into the core crate: this process's pipeline and the attributes that go into it.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use omnitrace::id::{PhaseKey, SpanId, canonical_request_id};
use omnitrace::pipeline::StartError;
use omnitrace::propagation::Propagators;
use omnitrace::{Action, Config, KeyRef, Pipeline, Sampler, Stats, ValueRef};

use crate::books::OwnBooks;
use crate::context::RequestContext;

/// An attribute's key, by its number: the text is written down once.
macro_rules! key {
    ($text:literal) => {{
        static KEY: omnitrace::Key = omnitrace::Key::new($text);
        KEY.get()
    }};
}

/// The worker's recorder, from `init_process` to `exit_process`.
static RECORDER: AtomicPtr<Recorder> = AtomicPtr::new(ptr::null_mut());

/// Role of this process in the vocabulary.
const ROLE: &str = "proxy";

/// Where a worker's actions go.
pub(crate) struct Recorder {
    pipeline: Pipeline,
    books: Option<OwnBooks>,
    node: Box<str>,
}

impl Recorder {
    /// The worker's recorder; none in other processes, and none if it could not start.
    #[inline]
    pub(crate) fn get() -> Option<&'static Self> {
        // SAFETY: set once by `start` and freed by `stop`, both on this, nginx's only, thread and
        // never while a handler runs.
        unsafe { RECORDER.load(Ordering::Relaxed).as_ref() }
    }

    /// Starts the exporter's thread, which keeps these books.
    pub(crate) fn start(config: Config, books: Option<OwnBooks>) -> Result<(), StartError> {
        let node = config.node.as_str().into();
        let kept = books.clone();
        let keep = move |stats: &Stats| {
            if let Some(books) = &kept {
                books.write(stats);
            }
        };
        let recorder = Self {
            pipeline: Pipeline::start_observed(config, keep)?,
            books,
            node,
        };
        RECORDER.store(Box::into_raw(Box::new(recorder)), Ordering::Relaxed);
        Ok(())
    }

    /// Sends what is left, at most for `limit`, and ends the exporter's thread.
    pub(crate) fn stop(limit: Duration) -> Option<Stats> {
        let recorder = RECORDER.swap(ptr::null_mut(), Ordering::Relaxed);
        if recorder.is_null() {
            return None;
        }
        // SAFETY: `start` made it with Box, and the swap took it out of everyone's reach.
        let recorder = unsafe { Box::from_raw(recorder) };
        let stats = recorder.pipeline.shutdown(limit);
        if let Some(books) = recorder.books {
            books.close(&stats);
        }
        Some(stats)
    }

    /// The formats in which context comes and goes.
    pub(crate) fn propagators(&self) -> &Propagators {
        self.pipeline.recorder().propagators()
    }

    /// What decides whether a trace is recorded.
    pub(crate) fn sampler(&self) -> &Sampler {
        self.pipeline.recorder().sampler()
    }

    /// Records an action of a request at a time in nanoseconds since 1970.
    pub(crate) fn action(
        &self,
        context: &RequestContext,
        name: &str,
        time: u64,
        occurrence: u16,
        attributes: &[(KeyRef<'_>, ValueRef<'_>)],
    ) {
        let action = Action {
            occurrence,
            ..context.action(name, time, attributes)
        };
        // A full queue drops the action, and counts it.
        self.pipeline.recorder().action(&action);
    }

    /// Records the action after which nothing more comes of a request.
    pub(crate) fn last_action(
        &self,
        context: &RequestContext,
        name: &str,
        time: u64,
        attributes: &[(KeyRef<'_>, ValueRef<'_>)],
    ) {
        let action = context.action(name, time, attributes);
        self.pipeline.recorder().last_action(&action);
    }

    /// The id of a phase's span, as the assembler derives it.
    pub(crate) fn span_id(&self, context: &RequestContext, phase: &str, occurrence: u16) -> SpanId {
        PhaseKey {
            trace_id: context.trace_id,
            request_id: canonical_request_id(context.request_id),
            remote_parent: context.remote_span(),
            entered: context.arrived,
            role: ROLE,
            node: &self.node,
            phase,
            occurrence,
        }
        .span_id()
    }
}

/// Attributes of an action, as long as the request lives.
pub(crate) struct Attributes<'r>(Vec<(KeyRef<'r>, ValueRef<'r>)>);

impl<'r> Attributes<'r> {
    pub(crate) fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    pub(crate) fn push(&mut self, key: KeyRef<'r>, value: ValueRef<'r>) {
        self.0.push((key, value));
    }

    /// Adds text, unless it is empty.
    pub(crate) fn text(&mut self, key: KeyRef<'r>, value: &'r str) {
        if !value.is_empty() {
            self.push(key, ValueRef::Str(value));
        }
    }

    pub(crate) fn integer(&mut self, key: KeyRef<'r>, value: i64) {
        self.push(key, ValueRef::I64(value));
    }

    pub(crate) fn as_slice(&self) -> &[(KeyRef<'r>, ValueRef<'r>)] {
        &self.0
    }
}
