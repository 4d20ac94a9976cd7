//! The critical path of a request: at each moment, the span that the answer waited for.

use omnitrace::id::SpanId;
use omnitrace::span::Span;

/// Nanoseconds of each span (by its place in `spans`) on the critical path; none of a span
/// that nothing waited for. Where several trees make a request, the time between them is
/// nobody's. All of it together is the time from the first start to the last end.
///
/// From a span's end back: what ended last was waited for, and before its start the one
/// that had ended last by then; what no child covers is the span's own.
pub(super) fn critical(spans: &[Span]) -> Vec<(usize, u64)> {
    let mut order: Vec<usize> = (0..spans.len()).collect();
    // By end, the longer one of two that end together first.
    order.sort_by_key(|i| (std::cmp::Reverse(spans[*i].end), spans[*i].start));
    let is_here = |id: SpanId| spans.iter().any(|s| s.span_id == id);
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); spans.len()];
    let mut roots = Vec::new();
    for i in order {
        let parent = spans[i].parent_span_id.filter(|id| is_here(*id));
        let above = parent.and_then(|id| spans.iter().position(|s| s.span_id == id));
        match above {
            Some(above) if above != i => children[above].push(i),
            _ => roots.push(i),
        }
    }
    let mut path = Path {
        spans,
        children,
        own: vec![0; spans.len()],
    };
    let end = roots.first().map_or(0, |i| spans[*i].end);
    path.below(&roots, 0, end);
    (path.own.into_iter().enumerate())
        .filter(|(_, own)| *own > 0)
        .collect()
}

struct Path<'a> {
    spans: &'a [Span],
    children: Vec<Vec<usize>>,
    own: Vec<u64>,
}

impl Path<'_> {
    /// Follows the path through these spans, the last to end first, from `to` back to
    /// `from`. Returns what they leave uncovered.
    fn below(&mut self, of: &[usize], from: u64, to: u64) -> u64 {
        let mut now = to;
        let mut uncovered = 0;
        for i in of {
            let (start, end) = (self.spans[*i].start.max(from), self.spans[*i].end.min(now));
            if start >= end {
                continue;
            }
            uncovered += now - end;
            let below = std::mem::take(&mut self.children[*i]);
            self.own[*i] += self.below(&below, start, end);
            now = start;
        }
        uncovered + (now - from.min(now))
    }
}
