//! The statistics of logs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use omnitrace::Vocabulary;

use super::{Options, Statistics, Summary};
use crate::assemble::Bench;
use crate::ingest::{SpillError, Store, in_threads};

/// Traces that one thread takes at once.
const BATCH: usize = 16;

/// The statistics of what `store` holds, on all cores. `progress` is told how many traces
/// have been counted.
pub fn over(
    vocabulary: &Arc<Vocabulary>,
    store: &Store,
    options: Options,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Summary, SpillError> {
    let options = Arc::new(options);
    let none = || Statistics::new(vocabulary, Arc::clone(&options));
    let next = AtomicUsize::new(0);
    let shares = in_threads(|| -> Result<Statistics, SpillError> {
        let mut statistics = none();
        let mut reader = store.reader();
        let mut bench = Bench::new(vocabulary);
        loop {
            let first = next.fetch_add(BATCH, Ordering::Relaxed);
            let batch = first..store.traces().min(first + BATCH);
            if batch.is_empty() {
                return Ok(statistics);
            }
            let count = batch.len();
            for trace in batch {
                for request in reader.trace(trace)?.requests {
                    let mut spans = bench.spans(&request);
                    reader.settle(&mut spans);
                    statistics.add(&spans);
                    statistics.note_contradictory(&request.id, bench.contradictory());
                }
            }
            progress(count);
        }
    });
    let mut all = none();
    for share in shares {
        all.merge(share?);
    }
    Ok(all.finish())
}
