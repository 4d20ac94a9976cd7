//! No child outside its parent: the last step, for what the clocks' uncertainty leaves.

use std::collections::HashMap;

use omnitrace::id::SpanId;
use omnitrace::span::Span;
use omnitrace::value::Attribute;

/// Seconds by which a span's start was moved on, to be inside its parent; negative where it
/// was moved back.
pub const CUT_START: &str = "omnitrace.clock.cut_start";
/// Seconds by which a span's end was moved back, to be inside its parent; negative where it
/// was moved on.
pub const CUT_END: &str = "omnitrace.clock.cut_end";

/// Cuts each span of one trace to its parent's extent, parents first, and marks what was
/// cut. A span that lies wholly outside becomes a moment at the nearer end. Returns how
/// many spans were cut.
pub fn nest(spans: &mut [Span]) -> usize {
    let by_id: HashMap<SpanId, usize> = spans
        .iter()
        .enumerate()
        .map(|(at, span)| (span.span_id, at))
        .collect();
    let parent: Vec<Option<usize>> = spans
        .iter()
        .map(|span| by_id.get(&span.parent_span_id?).copied())
        .collect();
    let mut cut = 0;
    let mut done = vec![false; spans.len()];
    let mut way = Vec::new();
    for first in 0..spans.len() {
        // Up to an ancestor that is done with, then down again; a circle ends where it began.
        let mut next = Some(first);
        while let Some(at) = next.filter(|at| !done[*at]) {
            done[at] = true;
            way.push(at);
            next = parent[at];
        }
        while let Some(at) = way.pop() {
            if let Some(above) = parent[at].filter(|above| *above != at) {
                let extent = (spans[above].start, spans[above].end);
                cut += usize::from(fit(&mut spans[at], extent));
            }
        }
    }
    cut
}

fn fit(span: &mut Span, (from, to): (u64, u64)) -> bool {
    let (start, end) = (span.start.clamp(from, to), span.end.clamp(from, to));
    if (start, end) == (span.start, span.end) {
        return false;
    }
    let mut mark = |key: &'static str, nanos: i128| {
        if nanos != 0 {
            let seconds = nanos as f64 / 1e9;
            span.attributes.push(Attribute::new(key, seconds));
        }
    };
    mark(CUT_START, i128::from(start) - i128::from(span.start));
    mark(CUT_END, i128::from(span.end) - i128::from(end));
    (span.start, span.end) = (start, end);
    true
}
