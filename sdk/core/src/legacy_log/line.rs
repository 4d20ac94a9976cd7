//! One line of the legacy log, as text.
//!
//! ```text
//! 2026-11-22 08:04:05,577 - <<<Action: Prefill add waiting queue; Timestamp:1795334645.577302011; RequestID:chatcmpl-38a4…; Role:prefill_10.0.0.2 {"traceparent":"00-…"}
//! ```
//! The time has nine decimals where the old tools wrote six or seven: they read
//! any number, and a nanosecond clock survives the way through the log.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::LazyLock;

use chrono::{DateTime, Local};
use memchr::memmem::Finder;

use crate::engine::Seconds;
use crate::id::{SpanId, canonical_request_id};

use super::entry::{Entry, Suffix};
use super::profile;
use super::sglang::{self, SglangLine};

/// What every line of an action contains.
pub const MARKER: &str = "<<<Action: ";
/// What a line about spans that the Collector has taken contains.
const EXPORTED: &str = "<<<Exported: ";

/// What is looked for in every line: to make a finder ready takes as long as to use it.
struct Finders {
    action: Finder<'static>,
    exported: Finder<'static>,
    profile: Finder<'static>,
    timestamp: Finder<'static>,
    request_id: Finder<'static>,
    role: Finder<'static>,
    object: Finder<'static>,
    client: Finder<'static>,
    activity: Finder<'static>,
}

static FIND: LazyLock<Finders> = LazyLock::new(|| Finders {
    action: Finder::new(MARKER),
    exported: Finder::new(EXPORTED),
    profile: Finder::new("profile"),
    timestamp: Finder::new("; Timestamp:"),
    request_id: Finder::new("; RequestID:"),
    role: Finder::new("; Role:"),
    object: Finder::new(" {"),
    client: Finder::new(", client: "),
    activity: Finder::new(" while "),
});

/// One line, as far as it concerns us.
#[derive(Debug, PartialEq)]
pub enum Line<'a> {
    /// A moment of a request, or a free span.
    Action(Box<ActionLine<'a>>),
    /// Spans that a Collector has taken, of those that this file's lines make.
    Exported(Vec<SpanId>),
    /// What a node of SGLang says; which node is in its file's name.
    Sglang(SglangLine<'a>),
    /// Something else.
    Other,
}

/// A line with the marker.
#[derive(Debug, PartialEq)]
pub struct ActionLine<'a> {
    /// Action name; of a free span its name.
    pub action: Cow<'a, str>,
    /// Nanoseconds since 1970; of Omni Proxy possibly since boot.
    pub time: u64,
    /// Request id as written.
    pub request_id: Cow<'a, str>,
    /// Role and node; none on a proxy's line.
    pub source: Option<(&'a str, &'a str)>,
    /// Our JSON object, or an empty one.
    pub suffix: Suffix,
    /// The same as text; empty where there is none.
    pub suffix_text: &'a [u8],
}

/// Why a line with the marker is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum LineError {
    /// Cut off, or another program's.
    #[error("no \"; Timestamp:\" after the action")]
    NoTimestamp,
    /// Not digits with at most one point.
    #[error("timestamp is not a number of seconds")]
    BadTimestamp,
    /// Cut off, or another program's.
    #[error("no \"; RequestID:\" after the timestamp")]
    NoRequestId,
    /// Nothing between `RequestID:` and what follows.
    #[error("empty request id")]
    EmptyRequestId,
    /// Cut off, or another program's.
    #[error("the fields after \"profile\" are not those of an engine's step")]
    BadProfile,
    /// Not UTF-8.
    #[error("not UTF-8 text")]
    NotUtf8,
    /// The object at the end cannot be read.
    #[error("the JSON object at the end of the line cannot be read")]
    BadSuffix,
}

