//! `omnitrace convert`: a directory of logs into one file for the Jaeger UI.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use omnitrace::Vocabulary;
use omnitrace::id::{TraceId, canonical_request_id};
use omnitrace::span::Span;
use rayon::prelude::*;

use crate::assemble;
use crate::clock::Clocks;
use crate::jaeger;
use crate::reader::{Log, Request};
use crate::statistics::{self, Durations};

/// Requests assembled together, so that all cores have work and little is held.
const CHUNK: usize = 512;

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
    /// None of the selected requests is in the logs.
    #[error("--filter-reqids: none of these requests is in the logs: {0}")]
    NoSuchRequest(String),
}

/// What the first pass learns of a request.
struct Outline {
    trace_id: Option<TraceId>,
    spans: Option<Vec<Span>>,
}

/// Writes the traces of `log`, whose times have been put right by `clocks`, to `output`;
/// the file appears whole or not at all.
/// `progress` is told how many requests have been written.
pub fn convert(
    vocabulary: &Arc<Vocabulary>,
    log: &Log,
    clocks: &Clocks,
    options: &Options,
    output: &Path,
    progress: &dyn Fn(usize),
) -> Result<Summary, ConvertError> {
    let mut summary = Summary::default();
    let selected = select(log, options, &mut summary)?;
    let (durations, trace_ids) = first_pass(vocabulary, log, clocks, options, &mut summary);
    let failed = |source| ConvertError::Write {
        path: output.to_owned(),
        source,
    };
    let mut file = WholeFile::create(output).map_err(failed)?;
    let written = write(
        vocabulary, log, clocks, &selected, &durations, &trace_ids, &mut file, progress,
    );
    let (traces, spans) = written.map_err(failed)?;
    file.finish().map_err(failed)?;
    summary.traces = traces;
    summary.spans = spans;
    Ok(summary)
}

/// Indices of the requests to write.
fn select(
    log: &Log,
    options: &Options,
    summary: &mut Summary,
) -> Result<HashSet<usize>, ConvertError> {
    if options.only.is_empty() {
        return Ok((0..log.requests.len()).collect());
    }
    let index: HashMap<&str, usize> = log
        .requests
        .iter()
        .enumerate()
        .map(|(i, r)| (&*r.id, i))
        .collect();
    let mut selected = HashSet::new();
    let mut missing = Vec::new();
    for id in &options.only {
        match index.get(canonical_request_id(id)) {
            Some(at) => _ = selected.insert(*at),
            None => missing.push(id.as_str()),
        }
    }
    if selected.is_empty() {
        return Err(ConvertError::NoSuchRequest(missing.join(", ")));
    }
    if !missing.is_empty() {
        summary.notes.push(format!(
            "--filter-reqids: not in the logs: {}",
            missing.join(", ")
        ));
    }
    Ok(selected)
}

/// Durations over the complete requests, and each request's trace.
fn first_pass(
    vocabulary: &Arc<Vocabulary>,
    log: &Log,
    clocks: &Clocks,
    options: &Options,
    summary: &mut Summary,
) -> (Durations, Vec<Option<TraceId>>) {
    let mut durations = Durations::default();
    let mut trace_ids = Vec::with_capacity(log.requests.len());
    let roles: Vec<_> = log
        .requests
        .par_iter()
        .map(|r| statistics::roles_completed(vocabulary, &assemble::spans(vocabulary, r)))
        .collect();
    let complete = statistics::complete(&roles);
    summary.complete = complete.iter().filter(|c| **c).count();
    let skip = if summary.complete > 2 * options.skip {
        options.skip
    } else {
        if options.skip > 0 && summary.complete > 0 {
            summary.notes.push(format!(
                "--skip-req_num {} would leave none of the {} complete requests: the statistics count them all",
                options.skip, summary.complete
            ));
        }
        0
    };
    let mut rank = 0;
    let last = summary.complete.saturating_sub(skip);
    let counts: Vec<bool> = complete
        .iter()
        .map(|complete| {
            let here = *complete && (skip..last).contains(&rank);
            rank += usize::from(*complete);
            here
        })
        .collect();
    for (chunk, counts) in log.requests.chunks(CHUNK).zip(counts.chunks(CHUNK)) {
        let outlines: Vec<Outline> = chunk
            .par_iter()
            .zip(counts)
            .map(|(request, counts)| {
                let mut spans = assemble::spans(vocabulary, request);
                clocks.settle(&mut spans);
                Outline {
                    trace_id: spans.first().map(|s| s.trace_id),
                    spans: counts.then_some(spans),
                }
            })
            .collect();
        for outline in outlines {
            trace_ids.push(outline.trace_id);
            if let Some(spans) = &outline.spans {
                durations.add(vocabulary, spans);
            }
        }
    }
    durations.sort();
    summary.counted = durations.requests();
    let incomplete = log.requests.len() - summary.complete;
    if incomplete > 0 {
        summary.notes.push(format!(
            "{incomplete} of {} requests are incomplete: shown, and not counted in the statistics",
            log.requests.len()
        ));
    }
    (durations, trace_ids)
}

