//! Many spans: at one time, and on many threads.

use std::collections::HashMap;
use std::thread;

use tracing::{Dispatch, Span, dispatcher, info_span};

use crate::{recorded_by, tree};

fn number(span: &opentelemetry_proto::tonic::trace::v1::Span) -> i64 {
    tree::pairs(&span.attributes)[0].1.parse().unwrap()
}

#[test]
fn as_many_spans_may_be_open_as_a_service_likes() {
    const OPEN: i64 = 20_000;
    let received = recorded_by(
        |layer| layer,
        || {
            let mut spans: Vec<Span> = Vec::new();
            for n in 0..OPEN {
                let parent = spans.get((n / 2) as usize).and_then(Span::id);
                spans.push(info_span!(parent: parent, "open", n));
            }
            for span in &spans {
                span.in_scope(|| tracing::info!("in it"));
            }
            // In another order than they came.
            while !spans.is_empty() {
                spans.swap_remove(spans.len() / 2);
            }
        },
    );
    let spans: HashMap<_, _> = received.spans().map(|s| (&s.span_id, number(s))).collect();
    assert_eq!(spans.len(), OPEN as usize);
    for span in received.spans() {
        let n = number(span);
        assert_eq!(span.events.len(), 1);
        let parent = (n > 0).then_some(n / 2);
        assert_eq!(spans.get(&span.parent_span_id).copied(), parent);
    }
}

#[test]
fn threads_that_trace_at_the_same_time_do_not_meet() {
    const THREADS: i64 = 8;
    const REQUESTS: i64 = 500;
    let received = recorded_by(
        |layer| layer,
        || {
            let dispatch = dispatcher::get_default(Dispatch::clone);
            let work = |thread: i64| {
                let _default = dispatcher::set_default(&dispatch);
                for request in 0..REQUESTS {
                    let number = thread * REQUESTS + request;
                    let span = info_span!("request", number, later = tracing::field::Empty);
                    let _entered = span.enter();
                    for _ in 0..3 {
                        info_span!("part", number).in_scope(|| tracing::info!(number, "done"));
                    }
                    span.record("later", number);
                }
            };
            thread::scope(|scope| {
                for thread in 0..THREADS {
                    let work = &work;
                    scope.spawn(move || work(thread));
                }
            });
        },
    );
    let mut parts: HashMap<_, Vec<i64>> = HashMap::new();
    for part in received.spans().filter(|span| span.name == "part") {
        let said = tree::pairs(&part.events[0].attributes);
        assert!(said.contains(&("number".to_owned(), number(part).to_string())));
        parts
            .entry(&part.parent_span_id)
            .or_default()
            .push(number(part));
    }
    let requests = received.spans().filter(|span| span.name == "request");
    let mut seen: Vec<i64> = Vec::new();
    for request in requests {
        let own = tree::pairs(&request.attributes);
        assert_eq!(own[0].1, own[1].1);
        assert_eq!(parts[&request.span_id], [number(request); 3]);
        seen.push(number(request));
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..THREADS * REQUESTS));
}
