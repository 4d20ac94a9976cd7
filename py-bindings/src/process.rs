//! The one pipeline of this process: started when first needed, and again in a
//! forked child.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwapOption, Cache};
use omnitrace::config::Limits;
use omnitrace::propagation::Propagators;
use omnitrace::value::set_attribute;
use omnitrace::{Attribute, Config, Pipeline, Recorder, Sampler, Stats, Value};
use pyo3::prelude::*;

/// What callers record with; none before the first use, after a fork and after
/// shutdown.
static RECORDER: ArcSwapOption<Recorder> = ArcSwapOption::const_empty();
/// Whether there is anything to record: one of the three below.
static MODE: AtomicU8 = AtomicU8::new(ON);
const ON: u8 = 0;
/// Switched off by its settings.
const OFF: u8 = 1;
/// Shut down.
const ENDED: u8 = 2;
/// Forks between the first process of this program and this one.
static FORKS: AtomicU64 = AtomicU64::new(0);
/// Spans that came after shutdown.
static LATE_SPANS: AtomicU64 = AtomicU64::new(0);
/// Actions that came after shutdown.
static LATE_ACTIONS: AtomicU64 = AtomicU64::new(0);
static STATE: Mutex<State> = Mutex::new(State::NEW);

/// How long a fork waits for the exporter thread to be out of the way. It is there
/// after every fork all the same; a child is only safer without.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

type Cached = Cache<&'static ArcSwapOption<Recorder>, Option<Arc<Recorder>>>;

thread_local! {
    /// What this thread has recorded with, held against [`RECORDER`] each time: cheaper than to
    /// borrow that. None before the first use, and within it.
    static CACHED: Cell<Option<Cached>> = const { Cell::new(None) };
    /// The pipelines that are paused because this thread forks.
    static PAUSED: RefCell<Vec<Arc<Pipeline>>> = const { RefCell::new(Vec::new()) };
}

struct State {
    config: Option<Config>,
    pipeline: Option<Arc<Pipeline>>,
    /// The books of a pipeline that has ended.
    last: Option<Stats>,
    routed: bool,
}

impl State {
    const NEW: Self = Self {
        config: None,
        pipeline: None,
        last: None,
        routed: false,
    };

    /// What it is set up with: the environment, where nobody has said more.
    fn config(&mut self, messages: &mut Vec<String>) -> &mut Config {
        if !self.routed {
            self.routed = true;
            omnitrace::diagnostics::route(log_to_python);
        }
        self.config.get_or_insert_with(|| {
            let (config, warnings) = Config::from_env();
            messages.extend(warnings);
            config
        })
    }
}

/// The lock is only ever taken with the GIL held, so no thread can hold it while
/// another forks.
fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `f` with the recorder, starting it first if this process has none yet.
#[inline]
pub(crate) fn with_recorder<T>(f: impl FnOnce(&Recorder) -> Option<T>) -> Option<T> {
    // A thread that ends has none any more.
    let cached = CACHED.try_with(Cell::take).ok().flatten();
    let mut cached = cached.unwrap_or_else(|| Cache::new(&RECORDER));
    if let Some(recorder) = cached.load() {
        let done = f(recorder);
        let _ = CACHED.try_with(|cell| cell.set(Some(cached)));
        return done;
    }
    if MODE.load(Ordering::Relaxed) != ON {
        return None;
    }
    start().and_then(|recorder| f(&recorder))
}

/// The formats in which context comes and goes, also where nothing is recorded.
pub(crate) fn with_propagators<T>(f: impl FnOnce(&Propagators) -> T) -> T {
    if let Some(recorder) = &*RECORDER.load() {
        return f(recorder.propagators());
    }
    if MODE.load(Ordering::Relaxed) == ON
        && let Some(recorder) = start()
    {
        return f(recorder.propagators());
    }
    let config = state().config.as_ref().map(|c| c.propagators.clone());
    f(&config.unwrap_or_default())
}

