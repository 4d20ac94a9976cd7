//! A partition's records into requests, each in the order of time.

use omnitrace::SpanContext;
use omnitrace::id::TraceId;
use omnitrace::legacy_log::Suffix;

use super::names::Ranks;
use super::record::{Kind, Record};

/// A request or a free span of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The trace that it belongs to.
    pub(crate) trace: u128,
    /// Of its first event, or of the span's start.
    pub(crate) time: u64,
    /// Where its bytes are.
    pub(crate) place: u64,
    pub(crate) length: u32,
    pub(crate) kind: EntryKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EntryKind {
    Request,
    Span,
}

/// One event of a request as the store holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept<'a> {
    pub(crate) time: u64,
    pub(crate) action: u16,
    pub(crate) source: u16,
    pub(crate) occurrence: u16,
    /// Its JSON object, or empty.
    pub(crate) suffix: &'a [u8],
}

/// Gives `each` the requests and spans of a partition; the entry's place is not known
/// yet. What stands in several files counts once.
pub(super) fn group<E>(
    bytes: &[u8],
    ranks: &Ranks,
    each: &mut dyn FnMut(Entry, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut records = Vec::new();
    let mut rest = bytes;
    while let Some((record, after)) = Record::read(rest) {
        records.push(record);
        rest = after;
    }
    let order = |r: &Record<'_>| (ranks.action(r.action), r.occurrence, ranks.source(r.source));
    records.sort_unstable_by(|a, b| {
        (a.hash.cmp(&b.hash))
            .then_with(|| (a.kind == Kind::Span, a.id).cmp(&(b.kind == Kind::Span, b.id)))
            .then_with(|| a.time.cmp(&b.time))
            .then_with(|| order(a).cmp(&order(b)))
            .then_with(|| a.rest.cmp(b.rest))
    });
    let same = |a: &Record<'_>, b: &Record<'_>| {
        (a.hash, a.kind == Kind::Span, a.id) == (b.hash, b.kind == Kind::Span, b.id)
    };
    let mut out = Vec::new();
    for request in records.chunk_by(same) {
        out.clear();
        let first = &request[0];
        let (trace, kind) = if first.kind == Kind::Span {
            out.extend_from_slice(first.rest);
            let trace = first.id.first_chunk().copied().unwrap_or_default();
            (u128::from_be_bytes(trace), EntryKind::Span)
        } else {
            append(request, &mut out);
            (trace(request), EntryKind::Request)
        };
        let Ok(length) = u32::try_from(out.len()) else {
            continue;
        };
        let entry = Entry {
            trace,
            time: first.time,
            place: 0,
            length,
            kind,
        };
        each(entry, &out)?;
    }
    Ok(())
}

/// The trace that a caller has given the request, else the one that its id gives.
fn trace(request: &[Record<'_>]) -> u128 {
    let with = request.iter().filter(|r| r.kind == Kind::EventWithContext);
    let mut contexts = with.filter_map(|r| {
        let suffix: Suffix = serde_json::from_slice(r.rest).ok()?;
        SpanContext::parse(suffix.traceparent?.as_bytes())
    });
    let trace = match contexts.next() {
        Some(context) => context.trace_id,
        // The ids were text when they were read.
        None => TraceId::of_request(std::str::from_utf8(request[0].id).unwrap_or_default()),
    };
    trace.value()
}

/// `id length u16 · id · events`, an event being
/// `time u64 · action u16 · source u16 · occurrence u16 · length u32 · JSON object`.
fn append(request: &[Record<'_>], out: &mut Vec<u8>) {
    let id = request[0].id;
    out.extend_from_slice(&(id.len() as u16).to_le_bytes());
    out.extend_from_slice(id);
    let mut last: Option<&Record<'_>> = None;
    for record in request {
        if last.replace(record).is_some_and(|last| last == record) {
            continue;
        }
        out.extend_from_slice(&record.time.to_le_bytes());
        out.extend_from_slice(&record.action.to_le_bytes());
        out.extend_from_slice(&record.source.to_le_bytes());
        out.extend_from_slice(&record.occurrence.to_le_bytes());
        out.extend_from_slice(&(record.rest.len() as u32).to_le_bytes());
        out.extend_from_slice(record.rest);
    }
}

/// A request's id and its events.
pub(crate) fn read(bytes: &[u8]) -> Option<(&str, impl Iterator<Item = Kept<'_>>)> {
    let (length, bytes) = bytes.split_first_chunk()?;
    let (id, mut rest) = bytes.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    let events = std::iter::from_fn(move || {
        let (time, bytes) = rest.split_first_chunk()?;
        let (action, bytes) = bytes.split_first_chunk()?;
        let (source, bytes) = bytes.split_first_chunk()?;
        let (occurrence, bytes) = bytes.split_first_chunk()?;
        let (length, bytes) = bytes.split_first_chunk()?;
        let (suffix, after) = bytes.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = after;
        Some(Kept {
            time: u64::from_le_bytes(*time),
            action: u16::from_le_bytes(*action),
            source: u16::from_le_bytes(*source),
            occurrence: u16::from_le_bytes(*occurrence),
            suffix,
        })
    });
    Some((std::str::from_utf8(id).ok()?, events))
}
