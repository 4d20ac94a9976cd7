//! `omnitrace convert`: logs into one file of traces.

mod csv;
mod form;
mod legacy;
mod otlp;
mod perfetto;
mod tally;
mod whole_file;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use omnitrace::Vocabulary;
use omnitrace::id::canonical_request_id;
use omnitrace::span::Span;
use omnitrace::vocabulary::PhaseId;

use crate::assemble::Bench;
use crate::ingest::{Reader, SpillError, Store, TraceEvents, client_id};
use crate::ordered::ordered;
use crate::statistics::{self, Durations, Outline};

pub use form::{Format, Layout};
pub use whole_file::remove_unfinished;

use form::Form;
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
    /// What to write.
    pub format: Format,
    /// How a request's spans stand to each other; another than the tree only in
    /// [`Format::Jaeger`].
    pub layout: Layout,
}

impl Options {
    /// Whether the reader must keep what only the old layout shows.
    pub fn needs_hosts(&self) -> bool {
        self.layout == Layout::Legacy
    }
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

impl Summary {
    fn note_too_few(&mut self, skip: usize) {
        if skip > 0 && self.complete > 0 {
            self.notes.push(format!(
                "--skip-req_num {skip} would leave none of the {} complete requests: the statistics count them all",
                self.complete
            ));
        }
    }

    fn note_contradictory(&mut self, vocabulary: &Vocabulary, phases: &BTreeMap<PhaseId, u64>) {
        if phases.is_empty() {
            return;
        }
        let each = phases.iter().map(|(phase, count)| {
            let name = &vocabulary.phase(*phase).name;
            format!("\"{name}\" ({count})")
        });
        self.notes.push(format!(
            "phases that would end before they begin are shown as events of other spans: {}",
            each.collect::<Vec<_>>().join(", ")
        ));
    }

