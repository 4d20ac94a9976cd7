//! Reads legacy logs: every file below a directory, gzip included.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use omnitrace::SpanContext;
use omnitrace::id::{SpanId, canonical_request_id};
use omnitrace::legacy_log::{ActionLine, Line, LineError, parse_line};
use omnitrace::span::{Source, Span};
use omnitrace::value::Attribute;
use rayon::prelude::*;

use crate::clock::{LogClock, Register, is_since_boot};

/// A line longer than this is not one of ours.
const MAX_LINE: u64 = 4 << 20;

/// Everything that the logs say.
#[derive(Debug, Default)]
pub struct Log {
    /// Requests with their events, in the order of their first event's time.
    pub requests: Vec<Request>,
    /// Finished free spans.
    pub spans: Vec<Span>,
    /// Spans that a Collector has taken already.
    pub exported: HashSet<SpanId>,
    /// What the files say of their proxies' clocks; times since boot stand as
    /// [`LogClock::time`] gave them until [`crate::clock::Clocks::repair`].
    pub clocks: Vec<LogClock>,
    /// What was read and what could not be.
    pub report: Report,
}

/// One request's events, as logged.
#[derive(Debug)]
pub struct Request {
    /// Canonical id.
    pub id: Box<str>,
    /// Its events.
    pub events: Vec<LoggedEvent>,
}

/// One action line.
#[derive(Debug, Clone, PartialEq)]
pub struct LoggedEvent {
    /// Action name.
    pub action: Arc<str>,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Who recorded it.
    pub source: Arc<Source>,
    /// Which try, from 0.
    pub occurrence: u16,
    /// What only our own lines have.
    pub extra: Option<Box<Extra>>,
}

/// What the JSON object at a line's end says of an event.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extra {
    /// The context that came with the request.
    pub context: Option<SpanContext>,
    /// Attributes.
    pub attributes: Vec<Attribute>,
    /// Names of the spans ending here that no Collector has taken; none where
    /// the line was written without knowing.
    pub undelivered: Option<Vec<String>>,
}

/// What was read and what could not be.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Files read.
    pub files: usize,
    /// Lines in them.
    pub lines: u64,
    /// Bytes in them, uncompressed.
    pub bytes: u64,
    /// Action lines taken.
    pub events: u64,
    /// Lines that look like actions and are not: how many, and the first one.
    pub unreadable: BTreeMap<LineError, (u64, String)>,
    /// Files that could not be read to their end, with the reason.
    pub failed: Vec<String>,
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The path is not there, or may not be read.
    #[error("cannot read {path}: {source}")]
    Open {
        /// The path as given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// There is no action in any file.
    #[error(
        "no action lines (\"<<<Action: …\") in the {files} files under {path}; is this the trace directory (TRACE_OUTPUT_DIRECTORY)?"
    )]
    Empty {
        /// The path as given.
        path: PathBuf,
        /// Files looked at.
        files: usize,
    },
}

