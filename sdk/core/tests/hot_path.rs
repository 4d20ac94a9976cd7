//! What a recording thread must not do: allocate.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use omnitrace::event::{Action, FreeSpan, Parent};
use omnitrace::id::{SpanId, TraceId};
use omnitrace::{Config, Key, KeyRef, Pipeline, ValueRef, clock};
use tracing_subscriber::layer::SubscriberExt as _;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is the system allocator's; the counter allocates nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often this thread allocates in `f`.
fn allocations(f: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    f();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn recording_allocates_nothing() {
    static MODEL: Key = Key::new("gen_ai.request.model");
    let (config, _) = Config::from_vars(|name| match name {
        "OTEL_TRACES_EXPORTER" => Some("none".to_owned()),
        "OMNITRACE_LEGACY_LOG" => Some("off".to_owned()),
        "ROLE" => Some("prefill".to_owned()),
        _ => None,
    });
    let pipeline = Pipeline::start(config).unwrap();
    let recorder = pipeline.recorder();
    let record = || {
        let attributes = [
            (MODEL.get(), ValueRef::Str("deepseek-r1")),
            (KeyRef::Text("n"), ValueRef::I64(7)),
        ];
        let parent = Parent::Root(TraceId::random());
        let now = clock::now();
        assert!(recorder.span(&FreeSpan {
            attributes: &attributes,
            ..FreeSpan::new("span", now, now, SpanId::random(), parent)
        }));
        let span = FreeSpan::new("span", now, now, SpanId::random(), parent);
        assert!(recorder.span_with(&span, attributes));
        for name in ["Prefill get new_blocks", "outside the vocabulary"] {
            assert!(recorder.action(&Action {
                name,
                time: now,
                request_id: "chatcmpl-38a4f1c0-5b1e-4c52-9c0d-000000000001",
                occurrence: 0,
                context: None,
                attributes: &attributes,
            }));
        }
    };
    // The first record makes this thread's ring.
    assert!(allocations(record) > 0);
    assert_eq!(allocations(|| (0..1_000).for_each(|_| record())), 0);
    assert_eq!(pipeline.shutdown(Duration::from_secs(10)).events, 4 * 1_001);
}

#[test]
fn a_tracing_span_allocates_nothing_either() {
    let (config, _) = Config::from_vars(|name| match name {
        "OTEL_TRACES_EXPORTER" => Some("none".to_owned()),
        "OMNITRACE_LEGACY_LOG" => Some("off".to_owned()),
        _ => None,
    });
    let tracing = omnitrace::start_with(config);
    let subscriber = tracing_subscriber::registry().with(tracing.layer());
    tracing::subscriber::with_default(subscriber, || {
        let record = || {
            let span = tracing::info_span!(
                "schedule",
                model = "deepseek-r1",
                tokens = 7,
                path = %"/v1/chat/completions",
                status = tracing::field::Empty,
            );
            span.in_scope(|| tracing::info!(waiting = 3, "scheduled {}", 1));
            span.record("status", 200);
        };
        // The first ones make this thread's ring and the memory that spans leave to
        // each other.
        assert!(allocations(record) > 0);
        assert_eq!(allocations(|| (0..1_000).for_each(|_| record())), 0);
    });
    assert_eq!(tracing.shutdown(Duration::from_secs(10)).created, 1_001);
}
