//! Spans for Perfetto and chrome://tracing (the Trace Event format): each node's services
//! are processes, each request has rows of its own there.
//!
//! A row is a track of nested asynchronous events. What overlaps without being one in the
//! other goes to another row. Its id is local to the process: one that is not would put the
//! rows of all processes on one track.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

use omnitrace::Vocabulary;
use omnitrace::span::Span;
use xxhash_rust::xxh3::xxh3_64;

use super::csv::request_id;
use crate::jaeger::span::service_name;
use crate::jaeger::write::text;

/// Processes met so far: number and name.
#[derive(Default)]
pub(super) struct Processes(Mutex<BTreeMap<u32, String>>);

/// The spans of one process in one trace that are one in the other.
#[derive(Default)]
struct Row<'a> {
    open: Vec<&'a Span>,
    text: Vec<u8>,
}

impl Processes {
    /// Appends the events of one trace, each after a comma and a line end.
    pub(super) fn trace(&self, vocabulary: &Vocabulary, spans: &[Span], out: &mut Vec<u8>) {
        let mut sorted: Vec<&Span> = spans.iter().collect();
        sorted.sort_by_key(|s| (s.start, std::cmp::Reverse(s.end)));
        let mut rows: BTreeMap<u32, Vec<Row<'_>>> = BTreeMap::new();
        for span in sorted {
            let process = self.number(vocabulary, span);
            let rows = rows.entry(process).or_default();
            let free = rows.iter().position(|row| row.takes(span));
            let at = free.unwrap_or_else(|| {
                rows.push(Row::default());
                rows.len() - 1
            });
            rows[at].begin(process, at, span);
        }
        for (process, rows) in &mut rows {
            for (number, row) in rows.iter_mut().enumerate() {
                row.end_until(*process, number, u64::MAX);
                out.extend_from_slice(&row.text);
            }
        }
    }

    /// The same for a process in every trace, whichever thread meets it first.
    fn number(&self, vocabulary: &Vocabulary, span: &Span) -> u32 {
        let service = service_name(vocabulary, &span.source.role);
        let name = match &*span.source.node {
            "" => service,
            node => format!("{service} {node}"),
        };
        let number = (xxh3_64(name.as_bytes()) >> 33) as u32 | 1;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(number).or_insert(name);
        number
    }

    /// The processes' names, which may come last.
    pub(super) fn names(&self, out: &mut Vec<u8>) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, name) in known.iter() {
            // Writing to memory cannot fail.
            let _ = write!(
                out,
                ",\n{{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":{number},\"args\":{{\"name\":"
            );
            text(name, out);
            out.extend_from_slice(b"}}");
        }
    }
}

impl<'a> Row<'a> {
    /// Whether the span is within what will be open when it begins.
    fn takes(&self, span: &Span) -> bool {
        let innermost = self.open.iter().rev().find(|open| open.end > span.start);
        innermost.is_none_or(|open| span.end <= open.end)
    }

    fn begin(&mut self, process: u32, number: usize, span: &'a Span) {
        self.end_until(process, number, span.start);
        event(b'b', process, number, span, span.start, &mut self.text);
        self.text.extend_from_slice(b",\"args\":{\"span_id\":");
        text(&span.span_id.to_string(), &mut self.text);
        let id = request_id(span);
        if !id.is_empty() {
            self.text.extend_from_slice(b",\"request_id\":");
            text(id, &mut self.text);
        }
        for attribute in span
            .attributes
            .iter()
            .filter(|a| &*a.key != "gen_ai.request.id")
        {
            self.text.push(b',');
            text(&attribute.key, &mut self.text);
            self.text.push(b':');
            // Writing to memory cannot fail.
            let _ = serde_json::to_writer(&mut self.text, &attribute.value);
        }
        self.text.extend_from_slice(b"}}");
        self.open.push(span);
    }

    fn end_until(&mut self, process: u32, number: usize, time: u64) {
        while let Some(span) = self.open.pop_if(|open| open.end <= time) {
            event(b'e', process, number, span, span.end, &mut self.text);
            self.text.push(b'}');
        }
    }
}

/// An event without its arguments and closing bracket; its time is in microseconds.
fn event(kind: u8, process: u32, row: usize, span: &Span, time: u64, out: &mut Vec<u8>) {
    // Writing to memory cannot fail.
    let _ = write!(
        out,
        ",\n{{\"ph\":\"{}\",\"cat\":\"request\",\"id2\":{{\"local\":\"{}-{row}\"}},\"pid\":{process},\"tid\":0,\"ts\":{}.{:03},\"name\":",
        char::from(kind),
        span.trace_id,
        time / 1000,
        time % 1000,
    );
    text(&span.name, out);
}
