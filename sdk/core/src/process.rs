//! The start of tracing in a Rust service.
//!
//! ```text
//!  start() ─► Tracing ─┬─ layer()           `tracing` spans
//!                      ├─ span_processor()  OpenTelemetry SDK spans
//!                      └─ recorder()        anything else
//! ```
//! The exporter thread begins with the first span: a service may fork before, and what
//! an OpenTelemetry provider says of the resource still counts.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::config::Config;
use crate::delivery::Stats;
use crate::layer::Layer;
use crate::pipeline::Pipeline;
use crate::recorder::Recorder;
use crate::span_processor::SpanProcessor;
use crate::value::{Attribute, Value};

/// How long [`Tracing`] waits for a Collector when it is dropped.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// The process's tracing, that [`layer`](crate::layer()) and
/// [`span_processor`](crate::span_processor()) record for.
static PROCESS: Mutex<Option<Arc<Process>>> = Mutex::new(None);

/// Starts tracing with the settings of the environment. Mistakes in them are told, and
/// never keep the service from running.
///
/// ```no_run
/// use tracing_subscriber::layer::SubscriberExt as _;
/// use tracing_subscriber::util::SubscriberInitExt as _;
///
/// let tracing = omnitrace::start();
/// tracing_subscriber::registry().with(tracing.layer()).init();
///
/// tracing::info_span!("tokenize", tokens = 812).in_scope(|| { /* … */ });
///
/// tracing.shutdown(std::time::Duration::from_secs(2));
/// ```
pub fn start() -> Tracing {
    let (config, mistakes) = from_env();
    mistakes.iter().for_each(|mistake| tell(mistake));
    start_with(config)
}

/// Starts tracing with these settings.
///
/// ```
/// # use std::time::Duration;
/// let (mut config, warnings) = omnitrace::Config::from_vars(|name| match name {
///     "OTEL_SERVICE_NAME" => Some("checkout".into()),
///     "OTEL_TRACES_EXPORTER" => Some("none".into()),
///     "OMNITRACE_LEGACY_LOG" => Some("off".into()),
///     _ => None,
/// });
/// assert!(warnings.is_empty());
/// config.set_resource("deployment.environment.name", "staging");
/// let tracing = omnitrace::start_with(config);
/// # assert!(tracing.flush(Duration::from_secs(1)));
/// ```
pub fn start_with(config: Config) -> Tracing {
    Tracing(Process::new(config).share())
}

/// Delivers what there is within `timeout`, and ends the tracing that was started
/// first, by whomever. The books of it; none where nothing was started.
///
/// ```
/// use std::time::Duration;
/// // The last thing in `main` of a service that has only said `omnitrace::layer()`.
/// omnitrace::shutdown(Duration::from_secs(2));
/// ```
pub fn shutdown(timeout: Duration) -> Option<Stats> {
    let process = lock(&PROCESS).clone()?;
    Some(process.end(timeout))
}

/// Tracing in this process. It ends with this, at most two seconds later:
/// [`Tracing::shutdown`] sets another time and says what became of the spans.
#[must_use = "tracing ends when this is dropped"]
pub struct Tracing(Arc<Process>);

impl Tracing {
    /// A layer for a [`tracing_subscriber`] registry.
    ///
    /// ```
    /// use tracing_subscriber::layer::SubscriberExt as _;
    /// # let (config, _) = omnitrace::Config::from_vars(|name| {
    /// #     (name == "OTEL_TRACES_EXPORTER").then(|| "none".into())
    /// # });
    /// # let tracing = omnitrace::start_with(omnitrace::Config {
    /// #     legacy_log: omnitrace::config::LegacyLogMode::Off, ..config
    /// # });
    /// let subscriber = tracing_subscriber::registry().with(tracing.layer());
    /// # drop(subscriber);
    /// ```
    pub fn layer(&self) -> Layer {
        Layer::new(Arc::clone(&self.0))
    }

