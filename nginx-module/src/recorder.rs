//! The way into the core crate: this process's pipeline and the attributes that go into it.

use std::cell::RefCell;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::time::Duration;

use omnitrace::id::{PhaseKey, SpanId, SpanIds};
use omnitrace::pipeline::StartError;
use omnitrace::propagation::Propagators;
use omnitrace::vocabulary::{KnownPhase, PhaseActions};
use omnitrace::{Action, Config, FinishedPhase, KeyRef, Pipeline, Sampler, Stats, ValueRef};
use smallvec::SmallVec;

use crate::actions::{self, Try};
use crate::books::OwnBooks;
use crate::context::RequestContext;
use crate::live::LiveRequests;

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
    ids: RefCell<SpanIds>,
    /// What may be recorded at once, by whoever knows all of it.
    known: Option<Known>,
    /// Requests that are recorded when they are over.
    pub(crate) live: LiveRequests,
}

/// The module's own phases in the vocabulary.
pub(crate) struct Known {
    /// The request; of one whose id was made here it is the second.
    roots: [KnownPhase; 2],
    /// Tries by their kind.
    tries: [KnownPhase; Try::COUNT],
}

impl Known {
    fn of(pipeline: &Pipeline) -> Option<Self> {
        let root = |start| PhaseActions {
            name: actions::ROOT,
            start,
            end: actions::RECEIVED_ALL_TOKENS,
        };
        let tries = [Try::Prefill, Try::Decode, Try::Plain];
        let start = tries.map(|kind| [kind.start()]);
        let call = |kind: Try| PhaseActions {
            name: kind.phase(),
            start: &start[kind as usize],
            end: kind.finish(),
        };
        let [first, second, third] = tries.map(call);
        let phases = [
            root(&[actions::TIME_RECEIVED]),
            root(&[actions::START_TO_SCHEDULE, actions::TIME_RECEIVED]),
            first,
            second,
            third,
        ];
        let [received, scheduled, tries @ ..] = pipeline.recorder().known_phases(phases)?;
        Some(Self {
            roots: [received, scheduled],
            tries,
        })
    }
}

/// A phase of a request that is over.
pub(crate) struct Finished<'a> {
    pub(crate) occurrence: u16,
    /// Nanoseconds since 1970.
    pub(crate) start: u64,
    /// Nanoseconds since 1970.
    pub(crate) end: u64,
    pub(crate) attributes: &'a [(KeyRef<'a>, ValueRef<'a>)],
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
        let open = Arc::new(AtomicU64::new(0));
        let unsaid = Arc::clone(&open);
        let keep = move |stats: &Stats| {
            if let Some(books) = &kept {
                books.write(stats, unsaid.load(Ordering::Relaxed));
            }
        };
        let pipeline = Pipeline::start_observed(config, keep)?;
        let recorder = Self {
            known: Known::of(&pipeline),
            pipeline,
            books,
            node,
            ids: RefCell::default(),
            live: LiveRequests::new(open),
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
        recorder.live.say(&recorder);
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

    /// What may be recorded at once of a request. Omni Proxy's lines say more of theirs.
    pub(crate) fn known(&self, context: &RequestContext) -> Option<&Known> {
        self.known.as_ref().filter(|_| context.omni.is_none())
    }

    /// Records the root of a request of which nothing else was recorded.
    pub(crate) fn root(
        &self,
        known: &Known,
        context: &RequestContext,
        end: u64,
        attributes: &[(KeyRef<'_>, ValueRef<'_>)],
    ) {
        let phase = known.roots[usize::from(context.id_was_made)];
        let root = Finished {
            occurrence: 0,
            start: context.arrived,
            end,
            attributes,
        };
        self.finished(known, context, phase, root);
    }

    /// Records a try that is over.
    pub(crate) fn call(
        &self,
        known: &Known,
        context: &RequestContext,
        kind: Try,
        call: Finished<'_>,
    ) {
        self.finished(known, context, known.tries[kind as usize], call);
    }

    fn finished(
        &self,
        known: &Known,
        context: &RequestContext,
        phase: KnownPhase,
        finished: Finished<'_>,
    ) {
        // A full queue drops it, and counts it.
        self.pipeline.recorder().finished_phase(&FinishedPhase {
            phase,
            occurrence: finished.occurrence,
            start: finished.start,
            end: finished.end,
            request_id: context.request_id,
            context: context.remote,
            entry: known.roots[usize::from(context.id_was_made)],
            entered: context.arrived,
            attributes: finished.attributes,
        });
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
        context.begin(self);
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
        context.begin(self);
        let action = context.action(name, time, attributes);
        self.pipeline.recorder().last_action(&action);
    }

    /// The id of a phase's span, as the assembler derives it.
    pub(crate) fn span_id(&self, context: &RequestContext, phase: &str, occurrence: u16) -> SpanId {
        PhaseKey {
            trace_id: context.trace_id,
            request_id: context.canonical,
            remote_parent: context.remote_span(),
            entered: context.arrived,
            role: ROLE,
            node: &self.node,
            phase,
            occurrence,
        }
        .span_id_with(&mut self.ids.borrow_mut())
    }
}

/// Attributes of a span, as long as the request lives.
#[derive(Default)]
pub(crate) struct Attributes<'r>(SmallVec<[(KeyRef<'r>, ValueRef<'r>); 24]>);

impl<'r> Attributes<'r> {
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