/// Reads every regular file below `path`, or `path` itself if it is a file.
/// `progress` is told the bytes of each file as it has been read.
pub fn read(path: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<Log, ReadError> {
    let files = files(path)?;
    let register = Arc::new(Register::default());
    let parts: Vec<Partial> = files
        .par_iter()
        .map(|(file, size)| {
            let part = Partial::read(file, LogClock::new(Arc::clone(&register)));
            progress(*size);
            part
        })
        .collect();
    let log = merge(parts);
    if log.report.events == 0 {
        return Err(ReadError::Empty {
            path: path.to_owned(),
            files: log.report.files,
        });
    }
    Ok(log)
}

/// The regular files below `path` with their sizes, sorted by name.
pub fn files(path: &Path) -> Result<Vec<(PathBuf, u64)>, ReadError> {
    let open = |path: &Path| {
        let path = path.to_owned();
        move |source| ReadError::Open { path, source }
    };
    let metadata = std::fs::metadata(path).map_err(open(path))?;
    if !metadata.is_dir() {
        return Ok(vec![(path.to_owned(), metadata.len())]);
    }
    let mut found = Vec::new();
    let mut directories = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).map_err(open(&directory))? {
            let entry = entry.map_err(open(&directory))?;
            // A link that leads nowhere, or a file that has just been rotated.
            let Ok(metadata) = std::fs::metadata(entry.path()) else {
                continue;
            };
            let is_link = entry.file_type().is_ok_and(|t| t.is_symlink());
            if metadata.is_dir() && !is_link {
                directories.push(entry.path());
            } else if metadata.is_file() {
                found.push((entry.path(), metadata.len()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// One file's share.
struct Partial {
    clock: LogClock,
    requests: HashMap<Box<str>, Vec<LoggedEvent>>,
    spans: Vec<Span>,
    exported: Vec<SpanId>,
    report: Report,
    names: HashMap<Box<str>, Arc<str>>,
    sources: HashMap<(Box<str>, Box<str>), Arc<Source>>,
}

impl Partial {
    fn read(path: &Path, clock: LogClock) -> Self {
        let mut part = Self {
            clock,
            requests: HashMap::new(),
            spans: Vec::new(),
            exported: Vec::new(),
            report: Report::default(),
            names: HashMap::new(),
            sources: HashMap::new(),
        };
        part.report.files = 1;
        if let Err(error) = part.read_lines(path) {
            part.report
                .failed
                .push(format!("{}: {error}", path.display()));
        }
        part
    }

    fn read_lines(&mut self, path: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        let gzip = path.extension().is_some_and(|e| e == "gz");
        let mut reader: Box<dyn BufRead> = if gzip {
            Box::new(BufReader::with_capacity(1 << 18, MultiGzDecoder::new(file)))
        } else {
            Box::new(BufReader::with_capacity(1 << 18, file))
        };
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = io::Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok(());
            }
            self.report.lines += 1;
            self.report.bytes += read as u64;
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            match parse_line(text) {
                Ok(Line::Action(mut action)) => {
                    // A proxy's, or one that tells the zone of its log's dates.
                    if action.source.is_none() || !is_since_boot(action.time) {
                        let (name, id) = (&action.action, &action.request_id);
                        action.time = self.clock.time(text, name, id, action.time);
                    }
                    self.take(*action);
                }
                Ok(Line::Exported(spans)) => self.exported.extend(spans),
                Ok(Line::Other) => self.clock.other(text),
                Err(error) => {
                    let number = self.report.lines;
                    let first = || format!("{}:{number}", path.display());
                    self.report
                        .unreadable
                        .entry(error)
                        .or_insert_with(|| (0, first()))
                        .0 += 1;
                }
            }
        }
    }

    fn take(&mut self, line: ActionLine<'_>) {
        self.report.events += 1;
        let (role, node) = line.source.unwrap_or(("proxy", ""));
        let role = line.suffix.role.as_deref().unwrap_or(role);
        let source = Arc::clone(
            self.sources
                .entry((role.into(), node.into()))
                .or_insert_with(|| {
                    Arc::new(Source {
                        role: role.into(),
                        node: node.into(),
                    })
                }),
        );
        if let Some(span) = &line.suffix.span {
            let attributes = &line.suffix.attributes;
            let free = span.span(&line.action, line.time, attributes, source);
            self.spans.extend(free);
            return;
        }
        let action = match self.names.get(&*line.action) {
            Some(name) => Arc::clone(name),
            None => {
                let name: Arc<str> = line.action.as_ref().into();
                self.names
                    .insert(line.action.as_ref().into(), Arc::clone(&name));
                name
            }
        };
        let suffix = line.suffix;
        let context = suffix
            .traceparent
            .as_deref()
            .and_then(|t| SpanContext::parse(t.as_bytes()));
        let extra = Extra {
            context,
            attributes: suffix.attributes.0,
            undelivered: suffix.undelivered,
        };
        let event = LoggedEvent {
            action,
            time: line.time,
            source,
            occurrence: suffix.occurrence,
            extra: (extra != Extra::default()).then(|| Box::new(extra)),
        };
        let id = canonical_request_id(&line.request_id);
        match self.requests.get_mut(id) {
            Some(events) => events.push(event),
            None => {
                self.requests.insert(id.into(), vec![event]);
            }
        }
    }
}

fn merge(parts: Vec<Partial>) -> Log {
    let mut log = Log::default();
    let mut requests: HashMap<Box<str>, Vec<LoggedEvent>> = HashMap::new();
    let mut seen = HashSet::new();
    for part in parts {
        for (id, events) in part.requests {
            requests.entry(id).or_default().extend(events);
        }
        // The same line may stand in a file and in its copy.
        log.spans.extend(
            part.spans
                .into_iter()
                .filter(|s| seen.insert((s.trace_id, s.span_id))),
        );
        log.exported.extend(part.exported);
        log.clocks.push(part.clock);
        log.report.absorb(part.report);
    }
    log.requests = requests
        .into_iter()
        .map(|(id, events)| Request { id, events })
        .collect();
    log.requests
        .par_iter_mut()
        .for_each(|r| r.events.sort_by_key(|e| e.time));
    log.requests
        .par_sort_by(|a, b| (a.first(), &a.id).cmp(&(b.first(), &b.id)));
    log
}

impl Request {
    /// Time of its first event.
    pub fn first(&self) -> u64 {
        self.events.first().map_or(0, |e| e.time)
    }
}

impl Report {
    fn absorb(&mut self, other: Self) {
        self.files += other.files;
        self.lines += other.lines;
        self.bytes += other.bytes;
        self.events += other.events;
        self.failed.extend(other.failed);
        for (error, (count, first)) in other.unreadable {
            self.unreadable.entry(error).or_insert_with(|| (0, first)).0 += count;
        }
    }

    /// What a person should know, a line each.
    pub fn problems(&self) -> Vec<String> {
        let unreadable = self.unreadable.iter().map(|(error, (count, first))| {
            let lines = if *count == 1 { "line" } else { "lines" };
            format!("{count} {lines} left out: {error} (first at {first})")
        });
        unreadable.chain(self.failed.iter().cloned()).collect()
    }
}
