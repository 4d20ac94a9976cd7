//! `--layout legacy`: the file of the old converter, for those who depend on its 45 spans,
//! their names and tags and the four statistics traces in front; of SGLang's requests that
//! of its own old converter, which has no statistics.

mod chain;
mod request;
mod sglang;
mod write;

use omnitrace::Vocabulary;

use super::{ConvertError, Job, Options, Summary};
use crate::ordered::ordered;
use chain::SLOTS;
use request::Legacy;

/// A span that a request does not have.
const ABSENT: u64 = u64::MAX;

/// Durations of the complete requests, in the order of time.
#[derive(Default)]
struct Population {
    durations: Vec<[u64; SLOTS]>,
    /// The last two: the statistics traces take their times from the one before the last.
    last: Vec<Legacy>,
    /// Requests that are not counted because they are SGLang's.
    of_sglang: usize,
}

/// Writes the whole document; `put` takes its parts.
pub(super) fn write(
    job: &Job<'_>,
    options: &Options,
    put: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    summary: &mut Summary,
    progress: &dyn Fn(usize),
) -> Result<(), ConvertError> {
    let population = population(job, progress)?;
    summary.complete = population.durations.len();
    let mut skip = options.skip;
    if summary.complete <= skip.saturating_mul(2) {
        summary.note_too_few(skip);
        skip = 0;
    }
    summary.note_incomplete(
        job.store.requests() - population.of_sglang,
        "the old layout leaves them out; --layout tree shows them",
    );
    let counted = &population.durations[skip..summary.complete - skip];
    summary.counted = counted.len();
    let mut head = b"{\"data\":[".to_vec();
    statistics(job.vocabulary, &population, counted, &mut head);
    let mut is_first = head.ends_with(b"[");
    put(&head)?;
    ordered(
        job.batches(),
        || job.store.reader(),
        |reader, batch| -> Result<_, ConvertError> {
            let (mut text, mut traces, mut spans) = (Vec::new(), 0, 0);
            for trace in job.traces_of(batch) {
                for request in &reader.trace(trace)?.requests {
                    if !job.is_wanted(&request.id) {
                        continue;
                    }
                    if sglang::is_request(request) {
                        let written = sglang::trace(request, &mut text);
                        traces += usize::from(written > 0);
                        spans += written;
                        continue;
                    }
                    let legacy = Legacy::new(job.vocabulary, request);
                    if !legacy.is_complete() {
                        continue;
                    }
                    text.extend_from_slice(b",\n");
                    spans += write::trace(job.vocabulary, &legacy, None, &mut text);
                    traces += 1;
                }
            }
            Ok((job.traces_of(batch).len(), traces, spans, text))
        },
        |(looked_at, traces, spans, text)| {
            // The first has no comma before it.
            let from = usize::from(traces > 0 && std::mem::take(&mut is_first));
            put(&text[from..])?;
            summary.traces += traces;
            summary.spans += spans;
            progress(looked_at);
            Ok(())
        },
    )?;
    put(b"\n]}\n")
}

fn population(job: &Job<'_>, progress: &dyn Fn(usize)) -> Result<Population, ConvertError> {
    let mut population = Population::default();
    ordered(
        job.batches(),
        || job.store.reader(),
        |reader, batch| -> Result<_, ConvertError> {
            let (mut complete, mut of_sglang) = (Vec::new(), 0);
            for trace in job.traces_of(batch) {
                for request in &reader.trace(trace)?.requests {
                    if sglang::is_request(request) {
                        of_sglang += 1;
                        continue;
                    }
                    let legacy = Legacy::new(job.vocabulary, request);
                    if legacy.is_complete() {
                        let duration = |at| legacy.duration(at).unwrap_or(ABSENT);
                        complete.push((std::array::from_fn(duration), legacy));
                    }
                }
            }
            Ok((job.traces_of(batch).len(), complete, of_sglang))
        },
        |(looked_at, complete, of_sglang)| {
            population.of_sglang += of_sglang;
            for (durations, legacy) in complete {
                population.durations.push(durations);
                if population.last.len() == 2 {
                    population.last.remove(0);
                }
                population.last.push(legacy);
            }
            progress(looked_at);
            Ok(())
        },
    )?;
    Ok(population)
}

fn statistics(
    vocabulary: &Vocabulary,
    population: &Population,
    counted: &[[u64; SLOTS]],
    out: &mut Vec<u8>,
) {
    let Some(template) = population.last.first() else {
        return;
    };
    let all: Vec<(&str, &str, Option<u8>)> = vec![
        (
            "Request TP99 Percentile Trace",
            "TP99 percentile time duration",
            Some(99),
        ),
        (
            "Request TP95 Percentile Trace",
            "TP95 percentile time duration",
            Some(95),
        ),
        (
            "Request TP90 Percentile Trace",
            "TP90 percentile time duration",
            Some(90),
        ),
        ("Request Average Trace", "Average time duration", None),
    ];
    let sorted: Vec<Vec<u64>> = (0..SLOTS)
        .map(|at| {
            let of = counted.iter().map(|d| d[at]).filter(|d| *d != ABSENT);
            let mut durations: Vec<u64> = of.collect();
            durations.sort_unstable();
            durations
        })
        .collect();
    for (number, (title, label, percentile)) in all.into_iter().enumerate() {
        let durations: [Option<f64>; SLOTS] = std::array::from_fn(|at| {
            let sorted = &sorted[at];
            (!sorted.is_empty()).then(|| match percentile {
                None => sorted.iter().sum::<u64>() as f64 / sorted.len() as f64,
                Some(percentile) => interpolated(sorted, percentile),
            })
        });
        let statistic = write::Statistic {
            title,
            label,
            durations: &durations,
        };
        out.extend_from_slice(if number == 0 { b"\n" } else { b",\n" });
        write::trace(vocabulary, template, Some(&statistic), out);
    }
}

/// Between the two nearest ranks, as numpy does it by default.
fn interpolated(sorted: &[u64], percentile: u8) -> f64 {
    let position = f64::from(percentile) / 100.0 * (sorted.len() - 1) as f64;
    let below = sorted[position.floor() as usize] as f64;
    let above = sorted[position.ceil() as usize] as f64;
    below + (above - below) * position.fract()
}