    /// A processor for an [`opentelemetry_sdk`] tracer provider.
    ///
    /// ```
    /// use opentelemetry_sdk::trace::SdkTracerProvider;
    /// # let (config, _) = omnitrace::Config::from_vars(|name| {
    /// #     (name == "OTEL_TRACES_EXPORTER").then(|| "none".into())
    /// # });
    /// # let tracing = omnitrace::start_with(omnitrace::Config {
    /// #     legacy_log: omnitrace::config::LegacyLogMode::Off, ..config
    /// # });
    /// let provider = SdkTracerProvider::builder()
    ///     .with_span_processor(tracing.span_processor())
    ///     .build();
    /// # drop(provider);
    /// ```
    pub fn span_processor(&self) -> SpanProcessor {
        SpanProcessor::new(Arc::clone(&self.0))
    }

    /// What spans and actions are recorded with directly. None: tracing is switched
    /// off, has ended, or no thread could be made for it.
    ///
    /// ```no_run
    /// use omnitrace::{FreeSpan, Parent, clock, id::{SpanId, TraceId}};
    /// # let tracing = omnitrace::start();
    /// if let Some(recorder) = tracing.recorder() {
    ///     let (start, root) = (clock::now(), Parent::Root(TraceId::random()));
    ///     // … the work …
    ///     let span = FreeSpan::new("reindex", start, clock::now(), SpanId::random(), root);
    ///     recorder.span(&span);
    /// }
    /// ```
    pub fn recorder(&self) -> Option<&Arc<Recorder>> {
        self.0.recorder()
    }

    /// Waits until everything recorded before is exported or in the legacy log. A
    /// Collector that does not take it now is not waited for. False: the time ran out
    /// or something had to be dropped.
    ///
    /// ```no_run
    /// # let tracing = omnitrace::start();
    /// let is_safe = tracing.flush(std::time::Duration::from_secs(5));
    /// # let _ = is_safe;
    /// ```
    pub fn flush(&self, timeout: Duration) -> bool {
        self.0.flush(timeout)
    }

    /// What became of every span so far, those included that came after the end.
    ///
    /// ```no_run
    /// # let tracing = omnitrace::start();
    /// println!("{} spans are on their way", tracing.stats().in_flight);
    /// ```
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }

    /// Delivers or logs everything within `timeout`, and records nothing more. What
    /// became of every span.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # let tracing = omnitrace::start();
    /// let stats = tracing.shutdown(Duration::from_secs(2));
    /// assert_eq!(stats.created, stats.exported + stats.logged + stats.dropped_total());
    /// ```
    pub fn shutdown(&self, timeout: Duration) -> Stats {
        self.0.end(timeout)
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        self.0.end(EXIT_TIMEOUT);
    }
}

/// What [`Tracing`], its layers and its processors share.
pub(crate) struct Process {
    settings: Mutex<Settings>,
    /// None: it is switched off, or could not be started.
    pipeline: OnceLock<Option<Pipeline>>,
    has_ended: AtomicBool,
    /// Spans that came after the end.
    late: AtomicU64,
}

struct Settings {
    config: Config,
    /// The pipeline has been started with them, or tried.
    are_used: bool,
}

impl Process {
    fn new(config: Config) -> Self {
        let are_used = false;
        Self {
            settings: Mutex::new(Settings { config, are_used }),
            pipeline: OnceLock::new(),
            has_ended: AtomicBool::new(false),
            late: AtomicU64::new(0),
        }
    }

    /// The process's own: what was started first, else what the environment says.
    pub(crate) fn first() -> Arc<Self> {
        let mut mistakes = Vec::new();
        let process = {
            let mut first = lock(&PROCESS);
            match first.as_ref().filter(|process| !process.has_ended()) {
                Some(running) => Arc::clone(running),
                None => {
                    let (config, warnings) = from_env();
                    mistakes = warnings;
                    Arc::clone(first.insert(Arc::new(Self::new(config))))
                }
            }
        };
        // This may call the service's own code.
        mistakes.iter().for_each(|mistake| tell(mistake));
        process
    }