    fn note_incomplete(&mut self, all: usize, what: &str) {
        let incomplete = all - self.complete;
        if incomplete > 0 {
            self.notes.push(format!(
                "{incomplete} of {all} requests are incomplete: {what}"
            ));
        }
    }
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
    /// Only one format has the old layout.
    #[error("--layout legacy is a layout of --format jaeger: leave one of the two out")]
    Layout,
}

/// Whether `output` can be written: to be asked before hours of reading.
pub fn check(output: &Path) -> Result<(), ConvertError> {
    if output == Path::new("-") || (output.exists() && !output.is_file()) && !output.is_dir() {
        return Ok(());
    }
    match WholeFile::create(output) {
        Ok(_) => Ok(()),
        Err(source) => Err(ConvertError::Write {
            path: output.to_owned(),
            source,
        }),
    }
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
    let failed = |source| ConvertError::Write {
        path: output.to_owned(),
        source,
    };
    if options.layout == Layout::Legacy {
        if options.format != Format::Jaeger {
            return Err(ConvertError::Layout);
        }
        job.find_selected(&mut summary)?;
        let mut file = WholeFile::create(output).map_err(failed)?;
        let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(failed);
        legacy::write(&job, options, &mut put, &mut summary, progress)?;
        file.finish().map_err(failed)?;
        return Ok(summary);
    }
    job.find_selected(&mut summary)?;
    let durations = if options.format.has_statistics() {
        Some(job.statistics(options, &mut summary, progress)?)
    } else {
        progress(store.traces());
        None
    };
    let mut file = WholeFile::create(output).map_err(failed)?;
    let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(failed);
    let form = Form::new(vocabulary, options.format);
    job.write(&form, durations.as_ref(), &mut put, &mut summary, progress)?;
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

    fn is_wanted(&self, id: &str) -> bool {
        self.only.is_empty() || self.only.contains(id) || self.only.contains(client_id(id))
    }

    /// Makes sure that some of the selected requests are there.
    fn find_selected(&self, summary: &mut Summary) -> Result<(), ConvertError> {
        if self.only.is_empty() {
            return Ok(());
        }
        let mut missing = self.only.clone();
        ordered(
            self.batches(),
            || self.store.reader(),
            |reader, batch| -> Result<_, ConvertError> {
                let mut found = Vec::new();
                for trace in self.traces_of(batch) {
                    let requests = reader.trace(trace)?.requests;
                    found.extend(
                        requests
                            .into_iter()
                            .map(|r| r.id)
                            .filter(|id| self.is_wanted(id)),
                    );
                }
                Ok(found)
            },
            |found| {
                for id in &found {
                    missing.remove(&**id);
                    missing.remove(client_id(id));
                }
                Ok(())
            },
        )?;
        let names: Vec<&str> = missing.iter().copied().collect();
        let names = names.join(", ");
        if missing.len() == self.only.len() {
            return Err(ConvertError::NoSuchRequest(names));
        }
        if !missing.is_empty() {
            (summary.notes).push(format!("--filter-reqids: not in the logs: {names}"));
        }
        Ok(())
    }

    /// The first pass: durations over the complete requests.
    fn statistics(
        &self,
        options: &Options,
        summary: &mut Summary,
        progress: &dyn Fn(usize),
    ) -> Result<Durations, ConvertError> {
        let mut tally = Tally::new(options.skip);
        ordered(
            self.batches(),
            || (self.store.reader(), Bench::new(self.vocabulary)),
            |(reader, bench), batch| -> Result<_, ConvertError> {
                let mut outlines = Vec::new();
                for trace in self.traces_of(batch) {
                    for request in reader.trace(trace)?.requests {
                        let mut spans = bench.spans(&request);
                        reader.settle(&mut spans);
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
        let counted = tally.finish();
        summary.complete = counted.complete;
        summary.counted = counted.durations.requests();
        if counted.too_few {
            summary.note_too_few(options.skip);
        }
        summary.note_incomplete(
            self.store.requests(),
            "shown, and not counted in the statistics",
        );
        Ok(counted.durations)
    }

    /// The second pass: the file.
    fn write(
        &self,
        form: &Form<'_>,
        durations: Option<&Durations>,
        put: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
        summary: &mut Summary,
        progress: &dyn Fn(usize),
    ) -> Result<(), ConvertError> {
        let mut head = Vec::new();
        for statistic in statistics::ALL {
            if let Some(durations) = durations.filter(|d| d.requests() > 0) {
                form.trace(&durations.trace(self.vocabulary, statistic), &mut head);
            }
        }
        put(form.head())?;
        // The first trace has no comma before it.
        let mut comma = usize::from(form.has_commas());
        if !head.is_empty() {
            put(&head[std::mem::take(&mut comma)..])?;
        }
        let mut contradictory = BTreeMap::new();
        let spare = Mutex::new(Vec::<Vec<u8>>::new());
        let spare = || spare.lock().unwrap_or_else(PoisonError::into_inner);
        ordered(
            self.batches(),
            || (self.store.reader(), Bench::new(self.vocabulary)),
            |(reader, bench), batch| -> Result<_, ConvertError> {
                let mut text = spare().pop().unwrap_or_default();
                let (mut traces, mut spans) = (0, 0);
                let mut left_out = Vec::new();
                for trace in self.traces_of(batch) {
                    let content = self.spans(reader.trace(trace)?, reader, bench, &mut left_out);
                    if content.is_empty() {
                        continue;
                    }
                    form.trace(&content, &mut text);
                    traces += 1;
                    spans += content.len();
                }
                Ok((self.traces_of(batch).len(), traces, spans, left_out, text))
            },
            |(looked_at, traces, spans, left_out, mut text)| {
                if !text.is_empty() {
                    put(&text[std::mem::take(&mut comma)..])?;
                }
                text.clear();
                spare().push(text);
                summary.traces += traces;
                summary.spans += spans;
                for phase in left_out {
                    *contradictory.entry(phase).or_default() += 1;
                }
                progress(looked_at);
                Ok(())
            },
        )?;
        summary.note_contradictory(self.vocabulary, &contradictory);
        put(&form.tail())
    }

    /// The spans of a trace that are to be written; `left_out` is added to.
    fn spans(
        &self,
        content: TraceEvents,
        reader: &Reader<'_>,
        bench: &mut Bench,
        left_out: &mut Vec<PhaseId>,
    ) -> Vec<Span> {
        let requests = content.requests.iter().filter(|r| self.is_wanted(&r.id));
        let mut spans = Vec::new();
        let mut wanted = self.only.is_empty();
        for request in requests {
            wanted = true;
            let more = bench.spans_with_rest(request);
            left_out.extend(bench.contradictory());
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
        reader.settle(&mut spans);
        spans
    }
}
