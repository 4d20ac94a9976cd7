//! The spans that are open, by the id that `tracing` gives them.
//!
//! Every service that uses `tracing` pays for its registry; what we add must be little.
//! A span's parts are therefore in a table of our own and stay in memory that the last
//! span has left there. A place is found by a hash of the id; where all places for a
//! hash are taken, there is another table twice as large.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use tracing::span::Id;

use crate::carry::Passing;
use crate::context::SpanContext;
use crate::id::{SpanId, TraceId};

use super::recording::Recording;

/// Places of the first table.
const PLACES: usize = 512;
/// Places for one hash: their ids are on one cache line.
const BUCKET: usize = 8;

/// Bits of an id in which tracing-subscriber's registry counts how often it has used a
/// place of its own. Without them a thread's next span has the place of its last one,
/// which is still in its cache.
const USES: u64 = !0 << 51;

/// Ids of one bucket; 0 is a free place.
#[repr(align(64))]
struct Bucket([AtomicU64; BUCKET]);

/// All open spans of a layer.
pub(super) struct OpenSpans {
    buckets: Box<[Bucket]>,
    /// In the order of the buckets' ids.
    spans: Box<[OpenSpan]>,
    /// For what has found no place here.
    next: OnceLock<Box<OpenSpans>>,
}

impl OpenSpans {
    pub(super) fn new() -> Self {
        Self::with_places(PLACES)
    }

    fn with_places(places: usize) -> Self {
        let bucket = || Bucket([const { AtomicU64::new(0) }; BUCKET]);
        Self {
            buckets: (0..places / BUCKET).map(|_| bucket()).collect(),
            spans: (0..places).map(|_| OpenSpan::default()).collect(),
            next: OnceLock::new(),
        }
    }

    #[inline]
    fn bucket(&self, id: u64) -> usize {
        // The golden ratio spreads what differs only in a few bits.
        let hash = (id & !USES).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        hash as usize & (self.buckets.len() - 1)
    }

    /// The span, if it is open and ours.
    #[inline]
    pub(super) fn get(&self, id: &Id) -> Option<&OpenSpan> {
        let wanted = id.into_u64();
        let mut table = self;
        loop {
            let bucket = table.bucket(wanted);
            let ids = &table.buckets[bucket].0;
            if let Some(at) = ids
                .iter()
                .position(|id| id.load(Ordering::Acquire) == wanted)
            {
                return table.spans.get(bucket * BUCKET + at);
            }
            table = table.next.get()?;
        }
    }

    /// Gives a new span its place once `fill` is done with it.
    #[inline]
    pub(super) fn insert(
        &self,
        id: &Id,
        context: &SpanContext,
        passing: Option<Arc<Passing>>,
        fill: impl FnOnce(&mut Recording),
    ) {
        let wanted = id.into_u64();
        let mut table = self;
        loop {
            let bucket = table.bucket(wanted);
            for (at, id) in table.buckets[bucket].0.iter().enumerate() {
                if id.load(Ordering::Relaxed) != 0 {
                    continue;
                }
                let span = &table.spans[bucket * BUCKET + at];
                let Some(mut recording) = span.try_lock() else {
                    continue;
                };
                // Another thread may have been here and gone.
                if id.load(Ordering::Relaxed) == 0 {
                    fill(&mut recording);
                    span.begin(context, passing.is_some());
                    recording.passing = passing;
                    id.store(wanted, Ordering::Release);
                    return;
                }
            }
            let next = || Box::new(Self::with_places(2 * table.spans.len()));
            table = table.next.get_or_init(next);
        }
    }

    /// Takes leave of a span: `last` sees it, then its place is free.
    #[inline]
    pub(super) fn remove(&self, id: &Id, last: impl FnOnce(&OpenSpan, &mut Recording)) {
        let wanted = id.into_u64();
        let mut table = Some(self);
        while let Some(here) = table {
            let bucket = here.bucket(wanted);
            let ids = &here.buckets[bucket].0;
            if let Some(at) = ids
                .iter()
                .position(|id| id.load(Ordering::Acquire) == wanted)
            {
                let span = &here.spans[bucket * BUCKET + at];
                let mut recording = span.lock();
                last(span, &mut recording);
                recording.clear();
                ids[at].store(0, Ordering::Release);
                return;
            }
            table = here.next.get().map(|next| &**next);
        }
    }
}

/// One open span. What other spans ask for, and what changes each time it is left, is
/// there without its lock.
#[derive(Default)]
pub(super) struct OpenSpan {
    context: Context,
    passes_on: AtomicBool,
    /// When it was last left, in nanoseconds since 1970; 0 if it never was.
    left: AtomicU64,
    recording: Mutex<Recording>,
}

impl OpenSpan {
    fn begin(&self, context: &SpanContext, passes_on: bool) {
        self.context.write(context);
        self.passes_on.store(passes_on, Ordering::Relaxed);
        self.context.is_known.store(false, Ordering::Relaxed);
        self.left.store(0, Ordering::Relaxed);
    }