    /// Makes it the process's own, unless there is one.
    fn share(self) -> Arc<Self> {
        let process = Arc::new(self);
        let mut first = lock(&PROCESS);
        if first.as_ref().is_none_or(|first| first.has_ended()) {
            *first = Some(Arc::clone(&process));
        }
        process
    }

    /// None: nothing is to be recorded.
    #[inline]
    pub(crate) fn recorder(&self) -> Option<&Arc<Recorder>> {
        if self.has_ended() {
            return None;
        }
        self.pipeline().map(Pipeline::recorder)
    }

    #[inline]
    fn pipeline(&self) -> Option<&Pipeline> {
        self.pipeline.get_or_init(|| self.start()).as_ref()
    }

    #[cold]
    fn start(&self) -> Option<Pipeline> {
        let config = {
            let mut settings = lock(&self.settings);
            settings.are_used = true;
            settings.config.clone()
        };
        if config.disabled {
            return None;
        }
        Pipeline::start(config)
            .inspect_err(|error| tell(&format!("{error}; nothing is traced in this process")))
            .ok()
    }

    /// Adds resource attributes, of which those that are there already are replaced.
    /// False: it is too late.
    pub(crate) fn merge_resource(&self, attributes: Vec<Attribute>) -> bool {
        let mut settings = lock(&self.settings);
        if settings.are_used {
            return false;
        }
        let config = &mut settings.config;
        for Attribute { key, value } in attributes {
            match (&*key, value) {
                (key @ ("service.name" | "host.ip"), Value::Str(text)) => {
                    config.set_resource(key, &text);
                }
                (key, value) => crate::value::set_attribute(&mut config.resource, key, value),
            }
        }
        true
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }

    /// Counts a span that came after the end.
    pub(crate) fn count_late(&self) {
        // One of a service that traces nothing is not late.
        if self.has_ended() && !lock(&self.settings).config.disabled {
            self.late.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn flush(&self, timeout: Duration) -> bool {
        let running = self.pipeline.get().and_then(Option::as_ref);
        running.is_none_or(|pipeline| self.has_ended() || pipeline.flush(timeout))
    }

    fn stats(&self) -> Stats {
        let running = self.pipeline.get().and_then(Option::as_ref);
        let mut stats = running.map(Pipeline::stats).unwrap_or_default();
        let late = self.late.load(Ordering::Relaxed);
        if late > 0 {
            stats.created += late;
            *stats.dropped.entry("after_shutdown").or_default() += late;
        }
        stats
    }

    fn end(&self, timeout: Duration) -> Stats {
        if !self.has_ended.swap(true, Ordering::Relaxed)
            && let Some(Some(pipeline)) = self.pipeline.get()
        {
            pipeline.shutdown(timeout);
        }
        self.stats()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A message for whoever runs the service. Where nobody listens yet, as before a
/// subscriber is set, it goes to standard error.
pub(crate) fn tell(message: &str) {
    if tracing::enabled!(target: "omnitrace", tracing::Level::WARN) {
        tracing::warn!(target: "omnitrace", "{message}");
    } else {
        eprintln!("omnitrace: {message}");
    }
}

/// The environment's settings, and the mistakes in them.
fn from_env() -> (Config, Vec<String>) {
    let (mut config, mistakes) = Config::from_env();
    // Without a role it is no vLLM node.
    if config.service_name.is_empty() && std::env::var_os("ROLE").is_none() {
        config.service_name = unknown_service();
    }
    (config, mistakes)
}

/// The name of a service that nobody has named (OpenTelemetry, resource semantic
/// conventions, "Service").
fn unknown_service() -> String {
    let program = std::env::args_os().next();
    let program = program.as_deref().map(Path::new).and_then(Path::file_name);
    program.map_or_else(
        || "unknown_service".to_owned(),
        |name| format!("unknown_service:{}", name.to_string_lossy()),
    )
}
