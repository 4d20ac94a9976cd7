//! One thread's reading: lines into records.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use memchr::memmem::Finder;
use omnitrace::Vocabulary;
use omnitrace::id::canonical_request_id;
use omnitrace::legacy_log::{
    ActionLine, AttributeMap, Line, LineError, SglangAction, SglangLine, Suffix, parse_line,
};
use omnitrace::span::Span;
use omnitrace::value::Attribute;
use xxhash_rust::xxh3::xxh3_64;

use super::Settings;
use super::lines::Spot;
use super::names::{Names, Numbers};
use super::origin::{Origin, log_of};
use super::partition::{Partitions, Router};
use super::record::{Kind, Record};
use super::report::Reason;
use super::sglang::Node;
use super::spill::{Spill, SpillError};
use super::{foreign, free};
use crate::clock::{LogClock, Register, is_since_boot};

/// What one thread has seen.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) lines: u64,
    pub(super) bytes: u64,
    pub(super) events: u64,
    pub(super) unreadable: BTreeMap<Reason, (u64, Spot)>,
    /// Ids of spans that a Collector has taken, where they were asked for.
    pub(super) exported: Vec<u64>,
    /// What each chunk says of its proxy's clock, where it says anything.
    pub(super) clocks: Vec<LogClock>,
    /// Files that hold nothing but pictures of what other files hold.
    pub(super) skipped: Vec<usize>,
}

impl Seen {
    fn unreadable(&mut self, reason: Reason, spot: Spot) {
        let (count, first) = self.unreadable.entry(reason).or_insert((0, spot));
        *count += 1;
        *first = (*first).min(spot);
    }

    pub(super) fn absorb(&mut self, other: Self) {
        self.lines += other.lines;
        self.bytes += other.bytes;
        self.events += other.events;
        self.exported.extend(other.exported);
        self.clocks.extend(other.clocks);
        self.skipped.extend(other.skipped);
        for (reason, (count, spot)) in other.unreadable {
            let (all, first) = self.unreadable.entry(reason).or_insert((0, spot));
            *all += count;
            *first = (*first).min(spot);
        }
    }
}

