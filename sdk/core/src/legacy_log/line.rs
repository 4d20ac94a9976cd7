//! One line of the legacy log, as text.
//!
//! ```text
//! 2026-11-22 08:04:05,577 - <<<Action: Prefill add waiting queue; Timestamp:1795334645.577302011; RequestID:chatcmpl-38a4…; Role:prefill_10.0.0.2 {"traceparent":"00-…"}
//! ```
//! The time has nine decimals where the old tools wrote six or seven: they read
//! any number, and a nanosecond clock survives the way through the log.

use std::borrow::Cow;
use std::fmt::Write as _;

use chrono::{DateTime, Local};
use memchr::memmem;

use crate::engine::Seconds;
use crate::id::{SpanId, canonical_request_id};

use super::entry::{Entry, Suffix};
use super::profile;

/// What every line of an action contains.
pub const MARKER: &str = "<<<Action: ";
/// What a line about spans that the Collector has taken contains.
const EXPORTED: &str = "<<<Exported: ";

/// One line, as far as it concerns us.
#[derive(Debug, PartialEq)]
pub enum Line<'a> {
    /// A moment of a request, or a free span.
    Action(Box<ActionLine<'a>>),
    /// Spans that a Collector has taken, of those that this file's lines make.
    Exported(Vec<SpanId>),
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
    let Some(at) = memmem::find(line, MARKER.as_bytes()) else {
        let Some(at) = memmem::find(line, EXPORTED.as_bytes()) else {
            let step = profile::parse(line)?;
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
    let (action, rest) = split(text, b"; Timestamp:").ok_or(LineError::NoTimestamp)?;
    let (time, rest) = split(rest, b"; RequestID:").ok_or(LineError::NoRequestId)?;
    let time = parse_seconds(time).ok_or(LineError::BadTimestamp)?;
    let action = std::str::from_utf8(action).map_err(|_| LineError::NotUtf8)?;
    let (request_id, source, suffix) = match split(rest, b"; Role:") {
        Some((id, role)) => {
            let (role, suffix) = split_suffix(role)?;
            let role = std::str::from_utf8(role).map_err(|_| LineError::NotUtf8)?;
            let (role, node) = role
                .trim_end()
                .split_once('_')
                .unwrap_or((role.trim_end(), ""));
            (id, Some((role, node)), suffix)
        }
        None => (proxy_id(rest), None, Suffix::default()),
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
    })))
}

fn split<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = memmem::find(text, separator)?;
    Some((&text[..at], &text[at + separator.len()..]))
}

/// The role, and the JSON object after it if there is one.
fn split_suffix(text: &[u8]) -> Result<(&[u8], Suffix), LineError> {
    match memmem::find(text, b" {") {
        Some(at) => {
            let suffix =
                serde_json::from_slice(&text[at + 1..]).map_err(|_| LineError::BadSuffix)?;
            Ok((&text[..at], suffix))
        }
        None => Ok((text, Suffix::default())),
    }
}