#[allow(clippy::too_many_arguments)]
fn write(
    vocabulary: &Arc<Vocabulary>,
    log: &Log,
    clocks: &Clocks,
    selected: &HashSet<usize>,
    durations: &Durations,
    trace_ids: &[Option<TraceId>],
    out: &mut impl Write,
    progress: &dyn Fn(usize),
) -> io::Result<(usize, usize)> {
    let (mut traces, mut spans) = (0, 0);
    let mut first = true;
    let mut put = |trace: &jaeger::model::Trace, out: &mut dyn Write| -> io::Result<()> {
        out.write_all(if std::mem::take(&mut first) {
            b"\n"
        } else {
            b",\n"
        })?;
        serde_json::to_writer(&mut *out, trace).map_err(io::Error::from)
    };
    out.write_all(b"{\"data\":[")?;
    if durations.requests() > 0 {
        for statistic in statistics::ALL {
            let trace = durations.trace(vocabulary, statistic);
            if let Some(trace) = jaeger::span::trace(vocabulary, &trace) {
                put(&trace, out)?;
            }
        }
    }
    let groups = group(log, selected, trace_ids);
    for chunk in groups.chunks(CHUNK) {
        let converted: Vec<_> = chunk
            .par_iter()
            .map(|group| {
                let requests = group.requests.iter().map(|at| &log.requests[*at]);
                let free = group.free.iter().map(|at| &log.spans[*at]);
                let mut spans = trace_spans(vocabulary, requests, free);
                clocks.settle(&mut spans);
                jaeger::span::trace(vocabulary, &spans)
            })
            .collect();
        for trace in converted.iter().flatten() {
            put(trace, out)?;
            traces += 1;
            spans += trace.spans.len();
        }
        progress(chunk.len());
    }
    out.write_all(b"\n]}\n")?;
    Ok((traces, spans))
}

/// What makes one trace.
struct Group {
    requests: Vec<usize>,
    free: Vec<usize>,
}

/// Requests and free spans of the same trace, in the order of its first request.
fn group(log: &Log, selected: &HashSet<usize>, trace_ids: &[Option<TraceId>]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut by_trace: HashMap<TraceId, usize> = HashMap::new();
    for (at, trace_id) in trace_ids
        .iter()
        .enumerate()
        .filter(|(at, _)| selected.contains(at))
    {
        let Some(trace_id) = trace_id else { continue };
        let group = *by_trace.entry(*trace_id).or_insert(groups.len());
        if group == groups.len() {
            groups.push(Group {
                requests: Vec::new(),
                free: Vec::new(),
            });
        }
        groups[group].requests.push(at);
    }
    let all = selected.len() == log.requests.len();
    for (at, span) in log.spans.iter().enumerate() {
        match by_trace.get(&span.trace_id) {
            Some(group) => groups[*group].free.push(at),
            // A selection is of requests; other traces are not part of it.
            None if all => {
                by_trace.insert(span.trace_id, groups.len());
                groups.push(Group {
                    requests: Vec::new(),
                    free: vec![at],
                });
            }
            None => {}
        }
    }
    groups
}

fn trace_spans<'a>(
    vocabulary: &Arc<Vocabulary>,
    requests: impl Iterator<Item = &'a Request>,
    free: impl Iterator<Item = &'a Span>,
) -> Vec<Span> {
    let mut spans: Vec<Span> = requests
        .flat_map(|request| assemble::spans(vocabulary, request))
        .collect();
    spans.extend(free.cloned());
    spans
}

/// A file that takes its name only when it is complete; `-` is stdout.
struct WholeFile {
    out: BufWriter<Box<dyn Write>>,
    rename: Option<(PathBuf, PathBuf)>,
}

impl WholeFile {
    fn create(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            let out = BufWriter::new(Box::new(io::stdout()) as Box<dyn Write>);
            return Ok(Self { out, rename: None });
        }
        if path.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::IsADirectory,
                "is a directory",
            ));
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let part = path.with_file_name(name);
        let file = File::create(&part)?;
        let out = BufWriter::with_capacity(1 << 18, Box::new(file) as Box<dyn Write>);
        Ok(Self {
            out,
            rename: Some((part, path.to_owned())),
        })
    }

    fn finish(mut self) -> io::Result<()> {
        self.out.flush()?;
        match self.rename.take() {
            Some((part, path)) => std::fs::rename(part, path),
            None => Ok(()),
        }
    }
}

impl Write for WholeFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.out.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if let Some((part, _)) = &self.rename {
            // Unfinished: better no file than half of one.
            let _ = std::fs::remove_file(part);
        }
    }
}