pub(super) struct Scanner<'a> {
    vocabulary: &'a Vocabulary,
    numbers: Numbers<'a>,
    router: Router<'a>,
    settings: Settings<'a>,
    register: &'a Arc<Register>,
    /// The chunk's.
    clock: LogClock,
    node: Node,
    /// What tells its proxy from others, and the proxy's number once there was a line of it.
    log: String,
    proxy: Option<u16>,
    pub(super) seen: Seen,
    failed: Option<SpillError>,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(
        vocabulary: &'a Vocabulary,
        names: &'a Names,
        partitions: &'a Partitions,
        spill: &'a Spill,
        settings: Settings<'a>,
        register: &'a Arc<Register>,
    ) -> Self {
        Self {
            vocabulary,
            numbers: Numbers::new(names),
            router: Router::new(partitions, spill),
            settings,
            register,
            clock: LogClock::new(Arc::clone(register)),
            node: Node::default(),
            log: String::new(),
            proxy: None,
            seen: Seen::default(),
            failed: None,
        }
    }

    /// To be called before the lines of a chunk of this file.
    pub(super) fn begin(&mut self, path: &Path) {
        self.node = Node::of_file(path);
        self.log = log_of(path);
        self.proxy = None;
        self.next_clock();
    }

    fn next_clock(&mut self) {
        let next = LogClock::new(Arc::clone(self.register));
        let clock = std::mem::replace(&mut self.clock, next);
        if !clock.is_empty() {
            self.seen.clocks.push(clock);
        }
    }

    /// Takes a line in. False: no more can be taken, [`Scanner::finish`] says why.
    pub(super) fn line(&mut self, spot: Spot, line: &[u8]) -> bool {
        self.seen.lines += 1;
        let taken = match parse_line(line) {
            Ok(Line::Other) => {
                self.clock.other(line);
                return true;
            }
            Ok(Line::Action(mut action)) => {
                // A proxy's, or one that tells the zone of its log's dates.
                if action.source.is_none() || !is_since_boot(action.time) {
                    let (name, id) = (&action.action, &action.request_id);
                    action.time = self.clock.time(line, name, id, action.time);
                }
                self.action(&action, line)
            }
            Ok(Line::Exported(spans)) => {
                if self.settings.exported {
                    self.seen.exported.extend(spans.iter().map(|id| id.value()));
                }
                return true;
            }
            Ok(Line::Sglang(line)) => match line {
                SglangLine::NoRoom => return true,
                SglangLine::Action(action) => self.sglang_action(&action),
                SglangLine::Step(step) => match self.node.step(&step) {
                    Some(span) => self.put_span(&span, &foreign::to_bytes(&span)),
                    None => Ok(Err(Reason::Line(LineError::BadProfile))),
                },
            },
            Err(error) => Ok(Err(Reason::Line(error))),
        };
        match taken {
            Ok(Ok(())) => self.seen.events += 1,
            Ok(Err(reason)) => self.seen.unreadable(reason, spot),
            Err(error) => self.failed = Some(error),
        }
        self.failed.is_none()
    }

    fn action(
        &mut self,
        line: &ActionLine<'_>,
        text: &[u8],
    ) -> Result<Result<(), Reason>, SpillError> {
        if line.suffix.span.is_some() {
            return self.span(line, text);
        }
        let Some(action) = self.numbers.action(&line.action) else {
            return Ok(Err(Reason::TooManyNames));
        };
        let source = match self.source(line) {
            Some((role, node)) => self.numbers.source(role, node),
            None => {
                self.proxy = self.proxy.or_else(|| self.numbers.origin(self.own_proxy()));
                self.proxy
            }
        };
        let Some(source) = source else {
            return Ok(Err(Reason::TooManyNames));
        };
        let id = canonical_request_id(&line.request_id).as_bytes();
        let record = Record {
            hash: xxh3_64(id),
            time: line.time,
            action,
            source,
            occurrence: line.suffix.occurrence,
            kind: match line.suffix.traceparent {
                Some(_) => Kind::EventWithContext,
                None => Kind::Event,
            },
            id,
            rest: match line.source {
                None if self.settings.hosts => host(text),
                _ => line.suffix_text,
            },
        };
        let fits = self.router.put(&record)?;
        Ok(if fits { Ok(()) } else { Err(Reason::TooLong) })
    }

    fn sglang_action(&mut self, line: &SglangAction<'_>) -> Result<Result<(), Reason>, SpillError> {
        let role = self.node.role_at(self.vocabulary, line.action);
        let node = &*self.node.source.node;
        let numbers = &mut self.numbers;
        let (Some(action), Some(source)) =
            (numbers.action(line.action), numbers.source(role, node))
        else {
            return Ok(Err(Reason::TooManyNames));
        };
        let id = line.room.as_bytes();
        let record = Record {
            hash: xxh3_64(id),
            time: line.time,
            action,
            source,
            occurrence: 0,
            kind: Kind::Event,
            id,
            rest: &suffix(&line.attributes),
        };
        let fits = self.router.put(&record)?;
        Ok(if fits { Ok(()) } else { Err(Reason::TooLong) })
    }

    /// The proxy whose log it is.
    fn own_proxy(&self) -> Origin<&str> {
        Origin {
            role: "proxy",
            node: "",
            log: &self.log,
        }
    }

    /// Role and node that a line names; none of a proxy's, which names none. A process that did not know its role has written
    /// "None", and one that did not find its address the reason for that.
    fn source<'l>(&self, line: &'l ActionLine<'_>) -> Option<(&'l str, &'l str)>
    where
        'a: 'l,
    {
        let (role, node) = line.source?;
        let role = line.suffix.role.as_deref().unwrap_or(role);
        let node = if node.contains(' ') { "" } else { node };
        if role != "None" && !role.is_empty() {
            return Some((role, node));
        }
        let action = self.vocabulary.action_named(&line.action);
        let known = action.and_then(|action| self.vocabulary.action(action).roles.first());
        let role = known.map_or(role, |role| &*self.vocabulary.role(*role).name);
        Some((role, node))
    }

    fn span(
        &mut self,
        line: &ActionLine<'_>,
        text: &[u8],
    ) -> Result<Result<(), Reason>, SpillError> {
        let Some(span) = free::span(line) else {
            return Ok(Err(Reason::BadSpan));
        };
        self.put_span(&span, text)
    }

    /// Takes a span of another tool's file.
    pub(super) fn foreign(&mut self, span: &Span) {
        if self.failed.is_some() {
            return;
        }
        match self.put_span(span, &foreign::to_bytes(span)) {
            Ok(_) => self.seen.events += 1,
            Err(error) => self.failed = Some(error),
        }
    }

    fn put_span(&mut self, span: &Span, text: &[u8]) -> Result<Result<(), Reason>, SpillError> {
        let trace = span.trace_id.value().to_be_bytes();
        let mut id = [0; 24];
        id[..16].copy_from_slice(&trace);
        id[16..].copy_from_slice(&span.span_id.value().to_be_bytes());
        let record = Record {
            hash: xxh3_64(&trace),
            time: span.start,
            action: 0,
            source: 0,
            occurrence: 0,
            kind: Kind::Span,
            id: &id,
            rest: text,
        };
        let fits = self.router.put(&record)?;
        Ok(if fits { Ok(()) } else { Err(Reason::TooLong) })
    }

    /// To be called after the last line.
    pub(super) fn finish(mut self) -> Result<Seen, SpillError> {
        self.next_clock();
        match self.failed {
            Some(error) => Err(error),
            None => {
                self.router.finish()?;
                Ok(self.seen)
            }
        }
    }
}

/// Attributes as our JSON object has them; nothing of none.
fn suffix(attributes: &[Attribute]) -> Vec<u8> {
    if attributes.is_empty() {
        return Vec::new();
    }
    let suffix = Suffix {
        attributes: AttributeMap(attributes.to_vec()),
        ..Suffix::default()
    };
    // Writing to memory cannot fail.
    serde_json::to_vec(&suffix).unwrap_or_default()
}

/// The host that nginx's line ends with, without its port; empty if there is none.
fn host(line: &[u8]) -> &[u8] {
    static BEFORE: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(", host: \""));
    let Some(at) = BEFORE.find(line) else {
        return &[];
    };
    let host = &line[at + BEFORE.needle().len()..];
    let host = &host[..memchr::memchr(b'"', host).unwrap_or(host.len())];
    let end = match host.iter().position(|b| *b == b']') {
        Some(bracket) => bracket + 1,
        None => memchr::memchr(b':', host).unwrap_or(host.len()),
    };
    let host = &host[..end];
    let bare = host.strip_prefix(b"[").and_then(|h| h.strip_suffix(b"]"));
    // What begins with a brace is a JSON object.
    bare.unwrap_or(host)
        .strip_prefix(b"{")
        .unwrap_or(bare.unwrap_or(host))
}
