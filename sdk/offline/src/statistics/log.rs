//! The statistics of a log that is held in memory.

use std::sync::Arc;

use omnitrace::Vocabulary;
use rayon::prelude::*;

use super::{Options, Statistics, Summary};
use crate::assemble;
use crate::clock::Clocks;
use crate::reader::Log;

/// The statistics of `log`, whose times have been put right by `clocks`, on all cores.
/// `progress` is told how many requests have been counted.
pub fn over(
    vocabulary: &Arc<Vocabulary>,
    log: &Log,
    clocks: &Clocks,
    options: Options,
    progress: &(dyn Fn(usize) + Sync),
) -> Summary {
    let options = Arc::new(options);
    let none = || Statistics::new(vocabulary, Arc::clone(&options));
    let counted = log
        .requests
        .par_iter()
        .fold(none, |mut statistics, request| {
            let mut spans = assemble::spans(vocabulary, request);
            clocks.settle(&mut spans);
            statistics.add(&spans);
            progress(1);
            statistics
        });
    let all = counted.reduce(none, |mut all, part| {
        all.merge(part);
        all
    });
    all.finish()
}
