//! `omnitrace convert`: logs into one file for the Jaeger UI.

mod tally;
mod whole_file;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use omnitrace::Vocabulary;
use omnitrace::id::canonical_request_id;
use omnitrace::span::Span;

use crate::assemble::Bench;
use crate::ingest::{SpillError, Store};
use crate::jaeger;
use crate::ordered::ordered;
use crate::statistics::{self, Durations, Outline};

use tally::Tally;
use whole_file::WholeFile;

/// Traces that one thread takes at once.
const BATCH: usize = 16;

/// What to convert.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Complete requests left out of the statistics at each end, by time.
    pub skip: usize,
    /// Only these requests' traces are written; empty means all. The statistics
    /// are over all requests either way.
    pub only: Vec<String>,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Request traces written.
    pub traces: usize,
    /// Spans in them.
    pub spans: usize,
    /// Complete requests.
    pub complete: usize,
    /// Requests that the statistics count.
    pub counted: usize,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The output cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The output path as given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The events cannot be read back.
    #[error(transparent)]
    Spill(#[from] SpillError),
    /// None of the selected requests is in the logs.
    #[error("--filter-reqids: none of these requests is in the logs: {0}")]
    NoSuchRequest(String),
}

/// Writes the traces of `store` to `output`; the file appears whole or not at all.
/// `progress` is told how many traces have been looked at, each of them twice.
pub fn convert(
    vocabulary: &Arc<Vocabulary>,
    store: &Store,
    options: &Options,
    output: &Path,
    progress: &dyn Fn(usize),
) -> Result<Summary, ConvertError> {
    let job = Job {
        vocabulary,
        store,
        only: (options.only.iter())
            .map(|id| canonical_request_id(id))
            .collect(),
    };
    let mut summary = Summary::default();
    let durations = job.statistics(options, &mut summary, progress)?;
    let failed = |source| ConvertError::Write {
        path: output.to_owned(),
        source,
    };
    let mut file = WholeFile::create(output).map_err(failed)?;
    job.write(&durations, &mut file, &failed, &mut summary, progress)?;
    file.finish().map_err(failed)?;
    Ok(summary)
}

struct Job<'a> {
    vocabulary: &'a Arc<Vocabulary>,
    store: &'a Store,
    /// Canonical ids of the requests to write; all if it is empty.
    only: BTreeSet<&'a str>,
}

impl Job<'_> {
    fn batches(&self) -> usize {
        self.store.traces().div_ceil(BATCH)
    }

    fn traces_of(&self, batch: usize) -> std::ops::Range<usize> {
        batch * BATCH..self.store.traces().min((batch + 1) * BATCH)
    }

    /// The first pass: durations over the complete requests.
    fn statistics(
        &self,
        options: &Options,
        summary: &mut Summary,
        progress: &dyn Fn(usize),
    ) -> Result<Durations, ConvertError> {
        let mut tally = Tally::new(options.skip);
        let found = Mutex::new(BTreeSet::new());
        ordered(
            self.batches(),
            || (self.store.reader(), Bench::new(self.vocabulary)),
            |(reader, bench), batch| -> Result<_, ConvertError> {
                let mut outlines = Vec::new();
                for trace in self.traces_of(batch) {
                    for request in reader.trace(trace)?.requests {
                        if let Some(id) = self.only.get(&*request.id) {
                            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                            found.insert(*id);
                        }
                        let spans = bench.spans(&request);
                        let roles = statistics::roles_completed(self.vocabulary, &spans);
                        let outline = Outline::of(self.vocabulary, &spans);
                        outlines.extend(outline.map(|o| (request.first(), roles, o)));
                    }
                }
                Ok((self.traces_of(batch).len(), outlines))
            },
            |(traces, outlines)| {
                for (time, roles, outline) in outlines {
                    tally.add(time, roles, outline);
                }
                progress(traces);
                Ok(())
            },
        )?;
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<&str> = self.only.difference(&found).copied().collect();
        if !self.only.is_empty() && found.is_empty() {
            return Err(ConvertError::NoSuchRequest(missing.join(", ")));
        }
        if !missing.is_empty() {
            let missing = missing.join(", ");
            (summary.notes).push(format!("--filter-reqids: not in the logs: {missing}"));
        }
        let counted = tally.finish();
        summary.complete = counted.complete;
        summary.counted = counted.durations.requests();
        if counted.too_few && counted.complete > 0 {
            summary.notes.push(format!(
                "--skip-req_num {} would leave none of the {} complete requests: the statistics count them all",
                options.skip, counted.complete
            ));
        }
        let incomplete = self.store.requests() - counted.complete;
        if incomplete > 0 {
            summary.notes.push(format!(
                "{incomplete} of {} requests are incomplete: shown, and not counted in the statistics",
                self.store.requests()
            ));
        }
        Ok(counted.durations)
    }

    /// The second pass: the file.
    fn write(
        &self,
        durations: &Durations,
        file: &mut WholeFile,
        failed: &(impl Fn(io::Error) -> ConvertError + Sync),
        summary: &mut Summary,
        progress: &dyn Fn(usize),
    ) -> Result<(), ConvertError> {
        let mut head = b"{\"data\":[".to_vec();
        let mut separator: &[u8] = b"\n";
        if durations.requests() > 0 {
            for statistic in statistics::ALL {
                head.extend_from_slice(std::mem::replace(&mut separator, b",\n"));
                let trace = durations.trace(self.vocabulary, statistic);
                jaeger::write::trace(self.vocabulary, &trace, &mut head);
            }
        }
        file.write_all(&head).map_err(failed)?;
        let spare = Mutex::new(Vec::new());
        ordered(
            self.batches(),
            || (self.store.reader(), Bench::new(self.vocabulary)),
            |(reader, bench), batch| -> Result<_, ConvertError> {
                let mut text: Vec<u8> = {
                    let mut spare = spare.lock().unwrap_or_else(PoisonError::into_inner);
                    spare.pop().unwrap_or_default()
                };
                let (mut traces, mut spans) = (0, 0);
                for trace in self.traces_of(batch) {
                    let content = self.spans(reader.trace(trace)?, bench);
                    if content.is_empty() {
                        continue;
                    }
                    text.extend_from_slice(b",\n");
                    jaeger::write::trace(self.vocabulary, &content, &mut text);
                    traces += 1;
                    spans += content.len();
                }
                Ok((self.traces_of(batch).len(), traces, spans, text))
            },
            |(looked_at, traces, spans, mut text)| {
                if traces > 0 {
                    file.write_all(std::mem::replace(&mut separator, b",\n"))
                        .and_then(|()| file.write_all(&text[2..]))
                        .map_err(failed)?;
                }
                text.clear();
                spare
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(text);
                summary.traces += traces;
                summary.spans += spans;
                progress(looked_at);
                Ok(())
            },
        )?;
        file.write_all(b"\n]}\n").map_err(failed)
    }

    /// The spans of a trace that are to be written.
    fn spans(&self, content: crate::ingest::TraceEvents, bench: &mut Bench) -> Vec<Span> {
        let is_wanted = |id: &str| self.only.is_empty() || self.only.contains(id);
        let requests = content.requests.iter().filter(|r| is_wanted(&r.id));
        let mut spans = Vec::new();
        let mut wanted = self.only.is_empty();
        for request in requests {
            wanted = true;
            let more = bench.spans(request);
            if spans.is_empty() {
                spans = more;
            } else {
                spans.extend(more);
            }
        }
        // A selection is of requests; other traces are not part of it.
        if wanted {
            spans.extend(content.spans);
        }
        spans
    }
}
