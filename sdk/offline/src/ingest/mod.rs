//! Logs of any size into requests that are whole, in the order of time.
//!
//! ```text
//!  files ─► chunks ─► scan: lines into records ─► partitions by request ─► group ─► Store
//!           (every core)                          (memory, then a temporary file)
//! ```
//! What is held in memory for each request is its entry in the store's index; its events
//! are in memory only as far as [`MEMORY`] reaches.

mod files;
mod foreign;
mod free;
mod group;
mod lines;
mod names;
mod origin;
mod partition;
mod record;
mod report;
mod scan;
mod sglang;
mod spill;
mod store;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use omnitrace::Vocabulary;
use omnitrace::span::Span;

use crate::clock::{Clocks, Mode, Register, Samples};

pub use files::{ReadError, find};
pub(crate) use group::client_id;
use group::{Entry, Grouping};
use lines::{Coding, Document, Input};
use names::{Names, Ranks};
pub(crate) use origin::Origin;
use partition::Partitions;
pub use report::{Reason, Report};
use scan::{Scanner, Seen};
use spill::Spill;
pub use spill::SpillError;
use store::{Contents, Writer};
pub use store::{Reader, Store, TraceEvents};

/// Bytes of events that are kept in memory, unless another number is wanted.
pub const MEMORY: usize = 24 << 20;
/// Of a byte of log about this much becomes a record.
const RECORD_SHARE: u64 = 4;
/// A byte of a compressed file is about so many of the log.
const COMPRESSION: u64 = 12;
/// What is assumed of standard input, whose size nobody knows.
const UNKNOWN_SIZE: u64 = 1 << 30;

/// How to read.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// Folder for the temporary file that takes what memory does not hold.
    pub temporary: &'a Path,
    /// Bytes of events that are kept in memory: [`MEMORY`].
    pub memory: usize,
    /// Whether the ids of spans that a Collector has taken are wanted.
    pub exported: bool,
    /// Whether the host names in a proxy's lines are wanted.
    pub hosts: bool,
    /// What is done about clocks.
    pub clock: Mode,
}

/// Reads every regular file below `path`, or `path` itself if it is a file; `-` is
/// standard input. `progress` is told the bytes that have been read.
pub fn ingest(
    vocabulary: &Vocabulary,
    path: &Path,
    settings: Settings<'_>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Store, ReadError> {
    let files = files::inputs(path)?;
    let names = Names::new(vocabulary);
    let spill = Spill::new(settings.temporary, settings.memory);
    let partitions = Partitions::new(expected(&files) / RECORD_SHARE, threads());
    let register = Arc::new(Register::default());
    let scanner = || Scanner::new(vocabulary, &names, &partitions, &spill, settings, &register);
    let (seen, failed) = scan(&files, scanner, progress)?;
    let report = report(&files, &seen, failed);
    if report.events == 0 {
        return Err(ReadError::Empty {
            path: path.to_owned(),
            files: report.files,
            problems: [report.problems(), report.notes()].concat(),
        });
    }
    let origins = names.origins();
    let mut clocks = Clocks::new(vocabulary, settings.clock, &seen.clocks, &origins);
    let grouping = Grouping {
        vocabulary,
        ranks: Ranks::new(&names, vocabulary.actions().len()),
        clocks: &clocks,
    };
    let bits = partitions.bits();
    let parts = Mutex::new(partitions.into_parts());
    let writer = Writer::new(&spill);
    let grouped = in_threads(|| -> Result<(Vec<Entry>, Samples), SpillError> {
        let mut share = writer.share();
        let mut samples = Samples::default();
        loop {
            let next = parts.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(part) = next else {
                return Ok((share.finish()?, samples));
            };
            partition::load(part, bits, &spill, &mut |bytes| {
                let mut put = |entry, blob: &[u8]| share.put(entry, blob);
                grouping.group(bytes, &mut samples, &mut put)
            })?;
        }
    });
    let mut entries = Vec::new();
    let mut samples = Samples::default();
    for share in grouped {
        let (own, seen) = share?;
        entries.push(own);
        samples.merge(seen);
    }
    clocks.solve(samples);
    let segments = writer.into_segments();
    let mut exported = seen.exported;
    exported.sort_unstable();
    exported.dedup();
    Ok(Store::new(Contents {
        entries,
        segments,
        spill,
        names,
        clocks,
        exported,
        report,
    }))
}

