//! How much memory a span holds, roughly: what its parts ask of the allocator,
//! and what the allocator adds.

use std::mem::size_of;

use omnitrace_offline::jaeger::model::{KeyValue, Log, Process, Span, Value};

/// What one allocation costs on top of its content, rounding included.
const ALLOCATION: usize = 24;

/// The bytes behind a stored span, its entries in the indexes included.
pub(super) fn of_span(span: &Span) -> usize {
    // Two entries of the span table, which doubles when it is full, and the
    // operation's entry in the catalogue, which in the worst case is its own.
    const INDEXES: usize = 2 * 64 + 128;
    INDEXES
        + ALLOCATION
        + size_of::<Span>()
        + text(&span.trace_id)
        + text(&span.span_id)
        + 2 * text(&span.operation_name)
        + list(&span.references, |r| text(&r.trace_id) + text(&r.span_id))
        + tags(&span.tags)
        + list(&span.logs, |log: &Log| tags(&log.fields))
        + list(&span.warnings, text)
}

/// The bytes behind a process, which the spans of one trace share.
pub(super) fn of_process(process: &Process) -> usize {
    2 * ALLOCATION + size_of::<Process>() + text(&process.service_name) + tags(&process.tags)
}

/// The bytes of a trace without spans: its entries in the indexes.
pub(super) const OF_TRACE: usize = 512;

fn tags(tags: &Vec<KeyValue>) -> usize {
    list(tags, |tag| {
        text(&tag.key)
            + match &tag.value {
                Value::String(value) => text(value),
                Value::Binary(bytes) => bytes.capacity() + ALLOCATION,
                Value::Bool(_) | Value::Int64(_) | Value::Float64(_) => 0,
            }
    })
}

fn list<T>(list: &Vec<T>, content: impl Fn(&T) -> usize) -> usize {
    ALLOCATION + list.capacity() * size_of::<T>() + list.iter().map(content).sum::<usize>()
}

fn text(text: &String) -> usize {
    text.capacity() + ALLOCATION
}
