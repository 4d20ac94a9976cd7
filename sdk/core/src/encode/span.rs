//! One span.

use std::borrow::Borrow;

use crate::assembler::{FinishedSpan, PhaseSpan};
use crate::id::{SpanId, TraceId};
use crate::queue::DecodedSpan;
use crate::span::{Dropped, Link, Place, Span, SpanEvent, SpanKind, StatusRef};
use crate::value::{Attribute, ValueRef};

use super::{FIXED32, LENGTH, Out, Raw, VARINT};

/// Flag bits 8 and 9 of a span: whether its parent is remote is known, and is.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// The field of a span that each attribute is.
const ATTRIBUTE: u8 = 9;

/// A span's parts, wherever they come from.
struct Parts<'a, A, M> {
    trace_id: TraceId,
    span_id: SpanId,
    parent: Option<SpanId>,
    parent_is_remote: bool,
    flags: u8,
    trace_state: &'a [u8],
    name: &'a [u8],
    kind: SpanKind,
    start: u64,
    end: u64,
    /// Writes attributes.
    attributes: A,
    /// Writes events, links and dropped counts.
    more: M,
    /// Status code and message.
    status: Option<(u8, &'a [u8])>,
}

impl<'a, A, M> Parts<'a, A, M>
where
    A: FnOnce(&mut Out),
    M: FnOnce(&mut Out),
{
    fn flags(&self) -> u32 {
        let remote = if self.parent_is_remote { IS_REMOTE } else { 0 };
        u32::from(self.flags) | HAS_IS_REMOTE | remote
    }

    /// As a `Span` in field 2 of `ScopeSpans`.
    #[inline]
    fn write(self, out: &mut Out) {
        let flags = self.flags();
        // Most spans take between 128 and 16,383 bytes.
        out.message(2, 2, |out| {
            out.tag(1, LENGTH);
            out.byte(16);
            out.word(((self.trace_id.value() >> 64) as u64).swap_bytes(), 8);
            out.word((self.trace_id.value() as u64).swap_bytes(), 8);
            out.id(2, self.span_id);
            out.text(3, self.trace_state);
            if let Some(parent) = self.parent {
                out.id(4, parent);
            }
            out.text(5, self.name);
            out.tag(6, VARINT);
            out.byte(kind_code(self.kind));
            out.fixed64(7, self.start);
            out.fixed64(8, self.end);
            (self.attributes)(out);
            (self.more)(out);
            if let Some((code, message)) = self.status {
                out.message(15, 1, |out| {
                    out.text(2, message);
                    out.count(3, code.into());
                });
            }
            // Field 16 has a tag of two bytes.
            out.varint(u64::from(16u8) << 3 | u64::from(FIXED32));
            out.word(flags.into(), 4);
        });
    }
}

impl Out {
    fn id(&mut self, field: u8, id: SpanId) {
        self.tag(field, LENGTH);
        self.byte(8);
        self.word(id.value().swap_bytes(), 8);
    }

    fn event(&mut self, each: &SpanEvent) {
        let list = attributes(&each.attributes);
        event(
            each.time,
            each.name.as_bytes(),
            list,
            each.dropped_attributes,
            self,
        );
    }

    /// Fields 10 to 14.
    fn more(&mut self, events: &[impl Borrow<SpanEvent>], links: &[Link], dropped: Dropped) {
        self.count(10, dropped.attributes);
        events.iter().for_each(|event| self.event(event.borrow()));
        self.count(12, dropped.events);
        links.iter().for_each(|link| self.link(link));
        self.count(14, dropped.links);
    }

    fn link(&mut self, each: &Link) {
        let (state, list) = (each.trace_state.as_bytes(), attributes(&each.attributes));
        let (trace_id, span_id) = (each.trace_id, each.span_id);
        link(
            trace_id,
            span_id,
            state,
            list,
            each.dropped_attributes,
            self,
        );
    }
}

/// An attribute's key and value.
type Pair<'a> = (&'a [u8], Raw<'a>);

/// Appends an event, field 11 of its span.
pub(crate) fn event<'a>(
    time: u64,
    name: &[u8],
    attributes: impl Iterator<Item = Pair<'a>>,
    dropped_attributes: u32,
    out: &mut Out,
) {
    out.message(11, 1, |out| {
        out.fixed64(1, time);
        out.text(2, name);
        for (key, value) in attributes {
            out.attribute(3, key, value);
        }
        out.count(4, dropped_attributes);
    });
}