/// Reads one line, without its line end.
pub fn parse_line(line: &[u8]) -> Result<Line<'_>, LineError> {
    let find = &*FIND;
    let Some(at) = find.action.find(line) else {
        let Some(at) = find.exported.find(line) else {
            let Some(at) = find.profile.find(line) else {
                return Ok(Line::Other);
            };
            if let Some(line) = sglang::parse(&line[at..])? {
                return Ok(Line::Sglang(line));
            }
            let step = profile::parse(line, at)?;
            return Ok(step.map_or(Line::Other, |step| Line::Action(Box::new(step))));
        };
        let list = &line[at + EXPORTED.len()..];
        return Ok(Line::Exported(
            list.split(|b| *b == b',')
                .filter_map(SpanId::parse)
                .collect(),
        ));
    };
    let text = &line[at + MARKER.len()..];
    let (action, rest) = match split(text, &find.timestamp) {
        Some(parts) => parts,
        None => misplaced(text).ok_or(LineError::NoTimestamp)?,
    };
    let (time, rest) = split(rest, &find.request_id).ok_or(LineError::NoRequestId)?;
    let time = parse_seconds(time).ok_or(LineError::BadTimestamp)?;
    let action = std::str::from_utf8(action).map_err(|_| LineError::NotUtf8)?;
    let (request_id, source, suffix, suffix_text) = match split(rest, &find.role) {
        Some((id, role)) => {
            let (role, suffix, text) = split_suffix(role)?;
            let role = std::str::from_utf8(role).map_err(|_| LineError::NotUtf8)?;
            let (role, node) = role
                .trim_end()
                .split_once('_')
                .unwrap_or((role.trim_end(), ""));
            (id, Some((role, node)), suffix, text)
        }
        None => (proxy_id(rest), None, Suffix::default(), &[][..]),
    };
    let request_id = std::str::from_utf8(request_id)
        .map_err(|_| LineError::NotUtf8)?
        .trim();
    if request_id.is_empty() && suffix.span.is_none() {
        return Err(LineError::EmptyRequestId);
    }
    Ok(Line::Action(Box::new(ActionLine {
        action: suffix
            .action
            .clone()
            .map_or(Cow::Borrowed(action), Cow::Owned),
        time,
        request_id: suffix
            .request_id
            .clone()
            .map_or(Cow::Borrowed(request_id), Cow::Owned),
        source,
        suffix,
        suffix_text,
    })))
}

fn split<'a>(text: &'a [u8], separator: &Finder<'_>) -> Option<(&'a [u8], &'a [u8])> {
    let at = separator.find(text)?;
    Some((&text[..at], &text[at + separator.needle().len()..]))
}

/// A line of 2025 with a field at the wrong place:
/// `Add need pullling sequence;|waiting_pull_len=3 Timestamp:…`. Its name was corrected later.
fn misplaced(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (action, rest) = split(text, &Finder::new(";|"))?;
    let (_, rest) = split(rest, &Finder::new(" Timestamp:"))?;
    let action = match action {
        b"Add need pullling sequence" => b"Add need pulling sequence",
        other => other,
    };
    Some((action, rest))
}

/// The role, and the JSON object after it if there is one.
fn split_suffix(text: &[u8]) -> Result<(&[u8], Suffix, &[u8]), LineError> {
    match FIND.object.find(text) {
        Some(at) => {
            let (role, json) = (&text[..at], &text[at + 1..]);
            let suffix = serde_json::from_slice(json).map_err(|_| LineError::BadSuffix)?;
            Ok((role, suffix, json))
        }
        None => Ok((text, Suffix::default(), &[])),
    }
}

/// The id on an nginx line: up to nginx's own trailer, without the text about
/// what nginx was doing that is glued to it.
fn proxy_id(text: &[u8]) -> &[u8] {
    let id = match FIND.client.find(text) {
        Some(at) => &text[..at],
        None => {
            let end = text.iter().position(|b| matches!(b, b';' | b',' | 0));
            &text[..end.unwrap_or(text.len())]
        }
    };
    match FIND.activity.find(id) {
        Some(at) => &id[..at],
        None => id,
    }
}

/// Nanoseconds in a decimal number of seconds; digits beyond the ninth are cut.
pub(crate) fn parse_seconds(text: &[u8]) -> Option<u64> {
    let mut parts = text.splitn(2, |b| *b == b'.');
    let whole = parts.next()?;
    let fraction = parts.next().unwrap_or_default();
    let digits = |text: &[u8]| text.iter().all(u8::is_ascii_digit);
    if whole.is_empty() || whole.len() > 10 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let number = |text: &[u8]| text.iter().fold(0u64, |n, d| n * 10 + u64::from(d - b'0'));
    let kept = &fraction[..fraction.len().min(9)];
    Some(number(whole) * 1_000_000_000 + number(kept) * 10u64.pow(9 - kept.len() as u32))
}

/// Writes lines; keeps the last second's date text.
#[derive(Default)]
pub(crate) struct LineFormatter {
    second: Option<(i64, String)>,
}

