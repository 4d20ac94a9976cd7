//! Files cut into chunks that threads read side by side, each line once.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use super::foreign;

/// A line longer than this is not one of ours: it is taken in parts.
pub(super) const MAX_LINE: usize = 4 << 20;
/// Bytes of a file that one thread reads before it looks for more work.
const CHUNK: u64 = 8 << 20;
/// Bytes read at once.
const BUFFER: usize = 256 << 10;

/// What a file turned out to hold, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Plain,
    Gzip,
    Zstandard,
    /// Not a log.
    Document(Document),
}

/// A file of finished spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Document {
    Jaeger,
    OtlpJson,
    OtlpProtobuf,
    /// For Chrome's and Perfetto's viewers: it is not read.
    ChromeTrace,
}

/// A file, or standard input, to be read.
#[derive(Debug, Clone)]
pub(super) struct Input {
    /// Its path as found below what was given; `-` is standard input.
    pub(super) path: PathBuf,
    pub(super) size: u64,
}

/// A part of a file that one thread reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    /// Index of its file.
    pub(super) file: usize,
    from: u64,
    to: u64,
    pub(super) coding: Coding,
}

/// Is given each line; false ends the reading.
pub(super) type Each<'a> = dyn FnMut(Spot, &[u8]) -> bool + 'a;

/// Where a line stands: for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    pub(super) file: usize,
    /// Bytes before it, uncompressed.
    pub(super) offset: u64,
}

/// All chunks of `files`. A file that cannot be opened is a single chunk: reading it
/// says why.
pub(super) fn chunks(files: &[Input]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for (file, input) in files.iter().enumerate() {
        let coding = coding(&input.path);
        let whole = Chunk {
            file,
            from: 0,
            to: u64::MAX,
            coding,
        };
        if coding != Coding::Plain || input.path == Path::new("-") {
            chunks.push(whole);
            continue;
        }
        // What is appended from now on belongs to the last one.
        let parts = (input.size / CHUNK).max(1);
        for part in 0..parts {
            let to = if part + 1 == parts {
                u64::MAX
            } else {
                (part + 1) * CHUNK
            };
            chunks.push(Chunk {
                from: part * CHUNK,
                to,
                ..whole
            });
        }
    }
    // Streams take longest, since only one thread can read each.
    chunks.sort_by_key(|chunk| chunk.coding == Coding::Plain);
    chunks
}

pub(super) fn coding(path: &Path) -> Coding {
    let mut head = [0; 512];
    let read = if path == Path::new("-") {
        Err(io::ErrorKind::Unsupported.into())
    } else {
        File::open(path).and_then(|file| file.read_at(&mut head, 0))
    };
    let head = &head[..read.unwrap_or(0)];
    match of_head(head) {
        Coding::Plain => document(head).map_or(Coding::Plain, Coding::Document),
        packed => packed,
    }
}

/// Which kind of document begins like this, if any does.
fn document(head: &[u8]) -> Option<Document> {
    let has = |name: &[u8]| memchr::memmem::find(head, name).is_some();
    let start = head.trim_ascii_start();
    if start.starts_with(b"[") && start[1..].trim_ascii_start().starts_with(b"{") {
        return (has(b"\"ph\"") && has(b"\"ts\"")).then_some(Document::ChromeTrace);
    }
    if start.starts_with(b"{") {
        return match () {
            () if has(b"\"resourceSpans\"") => Some(Document::OtlpJson),
            () if has(b"\"traceEvents\"") => Some(Document::ChromeTrace),
            () if has(b"\"data\"") => Some(Document::Jaeger),
            () => None,
        };
    }
    // The field `resource_spans`, its length, and a field of its own; a log that begins
    // with an empty line goes on otherwise.
    let rest = head.strip_prefix(b"\x0a")?;
    let length = rest.iter().take(5).position(|byte| *byte < 0x80)?;
    matches!(rest.get(length + 1), Some(0x0a | 0x12)).then_some(Document::OtlpProtobuf)
}

fn of_head(head: &[u8]) -> Coding {
    match head {
        [0x1f, 0x8b, ..] => Coding::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Coding::Zstandard,
        _ => Coding::Plain,
    }
}

/// Gives `each` the lines of a chunk, without their line ends, and `progress` the bytes
/// of the file as they are read. The answer is how many bytes the lines had.
pub(super) fn read(
    files: &[Input],
    chunk: Chunk,
    each: &mut Each<'_>,
    progress: &dyn Fn(u64),
) -> io::Result<u64> {
    let path = &files[chunk.file].path;
    if path == Path::new("-") {
        return stream(chunk.file, sniffed(io::stdin().lock())?, each);
    }
    let file = File::open(path)?;
    let counted = Counted {
        inner: &file,
        progress,
    };
    match chunk.coding {
        Coding::Plain => plain(chunk, &file, each, progress),
        Coding::Gzip => stream(
            chunk.file,
            MultiGzDecoder::new(BufReader::with_capacity(BUFFER, counted)),
            each,
        ),
        Coding::Zstandard => stream(chunk.file, zstd::Decoder::new(counted)?, each),
        // It is not read by lines.
        Coding::Document(_) => Ok(0),
    }
}