    #[inline]
    fn try_lock(&self) -> Option<MutexGuard<'_, Recording>> {
        match self.recording.try_lock() {
            Ok(guard) => Some(guard),
            // Somebody's Debug has panicked while we held it.
            Err(TryLockError::Poisoned(poisoned)) => {
                self.recording.clear_poison();
                let mut recording = poisoned.into_inner();
                recording.clear();
                Some(recording)
            }
            Err(TryLockError::WouldBlock) => None,
        }
    }

    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, Recording> {
        self.recording
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Its trace and its own id. Others know them from now on.
    #[inline]
    pub(super) fn context(&self) -> Option<SpanContext> {
        if !self.context.is_known.load(Ordering::Relaxed) {
            self.context.is_known.store(true, Ordering::Relaxed);
        }
        self.own_context()
    }

    /// The same, for itself.
    #[inline]
    pub(super) fn own_context(&self) -> Option<SpanContext> {
        self.context.read().or_else(|| {
            // It is being written, which takes the lock.
            let _written = self.lock();
            self.context.read()
        })
    }

    /// Moves it to another trace. False: others know it where it is.
    pub(super) fn set_context(&self, _recording: &mut Recording, context: &SpanContext) -> bool {
        let is_known = self.context.is_known.load(Ordering::Relaxed);
        if !is_known {
            self.context.write(context);
        }
        !is_known
    }

    /// What came with its context and goes on with it.
    #[inline]
    pub(super) fn passing(&self) -> Option<Arc<Passing>> {
        let passes_on = self.passes_on.load(Ordering::Relaxed);
        passes_on.then(|| self.lock().passing.clone()).flatten()
    }

    pub(super) fn set_passing(&self, recording: &mut Recording, passing: Option<Passing>) {
        self.passes_on.store(passing.is_some(), Ordering::Relaxed);
        recording.passing = passing.map(Arc::new);
    }

    #[inline]
    pub(super) fn leave(&self, now: u64) {
        self.left.store(now, Ordering::Relaxed);
    }

    /// When it was last left, if it was.
    #[inline]
    pub(super) fn left(&self) -> Option<u64> {
        Some(self.left.load(Ordering::Relaxed)).filter(|time| *time != 0)
    }
}

/// A [`SpanContext`] that one thread writes and others read at any time.
#[derive(Default)]
struct Context {
    /// Odd while it is being written.
    version: AtomicU64,
    /// The trace id's two halves, the span id, the W3C flags.
    words: [AtomicU64; 4],
    is_known: AtomicBool,
}

impl Context {
    /// With the lock of its span.
    #[inline]
    fn write(&self, context: &SpanContext) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        let trace = context.trace_id.value();
        let span = context.span_id.value();
        let words = [
            (trace >> 64) as u64,
            trace as u64,
            span,
            context.flags.into(),
        ];
        for (word, value) in self.words.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
        let done = (version | 1).wrapping_add(1);
        self.version.store(done, Ordering::Release);
    }

    /// None: it is being written.
    #[inline]
    fn read(&self) -> Option<SpanContext> {
        let version = self.version.load(Ordering::Acquire);
        let [high, low, span, flags] = self
            .words
            .each_ref()
            .map(|word| word.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        if version & 1 != 0 || self.version.load(Ordering::Relaxed) != version {
            return None;
        }
        Some(SpanContext {
            trace_id: TraceId::new(u128::from(high) << 64 | u128::from(low))?,
            span_id: SpanId::new(span)?,
            flags: flags as u8,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn context(n: u64) -> SpanContext {
        SpanContext {
            trace_id: TraceId::new(u128::from(n) << 64 | u128::from(n)).unwrap(),
            span_id: SpanId::new(n).unwrap(),
            flags: n as u8,
        }
    }

    #[test]
    fn spans_of_one_hash_are_all_found() {
        let spans = OpenSpans::with_places(64);
        let of_one_hash = |id: &u64| spans.bucket(*id) == spans.bucket(1);
        let ids: Vec<u64> = (1..).filter(of_one_hash).take(100).collect();
        let id = |n: &u64| Id::from_u64(*n);
        for n in &ids {
            spans.insert(&id(n), &context(*n), None, |recording| recording.start = *n);
        }
        let found = |n: &u64| {
            let span = spans.get(&id(n))?;
            let start = span.lock().start;
            Some((span.own_context()?, start))
        };
        for n in &ids {
            assert_eq!(found(n), Some((context(*n), *n)));
        }
        let (gone, left): (Vec<u64>, Vec<u64>) = ids.iter().partition(|n| *n % 2 == 0);
        for n in &gone {
            spans.remove(&id(n), |_, recording| assert_eq!(recording.start, *n));
            assert_eq!(found(n), None);
        }
        assert!(left.iter().all(|n| found(n) == Some((context(*n), *n))));
    }

    #[test]
    fn a_context_is_read_whole_while_it_is_written() {
        let spans = OpenSpans::with_places(64);
        let id = Id::from_u64(7);
        spans.insert(&id, &context(1), None, |_| {});
        let span = spans.get(&id).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1..20_000 {
                    let mut recording = span.lock();
                    assert!(span.set_context(&mut recording, &context(n)));
                }
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let seen = span.own_context().unwrap();
                        assert_eq!(seen, context(seen.span_id.value()));
                    }
                });
            }
        });
        assert_eq!(span.context(), Some(context(19_999)));
        assert!(!span.set_context(&mut span.lock(), &context(1)));
    }
}