/// The id on an nginx line: up to nginx's own trailer, without the text about
/// what nginx was doing that is glued to it.
fn proxy_id(text: &[u8]) -> &[u8] {
    let id = match memmem::find(text, b", client: ") {
        Some(at) => &text[..at],
        None => {
            let end = text.iter().position(|b| matches!(b, b';' | b',' | 0));
            &text[..end.unwrap_or(text.len())]
        }
    };
    match memmem::find(id, b" while ") {
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
mod tests {
    use super::*;
    use crate::legacy_log::{AttributeMap, EventSuffix, LinkSuffix, ScopeSuffix, SpanSuffix};
    use crate::span::Dropped;
    use crate::value::{Attribute, Value};

    fn entry<'a>(action: &'a str, request_id: &'a str, suffix: Suffix) -> Entry<'a> {
        Entry {
            action,
            time: 1_795_334_645_577_302_011,
            request_id,
            role: "prefill",
            node: "10.0.0.2",
            suffix,
            profile: None,
        }
    }

    fn write(entry: Entry<'_>) -> String {
        let mut out = Vec::new();
        LineFormatter::default().entry(entry, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_written_line_is_the_old_one() {
        let line = write(entry(
            "Prefill add waiting queue",
            "38a4",
            Suffix::default(),
        ));
        // The date is local time, which the test does not choose.
        assert_eq!(
            line.split_once(',').unwrap().1,
            "577 - <<<Action: Prefill add waiting queue; Timestamp:1795334645.577302011; \
             RequestID:chatcmpl-38a4; Role:prefill_10.0.0.2\n"
        );
    }

    #[test]
    fn whatever_is_in_ids_names_and_attributes_the_line_comes_back_whole() {
        let odd = [
            "plain",
            "a; Role:x_1.2.3.4",
            "line\nbreak\r<<<Action: x",
            " blanks at the ends ",
            "quotes \" and {braces}",
            "ends {\"like\":\"json\"}",
            "x while sending",
            "ünïcödé\u{2028}",
        ];
        for text in odd {
            let list: Value = Value::Array([text, "b"].map(Value::from).into_iter().collect());
            let suffix = Suffix {
                traceparent: Some("00-1-2-01".into()),
                occurrence: 2,
                attributes: AttributeMap(vec![
                    Attribute::new("b; \n", text),
                    Attribute::new("a", 1.0),
                    Attribute::new("n", -7),
                    Attribute::new("list", list.clone()),
                ]),
                span: Some(SpanSuffix {
                    start: 1,
                    trace_id: "t".into(),
                    span_id: "s".into(),
                    parent_span_id: None,
                    parent_is_remote: true,
                    kind: "client".into(),
                    flags: 1,
                    trace_state: text.into(),
                    ok: false,
                    error: Some(text.into()),
                    events: vec![EventSuffix {
                        time: 2,
                        name: text.into(),
                        attributes: AttributeMap(vec![Attribute::new(text, 1)]),
                        dropped_attributes: 3,
                    }],
                    links: vec![LinkSuffix {
                        trace_id: "t".into(),
                        span_id: "s".into(),
                        trace_state: text.into(),
                        attributes: AttributeMap(vec![Attribute::new(text, true)]),
                        dropped_attributes: 4,
                    }],
                    dropped: Dropped {
                        attributes: 1,
                        events: 2,
                        links: 3,
                    },
                    scope: Some(ScopeSuffix {
                        name: text.into(),
                        version: text.into(),
                        schema_url: text.into(),
                        attributes: AttributeMap(vec![Attribute::new("list", list.clone())]),
                    }),
                }),
                ..Suffix::default()
            };
            let line = write(entry(text, text, suffix.clone()));
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            let Ok(Line::Action(read)) = parse_line(line.trim_end_matches('\n').as_bytes()) else {
                panic!("{line}")
            };
            assert_eq!(read.action, text);
            assert_eq!(read.request_id.trim_start_matches("chatcmpl-"), text);
            assert_eq!(read.source, Some(("prefill", "10.0.0.2")));
            assert_eq!(read.time, 1_795_334_645_577_302_011);
            assert_eq!(
                Suffix {
                    action: None,
                    request_id: None,
                    ..read.suffix
                },
                suffix
            );
        }
    }

    #[test]
    fn the_lines_of_the_old_tools_are_read() {
        let read = |line: &'static str| match parse_line(line.as_bytes()) {
            Ok(Line::Action(a)) => (
                a.action.into_owned(),
                a.time,
                a.request_id.into_owned(),
                a.source,
            ),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            read(
                "2026-11-22 08:04:05,577 - <<<Action: Decode send ip, rank; Timestamp:1735000000.0; RequestID:chatcmpl-A_b.c|d; Role:decode_fe80::1"
            ),
            (
                "Decode send ip, rank".into(),
                1_735_000_000_000_000_000,
                "chatcmpl-A_b.c|d".into(),
                Some(("decode", "fe80::1"))
            )
        );
        assert_eq!(
            read(
                "2026/11/22 08:04:05 [info] 12#12: *7 <<<Action: Enter state D running; Timestamp:947.873795; RequestID:id with space 4 while connecting to upstream, client: 127.0.0.1, server: , request: \"POST / HTTP/1.1\", host: \"h\""
            ),
            (
                "Enter state D running".into(),
                947_873_795_000,
                "id with space 4".into(),
                None
            )
        );
        assert_eq!(
            read(
                "2026/11/22 08:04:05 [info] 12#12: <<<Action: Enter state P scheduled; Timestamp:947.873795; RequestID:38a4"
            ),
            (
                "Enter state P scheduled".into(),
                947_873_795_000,
                "38a4".into(),
                None
            )
        );
        assert_eq!(
            read("<<<Action: x; Timestamp:1.5; RequestID:r; Role:prefill"),
            ("x".into(), 1_500_000_000, "r".into(), Some(("prefill", "")))
        );
    }

    #[test]
    fn damaged_lines_say_what_is_wrong() {
        for (line, error) in [
            ("<<<Action: x; Timest", LineError::NoTimestamp),
            (
                "<<<Action: x; Timestamp:1.2.3; RequestID:r",
                LineError::BadTimestamp,
            ),
            (
                "<<<Action: x; Timestamp:; RequestID:r",
                LineError::BadTimestamp,
            ),
            (
                "<<<Action: x; Timestamp:1e9; RequestID:r",
                LineError::BadTimestamp,
            ),
            ("<<<Action: x; Timestamp:1.2", LineError::NoRequestId),
            (
                "<<<Action: x; Timestamp:1.2; RequestID:",
                LineError::EmptyRequestId,
            ),
            (
                "<<<Action: x; Timestamp:1.2; RequestID:r; Role:a_b {\"x",
                LineError::BadSuffix,
            ),
        ] {
            assert_eq!(parse_line(line.as_bytes()), Err(error), "{line}");
        }
        assert_eq!(
            parse_line(b"<<<Action: \xff; Timestamp:1.2; RequestID:r"),
            Err(LineError::NotUtf8)
        );
    }

    #[test]
    fn exported_spans_come_back() {
        let ids: Vec<SpanId> = (1..=70).filter_map(SpanId::new).collect();
        let mut out = Vec::new();
        LineFormatter::default().exported(0, &ids, &mut out);
        let read: Vec<SpanId> = out
            .split(|b| *b == b'\n')
            .flat_map(|line| match parse_line(line) {
                Ok(Line::Exported(ids)) => ids,
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(read, ids);
    }
}