/// Standard input, decompressed where it is compressed.
fn sniffed<'a>(input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut input = input;
    let mut head = Vec::with_capacity(4);
    input.by_ref().take(4).read_to_end(&mut head)?;
    let coding = of_head(&head);
    let whole = io::Cursor::new(head).chain(input);
    Ok(match coding {
        Coding::Plain => Box::new(whole),
        Coding::Gzip => Box::new(MultiGzDecoder::new(whole)),
        Coding::Zstandard => Box::new(zstd::Decoder::with_buffer(whole)?),
        Coding::Document(_) => Box::new(whole),
    })
}

/// The lines that begin in the chunk.
fn plain(
    chunk: Chunk,
    file: &File,
    each: &mut Each<'_>,
    progress: &dyn Fn(u64),
) -> io::Result<u64> {
    // The byte before decides whether the chunk's first line begins in it.
    let mut at = chunk.from.saturating_sub(1);
    let mut lines = Lines::new(chunk.file, at);
    lines.skip = chunk.from > 0;
    lines.until = chunk.to;
    loop {
        let space = lines.space();
        let read = match file.read_at(space, at) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        at += read as u64;
        progress(read as u64);
        if !lines.take(read, each) {
            return Ok(lines.bytes);
        }
    }
}

fn stream(file: usize, mut input: impl Read, each: &mut Each<'_>) -> io::Result<u64> {
    let mut lines = Lines::new(file, 0);
    loop {
        let read = match input.read(lines.space()) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                // A half-written file: what came until here counts.
                lines.take(0, each);
                return Err(error);
            }
        };
        if !lines.take(read, each) {
            return Ok(lines.bytes);
        }
    }
}

/// Bytes into lines.
struct Lines {
    file: usize,
    buffer: Vec<u8>,
    /// Bytes of the buffer that hold something.
    filled: usize,
    /// Offset in the file of the buffer's first byte.
    offset: u64,
    /// Lines that begin at or after this belong to another chunk.
    until: u64,
    /// What comes first belongs to another chunk's line.
    skip: bool,
    bytes: u64,
}

impl Lines {
    fn new(file: usize, offset: u64) -> Self {
        Self {
            file,
            buffer: vec![0; BUFFER],
            filled: 0,
            offset,
            until: u64::MAX,
            skip: false,
            bytes: 0,
        }
    }

    /// Room for more bytes.
    fn space(&mut self) -> &mut [u8] {
        if self.filled == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        &mut self.buffer[self.filled..]
    }

    /// Takes `read` bytes that have come, none at the end. False: there is no more to do.
    fn take(&mut self, read: usize, each: &mut Each<'_>) -> bool {
        let ended = read == 0;
        let searched = self.filled;
        self.filled += read;
        let mut from = 0;
        let found = memchr::memchr_iter(b'\n', &self.buffer[searched..self.filled]);
        let mut ends: Vec<usize> = found.map(|at| searched + at).collect();
        let rest = ends.last().map_or(0, |end| end + 1);
        if ended && rest < self.filled || self.filled - rest >= MAX_LINE {
            ends.push(self.filled);
        }
        for end in ends {
            if from > self.filled {
                break;
            }
            let start = self.offset + from as u64;
            let line = &self.buffer[from..end];
            let next = (end + 1).min(self.filled);
            if !std::mem::take(&mut self.skip) {
                if start >= self.until {
                    return false;
                }
                self.bytes += (next - from) as u64;
                let spot = Spot {
                    file: self.file,
                    offset: start,
                };
                if !each(spot, line.strip_suffix(b"\r").unwrap_or(line)) {
                    return false;
                }
            }
            from = next;
        }
        self.buffer.copy_within(from..self.filled, 0);
        self.filled -= from;
        self.offset += from as u64;
        !ended && self.offset < self.until
    }
}

/// Gives `each` the spans of a document.
pub(super) fn read_document(
    path: &Path,
    document: Document,
    each: &mut foreign::Each<'_>,
    progress: &dyn Fn(u64),
) -> io::Result<u64> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut counted = BufReader::with_capacity(
        BUFFER,
        Counted {
            inner: file,
            progress,
        },
    );
    match document {
        Document::Jaeger => foreign::jaeger_json(counted, each)?,
        Document::OtlpJson => foreign::otlp_json(counted, each)?,
        Document::OtlpProtobuf => {
            let mut whole = Vec::new();
            counted.read_to_end(&mut whole)?;
            foreign::otlp(ExportTraceServiceRequest::decode(&whole[..])?, each);
        }
        Document::ChromeTrace => {}
    }
    Ok(bytes)
}

/// Tells how many bytes have been read.
struct Counted<'a, R> {
    inner: R,
    progress: &'a dyn Fn(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        (self.progress)(read as u64);
        Ok(read)
    }
}

/// Which line of a file stands at `offset`, from 1.
pub(super) fn line_number(input: &Input, offset: u64) -> io::Result<u64> {
    if input.path == Path::new("-") {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let file = File::open(&input.path)?;
    let decoded: Box<dyn Read> = match coding(&input.path) {
        Coding::Plain | Coding::Document(_) => Box::new(file),
        Coding::Gzip => Box::new(MultiGzDecoder::new(BufReader::new(file))),
        Coding::Zstandard => Box::new(zstd::Decoder::new(file)?),
    };
    let mut number = 1;
    let mut decoded = decoded.take(offset);
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = decoded.read(&mut buffer)?;
        if read == 0 {
            return Ok(number);
        }
        number += memchr::memchr_iter(b'\n', &buffer[..read]).count() as u64;
    }
}