impl LineFormatter {
    /// Appends the line of `entry` with its line end.
    pub(crate) fn entry(&mut self, mut entry: Entry<'_>, out: &mut Vec<u8>) {
        if let Some((marker, fields)) = entry.profile.take() {
            self.profile(entry, marker, &fields, out);
            return;
        }
        let action = printable(entry.action);
        let request_id = match entry.request_id {
            // A free span has no request; a request without an id must not look so.
            "" if entry.suffix.span.is_none() => Cow::Borrowed("?"),
            id => printable(id),
        };
        if matches!(action, Cow::Owned(_)) {
            entry.suffix.action = Some(entry.action.to_owned());
        }
        // vLLM's processes write its own form of the id, the proxy the bare one.
        let prefix = if entry.role == "proxy" || request_id.is_empty() {
            ""
        } else {
            "chatcmpl-"
        };
        // An id that has been altered here, or that reading would alter.
        let written = format!("{prefix}{request_id}");
        if canonical_request_id(&written) != entry.request_id {
            entry.suffix.request_id = Some(entry.request_id.to_owned());
        }
        let role = printable(entry.role).replace(['_', ' '], "-");
        let node = printable(entry.node).replace(' ', "-");
        let mut line = String::with_capacity(256);
        self.stamp(entry.time, &mut line);
        // Writing to a String cannot fail.
        let _ = write!(
            line,
            " - {MARKER}{action}; Timestamp:{}; RequestID:{written}; Role:{role}_{node}",
            Seconds(entry.time)
        );
        out.extend_from_slice(line.as_bytes());
        if !entry.suffix.is_empty()
            && let Ok(json) = serde_json::to_vec(&entry.suffix)
        {
            out.push(b' ');
            out.extend_from_slice(&json);
        }
        out.push(b'\n');
    }

    /// Appends the old form of an engine's span.
    fn profile(&mut self, mut entry: Entry<'_>, marker: &str, fields: &str, out: &mut Vec<u8>) {
        let role = profile::role(entry.role);
        if role != entry.role {
            entry.suffix.role = Some(entry.role.to_owned());
        }
        let node = printable(entry.node).replace([' ', '|'], "-");
        let object = profile::object(&entry.suffix).unwrap_or_default();
        let mut line = String::with_capacity(1024);
        self.stamp(entry.time, &mut line);
        // Writing to a String cannot fail.
        let _ = writeln!(line, " - {object} {marker}{role}_{node}|{fields}");
        out.extend_from_slice(line.as_bytes());
    }

    /// Appends the line that says which spans a Collector has taken.
    pub(crate) fn exported(&mut self, now: u64, spans: &[SpanId], out: &mut Vec<u8>) {
        // Old readers have fixed line buffers.
        for chunk in spans.chunks(64) {
            let mut line = String::with_capacity(64 + chunk.len() * 17);
            self.stamp(now, &mut line);
            let _ = write!(line, " - {EXPORTED}");
            for (i, span) in chunk.iter().enumerate() {
                let _ = write!(line, "{}{span}", if i == 0 { "" } else { "," });
            }
            line.push('\n');
            out.extend_from_slice(line.as_bytes());
        }
    }

    /// `YYYY-MM-DD HH:MM:SS,mmm` in local time, as Python's logging writes it.
    fn stamp(&mut self, time: u64, line: &mut String) {
        let seconds = (time / 1_000_000_000) as i64;
        if self.second.as_ref().is_none_or(|(s, _)| *s != seconds) {
            let text = DateTime::from_timestamp(seconds, 0).map_or_else(
                || "1970-01-01 00:00:00".to_owned(),
                |t| {
                    t.with_timezone(&Local)
                        .format("%Y-%m-%d %H:%M:%S")
                        .to_string()
                },
            );
            self.second = Some((seconds, text));
        }
        if let Some((_, text)) = &self.second {
            let _ = write!(line, "{text},{:03}", time / 1_000_000 % 1000);
        }
    }
}

/// The text with what could break out of its field replaced: the separator,
/// control characters, and blanks at the ends, which readers trim.
fn printable(text: &str) -> Cow<'_, str> {
    let bad = |c: char| c == ';' || c == '\u{2028}' || c == '\u{2029}' || c.is_control();
    let trimmed = text.trim() != text || text.contains(" {") || text.contains("<<<");
    if !trimmed && !text.contains(bad) && !text.contains(" while ") {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace(bad, "?").replace(' ', "_").replace('<', "?"))
}

#[cfg(test)]
mod tests;
