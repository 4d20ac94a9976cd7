//! What is known of an open span.

use std::sync::Arc;

use tracing::Metadata;

use crate::carry::Passing;
use crate::config::Limits;
use crate::context::SpanContext;
use crate::event::{FreeSpan, Parent};
use crate::id::SpanId;
use crate::key::{KeyId, KeyRef};
use crate::queue::{Limited, More};
use crate::recorder::Recorder;
use crate::span::{SpanKind, StatusRef};
use crate::value::ValueRef;

use super::fields::EventSaid;

/// Memory that a span leaves to the next, in bytes, for its attributes and as much for
/// its events and links.
const KEPT: usize = 1024;

/// What the fields of a span say.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Empty: the one in the code.
    pub(super) name: String,
    pub(super) kind: Option<SpanKind>,
    pub(super) status: Code,
    /// Why it has failed.
    pub(super) description: String,
    pub(super) attributes: Limited,
}

/// A span's status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Code {
    #[default]
    Unset,
    Ok,
    Error,
}

/// An open span, but for what [`super::open::OpenSpan`] has of it.
#[derive(Debug, Default)]
pub(super) struct Recording {
    pub(super) metadata: Option<&'static Metadata<'static>>,
    /// Nanoseconds since 1970.
    pub(super) start: u64,
    pub(super) parent: Option<SpanId>,
    pub(super) parent_is_remote: bool,
    /// What came with its context and goes on with it.
    pub(super) passing: Option<Arc<Passing>>,
    pub(super) said: Said,
    more: More,
    events: usize,
    links: usize,
}

impl Said {
    pub(super) fn clear(&mut self) {
        self.name.clear();
        self.kind = None;
        self.status = Code::Unset;
        self.description.clear();
        self.attributes.clear(KEPT);
    }

    /// Says why it has failed, which it then has.
    pub(super) fn describe(&mut self, description: &str) {
        self.description.clear();
        self.description.push_str(description);
        self.status = Code::Error;
    }

    fn status(&self) -> StatusRef<'_> {
        match self.status {
            Code::Unset => StatusRef::Unset,
            Code::Ok => StatusRef::Ok,
            Code::Error => StatusRef::Error(&self.description),
        }
    }

    /// Takes what is said later.
    pub(super) fn update(&mut self, later: &mut Self) {
        if !later.name.is_empty() {
            std::mem::swap(&mut self.name, &mut later.name);
        }
        self.kind = later.kind.or(self.kind);
        if later.status != Code::Unset {
            self.status = later.status;
        }
        if !later.description.is_empty() {
            std::mem::swap(&mut self.description, &mut later.description);
        }
        self.add(&later.attributes);
    }

    fn add(&mut self, later: &Limited) {
        self.attributes.dropped += later.dropped;
        later.with(|attributes| {
            for (key, value) in attributes.typed() {
                self.set(key, value);
            }
        });
    }

    fn set(&mut self, key: &str, value: ValueRef<'_>) {
        let key = KeyId::of(key).map_or(KeyRef::Text(key), KeyRef::Known);
        self.attributes.set(key, value);
    }
}

impl Recording {
    /// Leaves memory for the next span.
    pub(super) fn clear(&mut self) {
        self.metadata = None;
        self.parent = None;
        self.parent_is_remote = false;
        self.passing = None;
        self.said.clear();
        self.more.clear(KEPT);
        (self.events, self.links) = (0, 0);
    }

    /// Adds an event; `time` is nanoseconds since 1970.
    pub(super) fn add_event(&mut self, time: u64, event: &EventSaid, limits: &Limits) {
        if self.events >= limits.events {
            self.more.dropped.events += 1;
        } else {
            self.more.event(time, &event.name, &event.attributes);
            self.events += 1;
        }
        self.heed(&event.span);
    }

    /// What an event says of the span that it is in.
    fn heed(&mut self, said: &Said) {
        if said.status == Code::Error && self.said.status != Code::Ok {
            self.said.status = Code::Error;
            if !said.description.is_empty() {
                self.said.describe(&said.description);
            }
        }
        self.said.add(&said.attributes);
    }

    /// Adds a link to another span.
    pub(super) fn add_link(&mut self, to: &SpanContext, trace_state: &str, limits: &Limits) {
        if self.links >= limits.links {
            self.more.dropped.links += 1;
            return;
        }
        self.more
            .link(to.trace_id, to.span_id, trace_state, &Limited::NEW);
        self.links += 1;
    }

    /// Hands it over.
    #[inline]
    pub(super) fn record(&mut self, recorder: &Recorder, context: &SpanContext, end: u64) {
        if !context.is_sampled() {
            return recorder.leave_out();
        }
        let parent = match self.parent {
            Some(span_id) => Parent::Span(SpanContext {
                span_id,
                ..*context
            }),
            None => Parent::Root(context.trace_id),
        };
        self.more.dropped.attributes = self.said.attributes.dropped;
        let name = match &*self.said.name {
            "" => self.metadata.map_or("", Metadata::name),
            name => name,
        };
        let passing = self.passing.as_deref();
        let span = FreeSpan {
            parent_is_remote: self.parent_is_remote,
            trace_state: passing.map_or("", Passing::tracestate),
            kind: self.said.kind.unwrap_or_default(),
            status: self.said.status(),
            ..FreeSpan::new(name, self.start, end, context.span_id, parent)
        };
        recorder.packed_span(&span, &self.said.attributes, self.more.finish());
    }
}
