//! A partition's records into requests, each in the order of time.

use std::borrow::Cow;

use omnitrace::id::TraceId;
use omnitrace::legacy_log::Suffix;
use omnitrace::vocabulary::ActionId;
use omnitrace::{SpanContext, Vocabulary};

use super::names::Ranks;
use super::record::{Kind, Record};
use crate::clock::{Clocks, Samples};

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

/// Takes a request's or span's entry and its bytes.
pub(super) type Each<'a, E> = dyn FnMut(Entry, &[u8]) -> Result<(), E> + 'a;

/// What all partitions are grouped with.
pub(super) struct Grouping<'a> {
    pub(super) vocabulary: &'a Vocabulary,
    pub(super) ranks: Ranks,
    /// What is known of the clocks before the requests are whole: their boots.
    pub(super) clocks: &'a Clocks,
}

impl Grouping<'_> {
    /// Gives `each` the requests and spans of a partition; the entry's place is not known
    /// yet. What stands in several files counts once. `samples` learns what the requests
    /// say of the hosts' clocks.
    pub(super) fn group<E>(
        &self,
        bytes: &[u8],
        samples: &mut Samples,
        each: &mut Each<'_, E>,
    ) -> Result<(), E> {
        let mut records = Vec::new();
        let mut rest = bytes;
        while let Some((mut record, after)) = Record::read(rest) {
            if record.kind != Kind::Span {
                record.time = self.clocks.wall(record.time);
            }
            records.push(record);
            rest = after;
        }
        let ranks = &self.ranks;
        let order = |r: &Record<'_>| (ranks.action(r.action), r.occurrence, ranks.source(r.source));
        records.sort_unstable_by(|a, b| {
            (a.hash.cmp(&b.hash))
                .then_with(|| (a.kind == Kind::Span, a.id).cmp(&(b.kind == Kind::Span, b.id)))
                .then_with(|| a.time.cmp(&b.time))
                .then_with(|| order(a).cmp(&order(b)))
                .then_with(|| a.rest.cmp(b.rest))
        });
        // What stands in several files, or in a copy of its log, is one event.
        records.dedup_by(|next, last| {
            let source = last.source;
            ranks.are_alike(source, next.source) && Record { source, ..*next } == *last
        });
        let same = |a: &Record<'_>, b: &Record<'_>| {
            (a.hash, a.kind == Kind::Span, a.id) == (b.hash, b.kind == Kind::Span, b.id)
        };
        let given_up = match self.clocks.may_be_hours_off() {
            true => GIVEN_UP_NS + ZONES_NS,
            false => GIVEN_UP_NS,
        };
        let mut out = Vec::new();
        for request in records.chunk_by(same) {
            let first = &request[0];
            if first.kind == Kind::Span {
                let trace = first.id.first_chunk().copied().unwrap_or_default();
                let trace = u128::from_be_bytes(trace);
                put(EntryKind::Span, trace, first.time, first.rest, each)?;
                continue;
            }
            let context = context(request);
            let same_run = |a: &Record<'_>, b: &Record<'_>| !is_another_run(a, b, given_up);
            for (number, run) in request.chunk_by(same_run).enumerate() {
                // The ids were text when they were read.
                let id = std::str::from_utf8(first.id).unwrap_or_default();
                let id = match context {
                    None if number > 0 => Cow::Owned(later_run(id, run[0].time)),
                    _ => Cow::Borrowed(id),
                };
                self.clocks
                    .sample(self.vocabulary, self.moments(run), samples);
                out.clear();
                append(&id, run, &mut out);
                let trace = context.map_or_else(|| TraceId::of_request(&id), |c| c.trace_id);
                put(EntryKind::Request, trace.value(), run[0].time, &out, each)?;
            }
        }
        Ok(())
    }

    /// The vocabulary's actions of a request, with the numbers of their sources and their times.
    fn moments<'r>(
        &self,
        run: &'r [Record<'_>],
    ) -> impl Iterator<Item = (ActionId, usize, u64)> + 'r {
        let known = self.vocabulary.actions().len();
        run.iter()
            .filter(move |record| usize::from(record.action) < known)
            .map(|record| (ActionId(record.action), record.source.into(), record.time))
    }
}

fn put<E>(
    kind: EntryKind,
    trace: u128,
    time: u64,
    bytes: &[u8],
    each: &mut Each<'_, E>,
) -> Result<(), E> {
    let Ok(length) = u32::try_from(bytes.len()) else {
        return Ok(());
    };
    let entry = Entry {
        trace,
        time,
        place: 0,
        length,
        kind,
    };
    each(entry, bytes)
}

/// A directory may hold the logs of several runs, and a client may count its requests
/// from 1 in each: after so long without an event the live side has given a request up.
const GIVEN_UP_NS: u64 = 3_600_000_000_000;
/// From one end of the time zones to the other.
const ZONES_NS: u64 = 26 * 3_600_000_000_000;
/// Earlier times are not since 1970.
const SINCE_BOOT_NS: u64 = 1_000_000_000_000_000_000;

fn is_another_run(last: &Record<'_>, next: &Record<'_>, given_up: u64) -> bool {
    last.time > SINCE_BOOT_NS && next.time - last.time > given_up
}

/// Without a caller's context nothing but the id tells requests apart.
fn later_run(id: &str, time: u64) -> String {
    format!("{id}@{}", time / 1_000_000_000)
}

/// The id that the client has given: without what tells runs apart.
pub(crate) fn client_id(id: &str) -> &str {
    match id.rsplit_once('@') {
        Some((id, second)) if second.bytes().all(|b| b.is_ascii_digit()) => id,
        _ => id,
    }
}

/// The first context that a caller has given.
fn context(request: &[Record<'_>]) -> Option<SpanContext> {
    let with = request.iter().filter(|r| r.kind == Kind::EventWithContext);
    let mut contexts = with.filter_map(|r| {
        let suffix: Suffix = serde_json::from_slice(r.rest).ok()?;
        SpanContext::parse(suffix.traceparent?.as_bytes())
    });
    contexts.next()
}

/// `id length u16 · id · events`, an event being
/// `time u64 · action u16 · source u16 · occurrence u16 · length u32 · JSON object`.
fn append(id: &str, request: &[Record<'_>], out: &mut Vec<u8>) {
    let length = u16::try_from(id.len()).unwrap_or(0);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&id.as_bytes()[..usize::from(length)]);
    for record in request {
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
