//! Events and links of a span.

use omnitrace::Attribute;
use omnitrace::span::{Link, SpanEvent};
use pyo3::prelude::*;

use crate::attributes::text;
use crate::opentelemetry::mistakes::Mistake;
use crate::opentelemetry::packed::{Packed, Room};
use crate::opentelemetry::{parent, values};

use super::{Span, State};

impl Span {
    pub(super) fn event(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyAny>,
        attributes: Option<&Bound<'_, PyAny>>,
        time: u64,
    ) {
        let limits = self.tracer.get().provider().limits();
        let (attributes, dropped_attributes) = owned(attributes, Room::of_event(limits));
        let event = SpanEvent {
            time,
            name: text(name).as_ref().into(),
            attributes,
            dropped_attributes,
        };
        self.change(py, "add_event", |state| {
            state.add_event(event, limits.events)
        });
    }

    pub(super) fn link(
        &self,
        py: Python<'_>,
        context: &Bound<'_, PyAny>,
        attributes: Option<&Bound<'_, PyAny>>,
    ) {
        let limits = self.tracer.get().provider().limits();
        let given = attributes.is_some_and(|given| given.is_truthy().unwrap_or(true));
        let link = link(context, attributes, Room::of_link(limits));
        // What points nowhere and says nothing is none; what says something is missed.
        if given || link.is_some() {
            self.change(py, "add_link", |state| match link {
                Some(link) => state.add_link(link, limits.links),
                None => state.more().dropped_links += 1,
            });
        }
    }

    /// The links that it is made with.
    pub(crate) fn link_all(&self, links: &Bound<'_, PyAny>) {
        let each = || -> PyResult<()> {
            for link in links.try_iter()? {
                let link = link?;
                if !link.is_none() {
                    let attributes = link.getattr("attributes")?;
                    self.link(links.py(), &link.getattr("context")?, Some(&attributes));
                }
            }
            Ok(())
        };
        if let Err(error) = each() {
            let what = format!("links are no sequence of links ({error}): the rest is left out");
            Mistake::Links.say(links.py(), &what);
        }
    }
}

impl State {
    /// The oldest goes where there is no room, as with opentelemetry-python.
    fn add_event(&mut self, event: SpanEvent, limit: usize) {
        let more = self.more();
        keep_latest(&mut more.events, event, limit, &mut more.dropped_events);
    }

    fn add_link(&mut self, link: Link, limit: usize) {
        let more = self.more();
        keep_latest(&mut more.links, link, limit, &mut more.dropped_links);
    }
}

fn keep_latest<T>(list: &mut Vec<T>, item: T, limit: usize, dropped: &mut u32) {
    if list.len() >= limit {
        *dropped += 1;
        if list.is_empty() {
            return;
        }
        list.remove(0);
    }
    list.push(item);
}

/// A link to a valid context.
fn link(
    context: &Bound<'_, PyAny>,
    attributes: Option<&Bound<'_, PyAny>>,
    room: Room,
) -> Option<Link> {
    let other = match parent::read(context) {
        Ok(other) => other?,
        Err(error) => {
            let what = format!("a link needs a SpanContext ({error}): left out");
            Mistake::Link.say(context.py(), &what);
            return None;
        }
    };
    let (attributes, dropped_attributes) = owned(attributes, room);
    Some(Link {
        trace_id: other.context.trace_id,
        span_id: other.context.span_id,
        trace_state: other
            .trace_state
            .map_or("".into(), |state| state.header().into()),
        attributes,
        dropped_attributes,
    })
}

fn owned(attributes: Option<&Bound<'_, PyAny>>, room: Room) -> (Vec<Attribute>, u32) {
    let packed = attributes.map_or_else(Packed::default, |given| values::read(given, room));
    (packed.to_vec(), packed.dropped)
}