/// What decides whether a span is recorded, and how much of it. The process is set up
/// first if it is not.
pub(crate) fn decisions() -> (Sampler, Limits) {
    with_recorder(|_| Some(()));
    let mut messages = Vec::new();
    let decisions = {
        let mut state = state();
        let config = state.config(&mut messages);
        (config.sampler, config.limits)
    };
    say(messages);
    decisions
}

/// Whether recording is switched off in this process.
pub(crate) fn is_off() -> bool {
    MODE.load(Ordering::Relaxed) == OFF
}

/// Tells a forked process from the one it came from.
pub(crate) fn forks() -> u64 {
    FORKS.load(Ordering::Relaxed)
}

/// Counts a span that came after shutdown.
pub(crate) fn count_late_span() {
    if LATE_SPANS.fetch_add(1, Ordering::Relaxed) == 0 {
        tracing::warn!(
            target: "omnitrace",
            "spans that end after shutdown() are dropped; stats() counts them"
        );
    }
}

/// Counts an action that nobody has recorded, if that is because of shutdown.
#[cold]
pub(crate) fn count_late_action() {
    // One of a process that could not start tracing is not late.
    if MODE.load(Ordering::Relaxed) == ENDED && LATE_ACTIONS.fetch_add(1, Ordering::Relaxed) == 0 {
        tracing::warn!(
            target: "omnitrace",
            "actions after shutdown() are lost; stats() counts them"
        );
    }
}

fn forget_late() {
    LATE_SPANS.store(0, Ordering::Relaxed);
    LATE_ACTIONS.store(0, Ordering::Relaxed);
}

/// Counts a span that is not made because its trace is not sampled.
#[inline]
pub(crate) fn count_unsampled_span() {
    with_recorder(|recorder| {
        recorder.leave_out();
        Some(())
    });
}

fn start() -> Option<Arc<Recorder>> {
    let mut messages = Vec::new();
    let recorder = start_quietly(&mut state(), &mut messages);
    say(messages);
    recorder
}

/// Python's logging may run any code, so only when the lock is free.
fn say(messages: Vec<String>) {
    for message in messages {
        tracing::warn!(target: "omnitrace", "{message}");
    }
}

fn start_quietly(state: &mut State, messages: &mut Vec<String>) -> Option<Arc<Recorder>> {
    if let Some(pipeline) = &state.pipeline {
        return Some(Arc::clone(pipeline.recorder()));
    }
    let config = state.config(messages);
    if config.disabled {
        MODE.store(OFF, Ordering::Relaxed);
        return None;
    }
    match Pipeline::start(config.clone()) {
        Ok(pipeline) => {
            let recorder = Arc::clone(pipeline.recorder());
            RECORDER.store(Some(Arc::clone(&recorder)));
            state.pipeline = Some(Arc::new(pipeline));
            Some(recorder)
        }
        Err(error) => {
            messages.push(format!("{error}; nothing is traced in this process"));
            MODE.store(OFF, Ordering::Relaxed);
            None
        }
    }
}

/// Uses `config` from now on; what ran before is shut down first.
pub(crate) fn configure(py: Python<'_>, config: Config) {
    end(py, Duration::from_secs(2));
    let mut state = state();
    state.config = Some(config);
    state.last = None;
    forget_late();
    MODE.store(ON, Ordering::Relaxed);
    drop(state);
    start();
}

/// Describes this process with these attributes too. What was recorded before is
/// delivered first, as it was described.
pub(crate) fn describe(py: Python<'_>, attributes: Vec<Attribute>) {
    let mut messages = Vec::new();
    let (config, running) = {
        let mut state = state();
        let config = state.config(&mut messages);
        for Attribute { key, value } in attributes {
            match value {
                Value::Str(text) => config.set_resource(&key, &text),
                other => set_attribute(&mut config.resource, &key, other),
            }
        }
        (config.clone(), state.pipeline.is_some())
    };
    say(messages);
    if running {
        configure(py, config);
    }
}

