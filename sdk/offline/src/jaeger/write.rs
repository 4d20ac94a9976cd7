//! The same JSON as [`super::span::trace`] gives through serde, written by hand: it is
//! most of what `convert` does.

use std::cmp::Reverse;
use std::sync::Arc;

use omnitrace::Vocabulary;
use omnitrace::id::SpanId;
use omnitrace::span::{Source, Span, Status};
use omnitrace::value::{Attribute, Value};

use super::span::service_name;
use super::tag::{MAX_SAFE_INTEGER, float_text};

/// Appends the trace of spans with the same trace id; nothing if there are none.
pub fn trace(vocabulary: &Vocabulary, spans: &[Span], out: &mut Vec<u8>) {
    let Some(first) = spans.first() else { return };
    let mut order: Vec<&Span> = spans.iter().collect();
    order.sort_by_key(|s| {
        let (start, end) = micros(s);
        (start, Reverse(end - start), s.span_id)
    });
    if has_cycle(&order) {
        slow(vocabulary, spans, out);
        return;
    }
    let trace_id = hex(first.trace_id.value());
    let mut processes = Processes::default();
    out.extend_from_slice(b"{\"traceID\":\"");
    out.extend_from_slice(&trace_id);
    out.extend_from_slice(b"\",\"spans\":[");
    for (number, span) in order.into_iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        let process = processes.number(vocabulary, &span.source);
        write_span(span, process, out);
    }
    out.extend_from_slice(b"],\"processes\":");
    processes.write(out);
    out.push(b'}');
}

/// By way of the model, which says which reference it has cut.
fn slow(vocabulary: &Vocabulary, spans: &[Span], out: &mut Vec<u8>) {
    if let Some(trace) = super::span::trace(vocabulary, spans) {
        // Writing to memory cannot fail, and no map of the model has a key that is no text.
        let _ = serde_json::to_writer(out, &trace);
    }
}

/// Both ends are rounded down, so a child that ends with its parent still does.
fn micros(span: &Span) -> (u64, u64) {
    (span.start / 1000, span.end / 1000)
}

/// Whether the references that the UI follows lead in a circle. They nearly always lead
/// to a span that stands before.
fn has_cycle(order: &[&Span]) -> bool {
    let mut positions: Vec<(SpanId, usize)> = order
        .iter()
        .enumerate()
        // The UI leaves out a span that starts at zero before it looks for parents.
        .filter(|(_, s)| micros(s).0 != 0)
        .map(|(at, s)| (s.span_id, at))
        .collect();
    positions.sort_unstable();
    let find = |id: SpanId| {
        let at = positions.partition_point(|(other, _)| *other < id);
        positions
            .get(at)
            .filter(|(other, _)| *other == id)
            .map(|(_, at)| *at)
    };
    let parents: Vec<Option<usize>> = order
        .iter()
        .map(|s| {
            let links = s.links.iter().map(|l| l.span_id);
            s.parent_span_id.into_iter().chain(links).find_map(find)
        })
        .collect();
    if parents
        .iter()
        .enumerate()
        .all(|(at, p)| p.is_none_or(|p| p < at))
    {
        return false;
    }
    let mut walks = vec![0; order.len()];
    for start in 0..order.len() {
        let mut at = start;
        while walks[at] == 0 {
            walks[at] = start + 1;
            match parents[at] {
                Some(parent) => at = parent,
                None => break,
            }
        }
        if walks[at] == start + 1 && parents[at].is_some() {
            return true;
        }
    }
    false
}

fn write_span(span: &Span, process: usize, out: &mut Vec<u8>) {
    let (start, end) = micros(span);
    let trace_id = hex(span.trace_id.value());
    out.extend_from_slice(b"{\"traceID\":\"");
    out.extend_from_slice(&trace_id);
    out.extend_from_slice(b"\",\"spanID\":\"");
    out.extend_from_slice(&hex_id(span.span_id));
    out.extend_from_slice(b"\",\"operationName\":");
    text(&span.name, out);
    out.extend_from_slice(b",\"references\":[");
    if let Some(parent) = span.parent_span_id {
        reference(b"CHILD_OF", &trace_id, parent, out);
    }
    for (number, link) in span.links.iter().enumerate() {
        if number > 0 || span.parent_span_id.is_some() {
            out.push(b',');
        }
        let trace_id = hex(link.trace_id.value());
        reference(b"FOLLOWS_FROM", &trace_id, link.span_id, out);
    }
    out.extend_from_slice(b"],\"startTime\":");
    integer(start, out);
    out.extend_from_slice(b",\"duration\":");
    integer(end - start, out);
    out.extend_from_slice(b",\"tags\":[");
    tags(span, out);
    out.extend_from_slice(b"],\"logs\":[");
    for (number, event) in span.events.iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"timestamp\":");
        integer(event.time / 1000, out);
        out.extend_from_slice(b",\"fields\":[");
        string_tag("event", &event.name, out);
        for attribute in &event.attributes {
            out.push(b',');
            tag(attribute, out);
        }
        out.extend_from_slice(b"]}");
    }
    out.extend_from_slice(b"],\"processID\":\"p");
    integer(process as u64, out);
    out.extend_from_slice(b"\"}");
}

fn reference(kind: &[u8], trace_id: &[u8], span_id: SpanId, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"refType\":\"");
    out.extend_from_slice(kind);
    out.extend_from_slice(b"\",\"traceID\":\"");
    out.extend_from_slice(trace_id);
    out.extend_from_slice(b"\",\"spanID\":\"");
    out.extend_from_slice(&hex_id(span_id));
    out.extend_from_slice(b"\"}");
}

