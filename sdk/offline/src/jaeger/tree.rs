//! From loose spans to a trace that the UI can draw.
//!
//! The UI takes as parent the first reference, of either type, whose span is
//! in the trace, and follows it without a limit: a cycle hangs or crashes the
//! page. A span whose `processID` is unknown makes old versions refuse all.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::model::{Process, Span, Trace};

impl Trace {
    /// Puts `spans` in order of time, numbers their processes `p1`, `p2`, … (equal
    /// ones once) and leaves out references that would make a cycle, with a
    /// warning on the span that lost one.
    pub fn from_spans(trace_id: String, mut spans: Vec<(Arc<Process>, Span)>) -> Self {
        spans.sort_by(|(_, a), (_, b)| {
            (a.start_time, Reverse(a.duration), &a.span_id).cmp(&(
                b.start_time,
                Reverse(b.duration),
                &b.span_id,
            ))
        });
        let mut known: Vec<Arc<Process>> = Vec::new();
        let mut spans: Vec<Span> = spans
            .into_iter()
            .map(|(process, mut span)| {
                let position = known
                    .iter()
                    .position(|other| Arc::ptr_eq(other, &process) || *other == process)
                    .unwrap_or_else(|| {
                        known.push(process);
                        known.len() - 1
                    });
                span.process_id = format!("p{}", position + 1);
                span
            })
            .collect();
        while cut_cycles(&mut spans) {}
        let processes: BTreeMap<String, Process> = known
            .into_iter()
            .enumerate()
            .map(|(position, process)| {
                (format!("p{}", position + 1), Arc::unwrap_or_clone(process))
            })
            .collect();
        Self {
            trace_id,
            spans,
            processes,
        }
    }
}

/// Cuts every cycle once, at its earliest span, and says whether there was one:
/// the next reference of that span may close another.
fn cut_cycles(spans: &mut [Span]) -> bool {
    let mut positions = HashMap::with_capacity(spans.len());
    for (position, span) in spans.iter().enumerate() {
        // The UI leaves out a span that starts at zero before it looks for parents.
        if span.start_time != 0 {
            positions.entry(span.span_id.as_str()).or_insert(position);
        }
    }
    // For each span the index of the reference that the UI follows, and where to.
    let parents: Vec<Option<(usize, usize)>> = spans
        .iter()
        .map(|span| {
            span.references
                .iter()
                .enumerate()
                .find_map(|(index, r)| Some((index, *positions.get(r.span_id.as_str())?)))
        })
        .collect();

    // Walk up from each span; a step onto a span of the same walk is a cycle.
    let mut walks = vec![0; spans.len()];
    let mut cuts = Vec::new();
    for start in 0..spans.len() {
        let walk = start + 1;
        let mut at = start;
        while walks[at] == 0 {
            walks[at] = walk;
            match parents[at] {
                Some((_, parent)) => at = parent,
                None => break,
            }
        }
        if walks[at] == walk && parents[at].is_some() {
            // `spans` is in order of time, so the smallest position is the earliest.
            let mut earliest = at;
            let mut next = at;
            while let Some((_, parent)) = parents[next] {
                earliest = earliest.min(parent);
                next = parent;
                if next == at {
                    break;
                }
            }
            if let Some((reference, _)) = parents[earliest] {
                cuts.push((earliest, reference));
            }
        }
    }
    for &(position, reference) in &cuts {
        let span = &mut spans[position];
        let cut = span.references.remove(reference);
        span.warnings.push(format!(
            "the reference to span {} is left out: it made the span its own ancestor",
            cut.span_id
        ));
    }
    !cuts.is_empty()
}

#[cfg(test)]
mod tests {
    use super::super::model::{KeyValue, RefType, Reference};
    use super::*;

    fn reference(ref_type: RefType, span_id: &str) -> Reference {
        Reference {
            ref_type,
            trace_id: "t".into(),
            span_id: span_id.into(),
        }
    }

    fn span(span_id: &str, start_time: u64, references: Vec<Reference>) -> Span {
        Span {
            trace_id: "t".into(),
            span_id: span_id.into(),
            start_time,
            references,
            ..Span::default()
        }
    }

    fn process(service_name: &str, pid: i64) -> Arc<Process> {
        Arc::new(Process {
            service_name: service_name.into(),
            tags: vec![KeyValue::int64("process.pid", pid)],
        })
    }

    /// One line per span: id, process, parents and links, number of warnings.
    fn drawn(trace: &Trace) -> Vec<String> {
        let line = |span: &Span| {
            let references: Vec<_> = span
                .references
                .iter()
                .map(|r| format!("{:?} {}", r.ref_type, r.span_id))
                .collect();
            format!(
                "{} {} [{}] {}",
                span.span_id,
                span.process_id,
                references.join(", "),
                span.warnings.len()
            )
        };
        trace.spans.iter().map(line).collect()
    }

    #[test]
    fn spans_are_put_in_order_and_equal_processes_are_kept_once() {
        let trace = Trace::from_spans(
            "t".into(),
            vec![
                (process("b", 2), span("3", 30, vec![])),
                (process("a", 1), span("2", 20, vec![])),
                (process("b", 2), span("1", 10, vec![])),
                (process("b", 3), span("4", 40, vec![])),
            ],
        );
        assert_eq!(
            drawn(&trace),
            ["1 p1 [] 0", "2 p2 [] 0", "3 p1 [] 0", "4 p3 [] 0"]
        );
        assert_eq!(
            trace.processes,
            BTreeMap::from([
                ("p1".to_owned(), (*process("b", 2)).clone()),
                ("p2".to_owned(), (*process("a", 1)).clone()),
                ("p3".to_owned(), (*process("b", 3)).clone()),
            ])
        );
    }

    #[test]
    fn a_cycle_is_cut_at_its_earliest_span_and_the_rest_of_the_tree_stays() {
        use RefType::{ChildOf, FollowsFrom};
        let p = process("a", 1);
        let spans = vec![
            span("self", 1, vec![reference(ChildOf, "self")]),
            span(
                "1",
                10,
                vec![reference(ChildOf, "3"), reference(FollowsFrom, "2")],
            ),
            span("2", 20, vec![reference(ChildOf, "1")]),
            span("3", 30, vec![reference(ChildOf, "2")]),
            span("leaf", 40, vec![reference(ChildOf, "3")]),
            span(
                "orphan",
                50,
                vec![reference(ChildOf, "gone"), reference(FollowsFrom, "leaf")],
            ),
        ];
        let trace = Trace::from_spans(
            "t".into(),
            spans.into_iter().map(|s| (Arc::clone(&p), s)).collect(),
        );
        assert_eq!(
            drawn(&trace),
            [
                "self p1 [] 1",
                "1 p1 [] 2",
                "2 p1 [ChildOf 1] 0",
                "3 p1 [ChildOf 2] 0",
                "leaf p1 [ChildOf 3] 0",
                "orphan p1 [ChildOf gone, FollowsFrom leaf] 0",
            ]
        );
    }
}