/// What this process is described with.
pub(crate) fn description() -> Vec<Attribute> {
    let mut messages = Vec::new();
    let resource = omnitrace::pipeline::resource(state().config(&mut messages));
    say(messages);
    resource
}

/// Delivers what there is and stops recording.
pub(crate) fn end(py: Python<'_>, timeout: Duration) {
    if !is_off() {
        MODE.store(ENDED, Ordering::Relaxed);
    }
    RECORDER.store(None);
    let pipeline = state().pipeline.take();
    if let Some(pipeline) = pipeline {
        let stats = py.detach(|| pipeline.shutdown(timeout));
        state().last = Some(stats);
    }
}

/// Waits until everything recorded so far is exported or logged.
pub(crate) fn flush(py: Python<'_>, timeout: Duration) -> bool {
    // The lock must not be held without the GIL.
    let pipeline = state().pipeline.clone();
    pipeline.is_none_or(|pipeline| py.detach(|| pipeline.flush(timeout)))
}

/// The books, of the running pipeline or of the one that has ended.
pub(crate) fn stats() -> Stats {
    let state = state();
    let running = state.pipeline.as_ref().map(|p| p.stats());
    let mut stats = running.or_else(|| state.last.clone()).unwrap_or_default();
    stats.events_lost += LATE_ACTIONS.load(Ordering::Relaxed);
    let late = LATE_SPANS.load(Ordering::Relaxed);
    if late > 0 {
        stats.created += late;
        *stats.dropped.entry("after_shutdown").or_default() += late;
    }
    stats
}

/// Frees the process of the exporter thread for as long as this thread forks.
pub(crate) fn before_fork(py: Python<'_>) {
    let Some(pipeline) = state().pipeline.clone() else {
        return;
    };
    // Our thread may be waiting for the GIL, to log something.
    py.detach(|| pipeline.pause(LONGEST_PAUSE));
    PAUSED.with_borrow_mut(|paused| paused.push(pipeline));
}

/// Goes on where [`before_fork`] has stopped.
pub(crate) fn after_fork_in_parent(py: Python<'_>) {
    let Some(pipeline) = PAUSED.with_borrow_mut(Vec::pop) else {
        return;
    };
    if let Err(error) = py.detach(|| pipeline.resume()) {
        tracing::error!(target: "omnitrace", "{error}; nothing is traced in this process");
    }
}

/// Forgets what belongs to the parent: its thread is not here, its sockets and
/// buffered spans are its own. The child starts anew when it first records.
pub(crate) fn forget_parent() {
    omnitrace::after_fork_in_child();
    FORKS.fetch_add(1, Ordering::Relaxed);
    // Dropping any of it would close what the parent uses, or tell a thread that
    // does not exist here to end.
    PAUSED.with_borrow_mut(|paused| paused.drain(..).for_each(std::mem::forget));
    let mut state = state();
    if let Some(pipeline) = state.pipeline.take() {
        std::mem::forget(pipeline);
    }
    if let Some(recorder) = RECORDER.swap(None) {
        std::mem::forget(recorder);
    }
    state.last = None;
    forget_late();
}

/// A message of ours into Python's `logging`, logger `omnitrace`. Called on the
/// exporter thread; says nothing once the interpreter is on its way out.
fn log_to_python(level: tracing::Level, message: &str) {
    let logged = Python::try_attach(|py| -> PyResult<()> {
        let logger = py
            .import("logging")?
            .call_method1("getLogger", ("omnitrace",))?;
        let method = match level {
            tracing::Level::ERROR => "error",
            tracing::Level::WARN => "warning",
            tracing::Level::INFO => "info",
            _ => "debug",
        };
        logger.call_method1(method, ("%s", message)).map(|_| ())
    });
    // A logger that fails is not a reason to fail.
    let _ = logged;
}
