//! Events: moments within a span.

use std::cell::Cell;

use tracing::{Event, Level};

use crate::clock;
use crate::config::Limits;

use super::callsite::Fields;
use super::describe::{Describe, Origin};
use super::fields::{EventSaid, Values};
use super::open::OpenSpan;
use super::recording::Code;

thread_local! {
    /// Memory for the next event of this thread.
    static SAID: Cell<Option<Box<EventSaid>>> = const { Cell::new(None) };
}

/// Adds an event to the span that it is in.
pub(super) fn record(event: &Event<'_>, span: &OpenSpan, location: bool, limits: &Limits) {
    let time = clock::now();
    // A value's Debug may make events of its own: those find nothing here.
    let mut said = SAID.try_with(Cell::take).ok().flatten().unwrap_or_default();
    said.limit(limits);
    read(event, &mut said, location);
    span.lock().add_event(time, &said, limits);
    said.clear();
    // A thread that is about to end keeps nothing.
    let _ = SAID.try_with(|kept| kept.set(Some(said)));
}

fn read(event: &Event<'_>, said: &mut EventSaid, location: bool) {
    let metadata = event.metadata();
    let fields = Fields::of(metadata);
    event.record(&mut Values { fields, to: said });
    if said.name.is_empty() {
        said.name.push_str(metadata.name());
    }
    if *metadata.level() == Level::ERROR && said.span.status == Code::Unset {
        said.span.status = Code::Error;
    }
    let describe = Describe {
        level: true,
        target: true,
        location,
    };
    let own = Origin::of(metadata);
    let origin = Origin {
        target: said.target.as_deref().unwrap_or(own.target),
        module: said.module.as_deref().or(own.module),
        file: said.file.as_deref().or(own.file),
        line: said.line.or(own.line),
    };
    describe.add(&mut said.attributes, metadata, &origin);
}
