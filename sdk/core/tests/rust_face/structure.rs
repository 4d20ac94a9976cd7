//! What hangs under what.

use std::thread;
use std::time::Duration;

use insta::assert_snapshot;
use tracing::instrument::WithSubscriber as _;
use tracing::{Dispatch, Instrument as _, Span, dispatcher, info, info_span};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};

use crate::{outcome, recorded, recorded_by, tree};

#[test]
fn spans_hang_under_the_span_that_is_entered_or_named() {
    let text = recorded(|| {
        let outer = info_span!("outer").entered();
        let inner = info_span!("inner");
        inner.in_scope(|| {
            info_span!("innermost").in_scope(|| info!("in innermost"));
            info_span!(parent: &outer, "named outer");
            info_span!(parent: None, "a root of its own").in_scope(|| info_span!("under it"));
        });
        info_span!("beside inner");
        drop(outer);
        info_span!(parent: &inner, "named inner, entered nowhere");
        info_span!("another root");
    });
    assert_snapshot!(text, @r#"
    outer
      inner
        innermost
          * in innermost
            level = "INFO"
            target = "rust_face::structure"
        named inner, entered nowhere
      named outer
      beside inner
    a root of its own
      under it
    another root
    "#);
}

#[test]
fn spans_may_be_left_in_any_order_and_entered_again() {
    let text = recorded(|| {
        let (a, b) = (info_span!("a"), info_span!("b"));
        let in_a = a.enter();
        let in_b = b.enter();
        drop(in_a);
        info_span!("under b");
        let again = b.enter();
        info_span!("under b too");
        drop(in_b);
        info_span!("still under b");
        drop(again);
        info_span!("under none");
        a.in_scope(|| info_span!("under a"));
    });
    assert_snapshot!(text, @r#"
    a
      under a
    b
      under b
      under b too
      still under b
    under none
    "#);
}

#[test]
fn what_a_span_follows_from_is_a_link() {
    let text = recorded(|| {
        let (first, second) = (info_span!("first"), info_span!("second"));
        let closed = info_span!("closed").id();
        let span = info_span!("joined");
        span.follows_from(&first);
        span.follows_from(&second);
        span.follows_from(closed);
        let _entered = first.entered();
        info_span!("child").follows_from(&span);
    });
    assert_snapshot!(text, @r#"
    first
      child
        -> joined
    second
    closed
    joined
      -> first
      -> second
    "#);
}

#[test]
fn a_span_ends_when_it_is_left_not_when_its_last_child_ends() {
    let received = recorded_by(
        |layer| layer,
        || {
            let parent = info_span!("parent");
            let child = parent.in_scope(|| info_span!("child"));
            let late = info_span!(parent: &parent, "late");
            drop(parent);
            child.in_scope(|| {});
            drop(late);
        },
    );
    let span = |name| received.spans().find(|span| span.name == name).unwrap();
    let (parent, child, late) = (span("parent"), span("child"), span("late"));
    assert_eq!(child.parent_span_id, parent.span_id);
    assert!(parent.end_time_unix_nano <= late.start_time_unix_nano);
    assert!(parent.end_time_unix_nano <= child.end_time_unix_nano);
    // One that is never entered ends when it is dropped.
    assert!(child.end_time_unix_nano <= late.end_time_unix_nano);
}

#[test]
fn a_span_may_be_entered_on_several_threads() {
    let text = recorded(|| {
        let span = info_span!("request");
        let dispatch = dispatcher::get_default(Dispatch::clone);
        for number in 0..3 {
            let (span, dispatch) = (span.clone(), dispatch.clone());
            let worker = move || {
                dispatcher::with_default(&dispatch, || {
                    let _entered = span.entered();
                    let _part = info_span!("part", number).entered();
                    info!("done");
                });
            };
            thread::spawn(worker).join().unwrap();
        }
        span.in_scope(|| info!("all done"));
    });
    assert_snapshot!(text, @r#"
    request
      * all done
        level = "INFO"
        target = "rust_face::structure"
      part
        number = 0
        * done
          level = "INFO"
          target = "rust_face::structure"
      part
        number = 1
        * done
          level = "INFO"
          target = "rust_face::structure"
      part
        number = 2
        * done
          level = "INFO"
          target = "rust_face::structure"
    "#);
}

#[test]
fn a_span_that_goes_down_with_its_thread_is_recorded() {
    thread_local! {
        static KEPT: std::cell::RefCell<Option<Span>> = const { std::cell::RefCell::new(None) };
    }
    let (received, stats) = outcome(|tracing| {
        let subscriber = tracing_subscriber::registry().with(tracing.layer());
        let dispatch = Dispatch::new(subscriber);
        let worker = thread::spawn(move || {
            // It is dropped after everything else that this thread has.
            KEPT.set(None);
            dispatcher::with_default(&dispatch, || {
                info_span!("before").in_scope(|| {});
                KEPT.set(Some(info_span!("kept")));
            });
        });
        worker.join().unwrap();
    });
    // Where the thread has lost its queue first, the span is counted as lost.
    let arrived = received.spans().count() as u64;
    assert_eq!(stats.created, 2);
    assert_eq!(stats.exported + stats.dropped_total(), 2);
    assert_eq!(stats.exported, arrived);
}

#[test]
fn tasks_that_take_turns_on_a_thread_keep_to_their_own_spans() {
    let text = recorded(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let handle = |name: &'static str| {
            async move {
                info!("begun");
                tokio::task::yield_now().await;
                async {
                    info!("at work");
                    tokio::task::yield_now().await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                .instrument(info_span!("work", name))
                .await;
                info!("done");
            }
            .instrument(info_span!("task", otel.name = name))
        };
        runtime.block_on(async {
            tokio::join!(handle("tea"), handle("milk"));
        });
    });
    assert_snapshot!(text, @r#"
    tea
      * begun
        level = "INFO"
        target = "rust_face::structure"
      * done
        level = "INFO"
        target = "rust_face::structure"
      work
        name = "tea"
        * at work
          level = "INFO"
          target = "rust_face::structure"
    milk
      * begun
        level = "INFO"
        target = "rust_face::structure"
      * done
        level = "INFO"
        target = "rust_face::structure"
      work
        name = "milk"
        * at work
          level = "INFO"
          target = "rust_face::structure"
    "#);
}

#[test]
fn tasks_on_many_threads_keep_to_their_own_spans() {
    let received = recorded_by(
        |layer| layer,
        || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(4)
                .build()
                .unwrap();
            let task = |number: i64| {
                async move {
                    for step in 0..5 {
                        let work = async {
                            tokio::task::yield_now().await;
                            info!(number, "at work");
                        };
                        work.instrument(info_span!("step", number, step)).await;
                        tokio::task::yield_now().await;
                    }
                }
                .instrument(info_span!(parent: None, "task", number))
                .with_current_subscriber()
            };
            runtime.block_on(async {
                let tasks: Vec<_> = (0..200).map(|n| tokio::spawn(task(n))).collect();
                for task in tasks {
                    task.await.unwrap();
                }
            });
        },
    );
    let tasks: std::collections::HashMap<_, _> = received
        .spans()
        .filter(|span| span.name == "task")
        .map(|span| (&span.span_id, span))
        .collect();
    assert_eq!(tasks.len(), 200);
    let mut steps = 0;
    for step in received.spans().filter(|span| span.name == "step") {
        let task = tasks[&step.parent_span_id];
        let number = tree::pairs(&task.attributes)[0].clone();
        assert_eq!(tree::pairs(&step.attributes)[0], number);
        assert_eq!(step.events.len(), 1);
        assert!(tree::pairs(&step.events[0].attributes).contains(&number));
        assert_eq!(step.trace_id, task.trace_id);
        steps += 1;
    }
    assert_eq!(steps, 1000);
}

#[test]
fn what_a_filter_hides_leaves_no_gap() {
    let (received, stats) = outcome(|tracing| {
        let shown = tracing.layer().with_filter(LevelFilter::INFO);
        // Another layer that sees everything, as a log would.
        let all = tracing_subscriber::layer::Identity::new().with_filter(filter_fn(|_| true));
        let subscriber = tracing_subscriber::registry().with(all).with(shown);
        tracing::subscriber::with_default(subscriber, || {
            let _outer = info_span!("outer").entered();
            let hidden = tracing::debug_span!("hidden");
            hidden.in_scope(|| {
                info!("in the hidden one");
                tracing::debug!("hidden too");
                info_span!("inner").in_scope(|| {
                    assert!(omnitrace::layer::current().is_some());
                });
                let outer = omnitrace::layer::current();
                assert!(outer.is_some() && omnitrace::layer::context_of(&hidden).is_none());
            });
            info_span!(parent: &hidden, "named the hidden one").follows_from(&hidden);
        });
    });
    assert_eq!(stats.exported, 3);
    assert_snapshot!(tree::of(&received), @r#"
    outer
      * in the hidden one
        level = "INFO"
        target = "rust_face::structure"
      inner
    named the hidden one
    "#);
}

#[test]
fn two_layers_record_each_for_its_own() {
    let (first, _) = outcome(|one| {
        let (second, _) = outcome(|two| {
            let subscriber = tracing_subscriber::registry()
                .with(one.layer())
                .with(two.layer().with_filter(LevelFilter::WARN));
            tracing::subscriber::with_default(subscriber, || {
                let _outer = tracing::warn_span!("outer").entered();
                let _inner = info_span!("inner").entered();
                tracing::warn_span!("innermost");
            });
        });
        assert_snapshot!(tree::of(&second), @r#"
    outer
      innermost
    "#);
    });
    assert_snapshot!(tree::of(&first), @r#"
    outer
      inner
        innermost
    "#);
}
