//! omnitrace's own messages, routed to where the host program logs.

use std::fmt::{Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// Sends omnitrace's messages of level warning and above to `sink`, for this
/// process. Does nothing where the host has set a subscriber of its own: then
/// that one gets them. The sink may be called on any thread.
pub fn route(sink: impl Fn(Level, &str) + Send + Sync + 'static) {
    let subscriber = tracing_subscriber::registry().with(Route { sink });
    // The host's own subscriber wins.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

struct Route<F> {
    sink: F,
}

impl<S: Subscriber, F: Fn(Level, &str) + Send + Sync + 'static> Layer<S> for Route<F> {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with("omnitrace") && *metadata.level() <= Level::WARN
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