/// Appends a link, field 13 of its span.
pub(crate) fn link<'a>(
    trace_id: TraceId,
    span_id: SpanId,
    trace_state: &[u8],
    attributes: impl Iterator<Item = Pair<'a>>,
    dropped_attributes: u32,
    out: &mut Out,
) {
    out.message(13, 1, |out| {
        out.bytes(1, &trace_id.value().to_be_bytes());
        out.bytes(2, &span_id.value().to_be_bytes());
        out.text(3, trace_state);
        for (key, value) in attributes {
            out.attribute(4, key, value);
        }
        out.count(5, dropped_attributes);
    });
}

/// Appends the counts of what limits have kept out, fields 10, 12 and 14 of the span.
pub(crate) fn dropped(dropped: Dropped, out: &mut Out) {
    out.count(10, dropped.attributes);
    out.count(12, dropped.events);
    out.count(14, dropped.links);
}

fn kind_code(kind: SpanKind) -> u8 {
    match kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Client => 3,
        SpanKind::Producer => 4,
        SpanKind::Consumer => 5,
    }
}

fn status_code(status: StatusRef<'_>) -> Option<(u8, &[u8])> {
    match status {
        StatusRef::Unset => None,
        StatusRef::Ok => Some((1, b"")),
        StatusRef::Error(message) => Some((2, message.as_bytes())),
    }
}

fn attributes(list: &[Attribute]) -> impl Iterator<Item = (&[u8], Raw<'_>)> {
    list.iter()
        .map(|a| (a.key.as_bytes(), ValueRef::into(a.value.as_ref())))
}

/// What few spans have, fields 10 to 14.
pub(crate) fn more(events: &[SpanEvent], links: &[Link], dropped: Dropped) -> Vec<u8> {
    let mut out = Out::default();
    out.more(events, links, dropped);
    out.finish()
}

/// Appends a span.
pub(crate) fn span(span: &Span, out: &mut Out) {
    Parts {
        trace_id: span.trace_id,
        span_id: span.span_id,
        parent: span.parent_span_id,
        parent_is_remote: span.parent_is_remote,
        flags: span.flags,
        trace_state: span.trace_state.as_bytes(),
        name: span.name.as_bytes(),
        kind: span.kind,
        start: span.start,
        end: span.end,
        attributes: |out: &mut Out| {
            for (key, value) in attributes(&span.attributes) {
                out.attribute(ATTRIBUTE, key, value);
            }
        },
        more: |out: &mut Out| out.more(&span.events, &span.links, span.dropped),
        status: status_code(span.status.as_ref()),
    }
    .write(out);
}

/// Appends a phase's span as it comes out of the assembler.
pub(crate) fn phase_span(span: &PhaseSpan<'_>, out: &mut Out) {
    Parts {
        trace_id: span.trace_id,
        span_id: span.span_id,
        parent: span.parent_span_id,
        parent_is_remote: span.parent_is_remote(),
        flags: span.flags,
        trace_state: b"",
        name: span.name.as_bytes(),
        kind: span.kind,
        start: span.start,
        end: span.end,
        attributes: |out: &mut Out| {
            for (key, value) in span.attributes {
                out.attribute(ATTRIBUTE, key.as_bytes(), value.as_ref().into());
            }
        },
        more: |out: &mut Out| out.more(span.events, &[], span.dropped),
        status: status_code(span.status.as_ref()),
    }
    .write(out);
}

/// Appends a phase's span that has come past the assembler's visits.
pub(crate) fn finished_span(span: &FinishedSpan<'_>, out: &mut Out) {
    Parts {
        trace_id: span.trace_id,
        span_id: span.span_id,
        parent: span.parent_span_id,
        parent_is_remote: span.parent_is_remote(),
        flags: span.flags,
        trace_state: b"",
        name: span.name,
        kind: span.kind,
        start: span.start,
        end: span.end,
        attributes: |out: &mut Out| {
            span.recorded.write(ATTRIBUTE, out);
            span.derived(|key, value| out.attribute(ATTRIBUTE, key, value));
        },
        more: |_: &mut Out| {},
        status: span.is_error.then_some((2, b"")),
    }
    .write(out);
}

/// Appends a free span as it comes out of the queue, in its place.
pub(crate) fn free_span(span: &DecodedSpan<'_>, place: &Place, out: &mut Out) {
    Parts {
        trace_id: place.trace_id,
        span_id: span.span_id,
        parent: place.parent,
        parent_is_remote: span.parent_is_remote,
        flags: place.flags,
        trace_state: span.trace_state,
        name: span.name,
        kind: span.kind,
        start: span.start,
        end: span.end.max(span.start),
        attributes: |out: &mut Out| span.attributes.write(ATTRIBUTE, out),
        more: |out: &mut Out| out.copy(span.more),
        status: span.status,
    }
    .write(out);
}
