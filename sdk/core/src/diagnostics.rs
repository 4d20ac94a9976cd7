//! omnitrace's own messages, routed to where the host program logs.

use std::cell::Cell;
use std::fmt::{Debug, Write as _};
use std::sync::atomic::{AtomicU8, Ordering};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

const LEVELS: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

/// Where in [`LEVELS`] the level of this process is.
static LEVEL: AtomicU8 = AtomicU8::new(3);

/// Sends omnitrace's messages to `sink`, for this process. Does nothing where the host
/// has set a subscriber of its own: then that one gets them. The sink may be called on
/// any thread.
pub fn route(sink: impl Fn(Level, &str) + Send + Sync + 'static) {
    let subscriber = tracing_subscriber::registry().with(Route { sink });
    // The host's own subscriber wins.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Sends messages of this level and above, for this process (`OTEL_LOG_LEVEL`).
pub fn set_level(level: LevelFilter) {
    let at = LEVELS.iter().position(|known| *known == level);
    let at = at.and_then(|at| u8::try_from(at).ok()).unwrap_or(3);
    if LEVEL.swap(at, Ordering::Relaxed) != at {
        // What asks has kept the old answer.
        tracing::callsite::rebuild_interest_cache();
    }
}

/// The least that is sent.
pub fn level() -> LevelFilter {
    let at = usize::from(LEVEL.load(Ordering::Relaxed));
    LEVELS.get(at).copied().unwrap_or(LevelFilter::INFO)
}

thread_local! {
    static IS_OWN: Cell<bool> = const { Cell::new(false) };
}

/// Says that this thread is omnitrace's own: what `tracing` is told here, by an HTTP
/// client too, our layer never records. It would beget more of itself.
pub(crate) fn mark_own_thread() {
    IS_OWN.set(true);
}

/// Whether this thread is omnitrace's own.
#[inline]
pub(crate) fn is_own_thread() -> bool {
    IS_OWN.get()
}

struct Route<F> {
    sink: F,
}

impl<S: Subscriber, F: Fn(Level, &str) + Send + Sync + 'static> Layer<S> for Route<F> {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with("omnitrace") && *metadata.level() <= level()
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        (self.sink)(*event.metadata().level(), &message.0);
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