/// Attributes, then what OpenTelemetry keeps beside them.
fn tags(span: &Span, out: &mut Vec<u8>) {
    for attribute in &span.attributes {
        tag(attribute, out);
        out.push(b',');
    }
    string_tag("span.kind", span.kind.name(), out);
    match &span.status {
        Status::Unset => {}
        Status::Ok => out.extend_from_slice(STATUS_OK),
        Status::Error(reason) => {
            out.extend_from_slice(STATUS_ERROR);
            if !reason.is_empty() {
                out.push(b',');
                string_tag("otel.status_description", reason, out);
            }
            out.extend_from_slice(ERROR);
        }
    }
    if !span.trace_state.is_empty() {
        out.push(b',');
        string_tag("w3c.tracestate", &span.trace_state, out);
    }
    if let Some(scope) = &span.scope {
        out.push(b',');
        string_tag("otel.scope.name", &scope.name, out);
        if !scope.version.is_empty() {
            out.push(b',');
            string_tag("otel.scope.version", &scope.version, out);
        }
    }
}

const STATUS_OK: &[u8] = br#",{"key":"otel.status_code","type":"string","value":"OK"}"#;
const STATUS_ERROR: &[u8] = br#",{"key":"otel.status_code","type":"string","value":"ERROR"}"#;
const ERROR: &[u8] = br#",{"key":"error","type":"bool","value":true}"#;

fn string_tag(key: &str, value: &str, out: &mut Vec<u8>) {
    begin_tag(key, b"string", out);
    text(value, out);
    out.push(b'}');
}

fn begin_tag(key: &str, kind: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"key\":");
    text(key, out);
    out.extend_from_slice(b",\"type\":\"");
    out.extend_from_slice(kind);
    out.extend_from_slice(b"\",\"value\":");
}

fn tag(attribute: &Attribute, out: &mut Vec<u8>) {
    let key = &*attribute.key;
    match &attribute.value {
        Value::Str(value) => string_tag(key, value, out),
        Value::Bool(flag) => {
            begin_tag(key, b"bool", out);
            out.extend_from_slice(if *flag { b"true}" } else { b"false}" });
        }
        Value::I64(number) => {
            begin_tag(key, b"int64", out);
            if (-MAX_SAFE_INTEGER..=MAX_SAFE_INTEGER).contains(number) {
                integer(*number, out);
            } else {
                out.push(b'"');
                integer(*number, out);
                out.push(b'"');
            }
            out.push(b'}');
        }
        Value::F64(number) => {
            begin_tag(key, b"float64", out);
            if number.is_finite() {
                // Writing to memory cannot fail.
                let _ = serde_json::to_writer(&mut *out, number);
            } else {
                text(&float_text(*number), out);
            }
            out.push(b'}');
        }
        Value::Array(array) => {
            let items = super::span::json(&array.items());
            string_tag(key, &items.to_string(), out);
        }
    }
}

/// The services of a trace, numbered as they are met.
#[derive(Default)]
struct Processes {
    known: Vec<(Arc<Source>, usize)>,
    /// Service and node.
    all: Vec<(String, Arc<str>)>,
}

impl Processes {
    /// From 1.
    fn number(&mut self, vocabulary: &Vocabulary, source: &Arc<Source>) -> usize {
        let same =
            |(other, _): &&(Arc<Source>, usize)| Arc::ptr_eq(other, source) || *other == *source;
        if let Some((_, number)) = self.known.iter().find(same) {
            return *number;
        }
        let process = (
            service_name(vocabulary, &source.role),
            Arc::clone(&source.node),
        );
        let at = self.all.iter().position(|other| *other == process);
        let number = 1 + at.unwrap_or(self.all.len());
        if at.is_none() {
            self.all.push(process);
        }
        self.known.push((Arc::clone(source), number));
        number
    }

    /// In the order of their keys' text, as a map has them.
    fn write(&self, out: &mut Vec<u8>) {
        let mut keys: Vec<(String, usize)> = (0..self.all.len())
            .map(|at| (format!("p{}", at + 1), at))
            .collect();
        keys.sort();
        out.push(b'{');
        for (number, (key, at)) in keys.iter().enumerate() {
            if number > 0 {
                out.push(b',');
            }
            let (service, node) = &self.all[*at];
            text(key, out);
            out.extend_from_slice(b":{\"serviceName\":");
            text(service, out);
            out.extend_from_slice(b",\"tags\":[");
            if !node.is_empty() {
                string_tag("host.ip", node, out);
            }
            out.extend_from_slice(b"]}");
        }
        out.push(b'}');
    }
}

fn integer(number: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

fn hex(id: u128) -> [u8; 32] {
    let mut text = [0; 32];
    for (pair, byte) in text.chunks_exact_mut(2).zip(id.to_be_bytes()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

fn hex_id(id: SpanId) -> [u8; 16] {
    let mut text = [0; 16];
    text.copy_from_slice(&hex(u128::from(id.value()))[16..]);
    text
}

/// A JSON string.
pub(crate) fn text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    let special = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
    while let Some(at) = rest.iter().position(special) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            control => {
                out.extend_from_slice(b"\\u00");
                out.push(DIGITS[usize::from(control >> 4)]);
                out.push(DIGITS[usize::from(control & 15)]);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

#[cfg(test)]
mod tests;