/// Bytes of log that the files will give, more or less.
fn expected(files: &[Input]) -> u64 {
    let size = |input: &Input| match lines::coding(&input.path) {
        _ if input.path == Path::new("-") => UNKNOWN_SIZE,
        Coding::Plain | Coding::Document(_) => input.size,
        Coding::Gzip | Coding::Zstandard => input.size.saturating_mul(COMPRESSION),
    };
    files.iter().map(size).sum()
}

type Failures = Vec<(usize, String)>;

/// Reads all files on all cores.
fn scan<'a>(
    files: &[Input],
    scanner: impl Fn() -> Scanner<'a> + Sync,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(Seen, Failures), SpillError> {
    let chunks = lines::chunks(files);
    let next = AtomicUsize::new(0);
    let shares = in_threads(|| -> Result<(Seen, Failures), SpillError> {
        let mut scanner = scanner();
        let mut failed = Vec::new();
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut goes_on = true;
            let path = &files[chunk.file].path;
            scanner.begin(path);
            if chunk.coding == Coding::Document(Document::ChromeTrace) {
                scanner.seen.skipped.push(chunk.file);
                progress(files[chunk.file].size);
                continue;
            }
            if let Coding::Document(document) = chunk.coding {
                let mut each = |span: Span| scanner.foreign(&span);
                match lines::read_document(path, document, &mut each, progress) {
                    Ok(bytes) => scanner.seen.bytes += bytes,
                    Err(error) => {
                        failed.push((chunk.file, format!("{}: {error}", path.display())));
                    }
                }
                continue;
            }
            let read = lines::read(
                files,
                *chunk,
                &mut |spot, line| {
                    goes_on = scanner.line(spot, line);
                    goes_on
                },
                progress,
            );
            match read {
                Ok(bytes) => scanner.seen.bytes += bytes,
                Err(error) => failed.push((chunk.file, format!("{}: {error}", path.display()))),
            }
            if !goes_on {
                next.store(chunks.len(), Ordering::Relaxed);
                break;
            }
        }
        Ok((scanner.finish()?, failed))
    });
    let mut all = Seen::default();
    let mut failures = Vec::new();
    for share in shares {
        let (seen, failed) = share?;
        all.absorb(seen);
        failures.extend(failed);
    }
    // Of a file that cannot be opened every chunk says so.
    failures.sort();
    failures.dedup();
    Ok((all, failures))
}

fn report(files: &[Input], seen: &Seen, failed: Failures) -> Report {
    let place = |spot: lines::Spot| {
        let input = &files[spot.file];
        let path = input.path.display();
        match lines::line_number(input, spot.offset) {
            Ok(number) => format!("{path}:{number}"),
            Err(_) => format!("{path}, byte {}", spot.offset),
        }
    };
    let skipped = seen.skipped.iter().min().map(|first| {
        let path = files[*first].path.display().to_string();
        (seen.skipped.len(), path)
    });
    Report {
        files: files.len(),
        skipped,
        lines: seen.lines,
        bytes: seen.bytes,
        events: seen.events,
        unreadable: (seen.unreadable.iter())
            .map(|(reason, (count, spot))| (*reason, (*count, place(*spot))))
            .collect(),
        failed: failed.into_iter().map(|(_, text)| text).collect(),
    }
}

/// As many threads as there are cores for this process.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Does the same on every core.
pub(crate) fn in_threads<T: Send>(work: impl Fn() -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads()).map(|_| scope.spawn(&work)).collect();
        let own = work();
        let others = others.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        std::iter::once(own).chain(others).collect()
    })
}
