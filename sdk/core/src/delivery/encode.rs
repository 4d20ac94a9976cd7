//! Spans as OTLP protobuf, written by hand: ten times cheaper than building the
//! messages first. A test holds every byte against prost's.
//!
//! Field numbers are those of `opentelemetry/proto/trace/v1/trace.proto`.

use crate::assembler::PhaseSpan;
use crate::event::Parent;
use crate::id::{SpanId, TraceId};
use crate::queue::DecodedSpan;
use crate::span::{Link, Place, Span, SpanEvent, SpanKind, Status};
use crate::value::{Attribute, ValueRef};

/// Name of the instrumentation scope.
pub(super) const SCOPE: &str = "omnitrace";
/// Its version.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Wire types.
const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LENGTH: u32 = 2;
const FIXED32: u32 = 5;

/// Flag bits 8 and 9 of a span: whether its parent is remote is known, and is.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

fn varint_len(n: u64) -> usize {
    // 7 bits a byte, and at least one byte.
    (64 - (n | 1).leading_zeros() as usize).div_ceil(7)
}

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn tag(field: u32, wire: u32, out: &mut Vec<u8>) {
    varint(u64::from(field << 3 | wire), out);
}

/// Length of a length-delimited field whose tag takes one byte.
fn delimited_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

fn bytes(field: u32, value: &[u8], out: &mut Vec<u8>) {
    tag(field, LENGTH, out);
    varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// Protobuf leaves out empty text.
fn text(field: u32, value: &str, out: &mut Vec<u8>) {
    if !value.is_empty() {
        bytes(field, value.as_bytes(), out);
    }
}

fn text_len(value: &str) -> usize {
    if value.is_empty() {
        0
    } else {
        delimited_len(value.len())
    }
}

fn fixed64(field: u32, value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        tag(field, FIXED64, out);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

fn fixed64_len(value: u64) -> usize {
    if value == 0 { 0 } else { 9 }
}

/// Length of an `AnyValue`. Its fields are a oneof, so zero and empty are written.
fn value_len(value: ValueRef<'_>) -> usize {
    match value {
        ValueRef::Str(text) => delimited_len(text.len()),
        ValueRef::Bool(_) => 2,
        ValueRef::I64(n) => 1 + varint_len(n as u64),
        ValueRef::F64(_) => 9,
    }
}

fn attribute_len(key: &str, value: ValueRef<'_>) -> usize {
    text_len(key) + delimited_len(value_len(value))
}

/// A `KeyValue` as field `field` of the message around it.
fn attribute(field: u32, key: &str, value: ValueRef<'_>, out: &mut Vec<u8>) {
    tag(field, LENGTH, out);
    varint(attribute_len(key, value) as u64, out);
    text(1, key, out);
    tag(2, LENGTH, out);
    varint(value_len(value) as u64, out);
    match value {
        ValueRef::Str(text) => bytes(1, text.as_bytes(), out),
        ValueRef::Bool(b) => {
            tag(2, VARINT, out);
            out.push(u8::from(b));
        }
        ValueRef::I64(n) => {
            tag(3, VARINT, out);
            varint(n as u64, out);
        }
        ValueRef::F64(n) => {
            tag(4, FIXED64, out);
            out.extend_from_slice(&n.to_bits().to_le_bytes());
        }
    }
}

/// A span's parts, wherever they come from.
struct Parts<'a, A, E> {
    trace_id: TraceId,
    span_id: SpanId,
    parent: Option<SpanId>,
    flags: u8,
    name: &'a str,
    kind: SpanKind,
    start: u64,
    end: u64,
    attributes: A,
    events: E,
    links: &'a [Link],
    /// Status code and message.
    status: Option<(u8, &'a str)>,
}

impl<'a, A, E> Parts<'a, A, E>
where
    A: Iterator<Item = (&'a str, ValueRef<'a>)> + Clone,
    E: Iterator<Item = &'a SpanEvent> + Clone,
{
    fn flags(&self) -> u32 {
        // A SERVER span's parent is the caller; any other's is in this process.
        let remote = if self.kind == SpanKind::Server {
            IS_REMOTE
        } else {
            0
        };
        u32::from(self.flags) | HAS_IS_REMOTE | remote
    }

    fn len(&self) -> usize {
        delimited_len(16)
            + delimited_len(8)
            + self.parent.map_or(0, |_| delimited_len(8))
            + text_len(self.name)
            + 2
            + fixed64_len(self.start)
            + fixed64_len(self.end)
            + self.attributes.clone().map(|(k, v)| delimited_len(attribute_len(k, v))).sum::<usize>()
            + self.events.clone().map(|e| delimited_len(event_len(e))).sum::<usize>()
            + self.links.len() * delimited_len(LINK_LEN)
            + self.status.map_or(0, |(code, message)| delimited_len(status_len(code, message)))
            // Field 16 has a tag of two bytes.
            + 6
    }

    /// As a `Span` in field 2 of `ScopeSpans`.
    fn write(&self, out: &mut Vec<u8>) {
        let len = self.len();
        out.reserve(len + 6);
        tag(2, LENGTH, out);
        varint(len as u64, out);
        let begin = out.len();
        bytes(1, &self.trace_id.value().to_be_bytes(), out);
        bytes(2, &self.span_id.value().to_be_bytes(), out);
        if let Some(parent) = self.parent {
            bytes(4, &parent.value().to_be_bytes(), out);
        }
        text(5, self.name, out);
        tag(6, VARINT, out);
        out.push(kind_code(self.kind));
        fixed64(7, self.start, out);
        fixed64(8, self.end, out);
        for (key, value) in self.attributes.clone() {
            attribute(9, key, value, out);
        }
        for event in self.events.clone() {
            write_event(event, out);
        }
        for link in self.links {
            write_link(link, out);
        }
        if let Some((code, message)) = self.status {
            tag(15, LENGTH, out);
            varint(status_len(code, message) as u64, out);
            text(2, message, out);
            if code != 0 {
                tag(3, VARINT, out);
                out.push(code);
            }
        }
        tag(16, FIXED32, out);
        out.extend_from_slice(&self.flags().to_le_bytes());
        debug_assert_eq!(out.len() - begin, len);
    }
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

fn status_len(code: u8, message: &str) -> usize {
    text_len(message) + if code == 0 { 0 } else { 2 }
}

fn event_len(event: &SpanEvent) -> usize {
    fixed64_len(event.time)
        + text_len(&event.name)
        + attributes(&event.attributes)
            .map(|(k, v)| delimited_len(attribute_len(k, v)))
            .sum::<usize>()
}

fn write_event(event: &SpanEvent, out: &mut Vec<u8>) {
    tag(11, LENGTH, out);
    varint(event_len(event) as u64, out);
    fixed64(1, event.time, out);
    text(2, &event.name, out);
    for (key, value) in attributes(&event.attributes) {
        attribute(3, key, value, out);
    }
}

/// Trace id and span id; nothing else is set.
const LINK_LEN: usize = 18 + 10;

fn write_link(link: &Link, out: &mut Vec<u8>) {
    tag(13, LENGTH, out);
    varint(LINK_LEN as u64, out);
    bytes(1, &link.trace_id.value().to_be_bytes(), out);
    bytes(2, &link.span_id.value().to_be_bytes(), out);
}

fn attributes(list: &[Attribute]) -> impl Iterator<Item = (&str, ValueRef<'_>)> + Clone {
    list.iter().map(|a| (&*a.key, a.value.as_ref()))
}

/// Appends a span.
pub(super) fn span(span: &Span, out: &mut Vec<u8>) {
    Parts {
        trace_id: span.trace_id,
        span_id: span.span_id,
        parent: span.parent_span_id,
        flags: span.flags,
        name: &span.name,
        kind: span.kind,
        start: span.start,
        end: span.end,
        attributes: attributes(&span.attributes),
        events: span.events.iter(),
        links: &span.links,
        status: status_code(&span.status),
    }
    .write(out);
}

/// Appends a phase's span as it comes out of the assembler.
pub(super) fn phase_span(span: &PhaseSpan<'_>, out: &mut Vec<u8>) {
    Parts {
        trace_id: span.trace_id,
        span_id: span.span_id,
        parent: span.parent_span_id,
        flags: span.flags,
        name: span.name,
        kind: span.kind,
        start: span.start,
        end: span.end,
        attributes: span.attributes.iter().map(|(k, v)| (&***k, v.as_ref())),
        events: span.events.iter().copied(),
        links: &[],
        status: status_code(&span.status),
    }
    .write(out);
}

/// Status code and message, where there is something to say.
fn status_code(status: &Status) -> Option<(u8, &str)> {
    match status {
        Status::Unset => None,
        Status::Ok => Some((1, "")),
        Status::Error(message) => Some((2, message)),
    }
}

/// Appends a free span as it comes out of the queue. A span that hangs under a
/// request takes that place from `place`.
pub(super) fn free_span(span: &DecodedSpan<'_>, place: &Place, out: &mut Vec<u8>) {
    debug_assert!(!matches!(span.parent, Parent::Request(_)) || place.parent != Some(span.span_id));
    Parts {
        trace_id: place.trace_id,
        span_id: span.span_id,
        parent: place.parent,
        flags: place.flags,
        name: span.name,
        kind: span.kind,
        start: span.start,
        end: span.end.max(span.start),
        attributes: span.attributes.iter().copied(),
        events: [].iter(),
        links: &[],
        status: span.error.map(|message| (2, message)),
    }
    .write(out);
}

/// What stands before the spans of every request of one resource.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    /// The `resource` field of `ResourceSpans`.
    resource: Vec<u8>,
    /// The `scope` field of `ScopeSpans`.
    scope: Vec<u8>,
}

impl Envelope {
    pub(super) fn new(resource: &[Attribute]) -> Self {
        let mut list = Vec::new();
        for (key, value) in attributes(resource) {
            attribute(1, key, value, &mut list);
        }
        let (mut resource, mut names) = (Vec::new(), Vec::new());
        bytes(1, &list, &mut resource);
        text(1, SCOPE, &mut names);
        text(2, VERSION, &mut names);
        let mut scope = Vec::new();
        bytes(1, &names, &mut scope);
        Self { resource, scope }
    }

    /// The bytes that make an `ExportTraceServiceRequest` of `spans` bytes of
    /// spans when they stand in front of them.
    pub(super) fn head(&self, spans: usize) -> Vec<u8> {
        let scope_spans = self.scope.len() + spans;
        let resource_spans = self.resource.len() + delimited_len(scope_spans);
        let mut head = Vec::with_capacity(self.resource.len() + self.scope.len() + 12);
        tag(1, LENGTH, &mut head);
        varint(resource_spans as u64, &mut head);
        head.extend_from_slice(&self.resource);
        tag(2, LENGTH, &mut head);
        varint(scope_spans as u64, &mut head);
        head.extend_from_slice(&self.scope);
        head
    }
}
