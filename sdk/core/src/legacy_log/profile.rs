//! An engine's step as the old tools have it: fields between bars.
//!
//! ```text
//! 2026-11-22 08:04:05,600 - {"span":…} profile: decode_10.0.0.3|1795334645.577302011|…|7-1795334645.579000000
//! 2026-11-22 08:04:05,600 - {"span":…} profile_mainmodel: decode_10.0.0.3|1795334645.58…|7-1795334645.579000000
//! ```
//! The object is before the fields, not after them: the old tools join the lines by what
//! they end with.

use std::fmt::Write as _;

use memchr::memmem;

use crate::engine::{self, MAIN_MODEL, MTP_MODEL, STEP, Seconds, StepId, attribute};
use crate::id::canonical_request_id;
use crate::span::{Link, Span};
use crate::value::{Attribute, Value};
use crate::vocabulary::Vocabulary;

use super::entry::{AttributeMap, Suffix};
use super::line::{ActionLine, LineError, parse_seconds};
use super::span_suffix::{EventSuffix, LinkSuffix, SpanSuffix};

/// Fields of a step, and of a model.
const STEP_FIELDS: usize = 18;
const MODEL_FIELDS: usize = 5;

const FORMS: [(&str, &str); 3] = [
    ("profile: ", STEP),
    ("profile_mainmodel: ", MAIN_MODEL),
    ("profile_mtpmodel: ", MTP_MODEL),
];

/// The role that the old system has for a node that does both.
const DECODE: &str = "decode";
const PREFILL: &str = "prefill";

/// The role that the old form has for a role.
pub(super) fn role(role: &str) -> &str {
    if role == PREFILL { PREFILL } else { DECODE }
}

/// The old form of a span, from the marker on, but for its node; none of a span that
/// has no old form.
pub(super) fn fields(span: &Span) -> Option<(&'static str, String)> {
    let (marker, name) = FORMS.iter().find(|(_, name)| *name == &*span.name)?;
    let Value::Str(id) = value(&span.attributes, attribute::STEP_ID)? else {
        return None;
    };
    let fields = match *name {
        STEP => step(span, id),
        // The old system has no such line of a node that only prefills.
        _ if &*span.source.role == PREFILL => return None,
        _ => format!(
            "{}|{}|{}|{id}",
            Seconds(span.start),
            Seconds(span.end),
            millis(span.end.saturating_sub(span.start))
        ),
    };
    Some((marker, fields))
}

fn step(span: &Span, id: &str) -> String {
    let role = &*span.source.role;
    let number = |key| Number(value(&span.attributes, key));
    let of_model = |name| span.events.iter().find(|e| &*e.name == name);
    let start = of_model(engine::EXECUTE_START).map(|event| event.time);
    let end = of_model(engine::EXECUTE_END).map(|event| event.time);
    let seconds = |time: Option<u64>| time.map_or_else(none, |t| Seconds(t).to_string());
    // The old system counts only what a prefill node computes.
    let tokens = match role {
        PREFILL => attribute::SCHEDULED_TOKENS,
        _ => attribute::TOTAL_TOKENS,
    };
    let (mut ids, mut tokens_of) = (String::new(), String::new());
    // Nor does it list what a decode node's step is for.
    let listed = if role == DECODE { &[] } else { &span.links[..] };
    for (n, link) in listed.iter().enumerate() {
        let comma = if n == 0 { "" } else { ", " };
        let id = match value(&link.attributes, attribute::REQUEST_ID) {
            Some(Value::Str(id)) => printable(id),
            _ => "?".to_owned(),
        };
        let tokens = Number(value(&link.attributes, attribute::SCHEDULED_TOKENS));
        // Writing to a String cannot fail.
        let _ = write!(ids, "{comma}'chatcmpl-{id}'");
        let _ = write!(tokens_of, "{comma}{tokens}");
    }
    [
        Seconds(span.start).to_string(),
        Seconds(span.end).to_string(),
        millis(span.end.saturating_sub(span.start)),
        number(attribute::RUNNING).to_string(),
        number(tokens).to_string(),
        number(attribute::WAITING).to_string(),
        format!("[{ids}]"),
        format!("[{tokens_of}]"),
        seconds(start),
        seconds(end),
        start
            .zip(end)
            .map_or_else(none, |(s, e)| millis(e.saturating_sub(s))),
        number(attribute::KV_USAGE).to_string(),
        number(attribute::KV_BLOCKS).to_string(),
        number(attribute::KV_FREE_AT_START).to_string(),
        number(attribute::KV_FREE_AT_END).to_string(),
        number(attribute::KV_BLOCKS_USED).to_string(),
        id.to_owned(),
    ]
    .join("|")
}

/// What Python writes for nothing.
fn none() -> String {
    "None".to_owned()
}

fn millis(nanos: u64) -> String {
    format!("{}.{:06}", nanos / 1_000_000, nanos % 1_000_000)
}

/// A number as Python writes it.
struct Number<'a>(Option<&'a Value>);

impl std::fmt::Display for Number<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(Value::I64(n)) => write!(f, "{n}"),
            Some(Value::F64(n)) => write!(f, "{n:?}"),
            _ => f.write_str("None"),
        }
    }
}

fn value<'a>(attributes: &'a [Attribute], key: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|a| &*a.key == key)?;
    Some(&found.value)
}

/// An id without what could break out of its place in a list.
fn printable(id: &str) -> String {
    id.replace(
        |c: char| matches!(c, '|' | '\'' | ',' | '[' | ']' | '<' | ':') || c.is_control(),
        "?",
    )
}

/// The object before the fields: nothing in it looks like a field or a marker.
pub(super) fn object(suffix: &Suffix) -> Option<String> {
    let json = serde_json::to_string(suffix).ok()?;
    // All of these stand in JSON only within texts.
    let escaped = json.replace('|', "\\u007c").replace('<', "\\u003c");
    Some(escaped.replace("profile", "profil\\u0065"))
}

/// Reads the line of a step or a model, ours or the old system's, whose `profile` stands
/// at `at`; None: it is no such line.
pub(super) fn parse(line: &[u8], at: usize) -> Result<Option<ActionLine<'_>>, LineError> {
    let (before, text) = line.split_at(at);
    let form = FORMS
        .iter()
        .find_map(|(m, name)| Some((text.strip_prefix(m.as_bytes())?, *name)));
    let Some((text, name)) = form else {
        return Ok(None);
    };
    let text = std::str::from_utf8(text).map_err(|_| LineError::NotUtf8)?;
    let fields: Vec<&str> = text.trim_end().split('|').collect();
    // Other tools begin lines of their own like this.
    let Some(start) = fields.get(1).and_then(|f| parse_seconds(f.as_bytes())) else {
        return Ok(None);
    };
    let count = if name == STEP {
        STEP_FIELDS
    } else {
        MODEL_FIELDS
    };
    if fields.len() != count {
        return Err(LineError::BadProfile);
    }
    let end = parse_seconds(fields[2].as_bytes()).ok_or(LineError::BadProfile)?;
    let (role, node) = fields[0].split_once('_').unwrap_or((fields[0], ""));
    let suffix = match memmem::find(before, b" {") {
        Some(at) => {
            serde_json::from_slice(before[at..].trim_ascii()).map_err(|_| LineError::BadSuffix)?
        }
        None => {
            let id: StepId =
                (fields.last().and_then(|f| f.trim().parse().ok())).ok_or(LineError::BadProfile)?;
            if name == STEP {
                let vocabulary = Vocabulary::omni_vllm();
                step_suffix(&fields, id, &vocabulary, role, node, start)
                    .ok_or(LineError::BadProfile)?
            } else {
                below_suffix(id, name, node, start)
            }
        }
    };
    if suffix.span.is_none() {
        return Err(LineError::BadSuffix);
    }
    Ok(Some(ActionLine {
        action: name.into(),
        time: end,
        request_id: "".into(),
        source: Some((role, node)),
        suffix,
        suffix_text: &[],
    }))
}

/// What the old system's line says of a step, as our object would.
pub(super) fn step_suffix(
    fields: &[&str],
    id: StepId,
    vocabulary: &Vocabulary,
    role: &str,
    node: &str,
    start: u64,
) -> Option<Suffix> {
    let context = id.context(node);
    let mut span = SpanSuffix {
        start,
        trace_id: context.trace_id.to_string(),
        span_id: context.span_id.to_string(),
        kind: "internal".to_owned(),
        flags: context.flags,
        ..SpanSuffix::default()
    };
    let mut attributes = vec![
        Attribute::new(attribute::STEP_ID, &*id.to_string()),
        Attribute::new(attribute::PID, i64::from(id.pid)),
    ];
    describe(fields, vocabulary, role, node, &mut attributes, &mut span)?;
    Some(Suffix {
        attributes: AttributeMap(attributes),
        span: Some(span),
        ..Suffix::default()
    })
}

/// The same of what is below a step.
pub(super) fn below_suffix(id: StepId, name: &str, node: &str, start: u64) -> Suffix {
    let context = id.context(node);
    let span = SpanSuffix {
        start,
        trace_id: context.trace_id.to_string(),
        span_id: id.model_span_id(node, name, id.pid, start).to_string(),
        parent_span_id: Some(context.span_id.to_string()),
        parent_is_remote: true,
        kind: "internal".to_owned(),
        flags: context.flags,
        ..SpanSuffix::default()
    };
    let step = Attribute::new(attribute::STEP_ID, &*id.to_string());
    Suffix {
        attributes: AttributeMap(vec![step]),
        span: Some(span),
        ..Suffix::default()
    }
}

/// What the fields of a step say.
fn describe(
    fields: &[&str],
    vocabulary: &Vocabulary,
    role: &str,
    node: &str,
    attributes: &mut Vec<Attribute>,
    span: &mut SpanSuffix,
) -> Option<()> {
    let ids = list(fields[7])?;
    let tokens = list(fields[8])?;
    if !ids.is_empty() {
        attributes.push(Attribute::new(attribute::BATCH_SIZE, ids.len() as i64));
        let scheduled = tokens.iter().filter_map(|n| n.parse::<i64>().ok()).sum();
        attributes.push(Attribute::new(
            attribute::SCHEDULED_TOKENS,
            Value::I64(scheduled),
        ));
    }
    let mut integer = |key: &'static str, field: &str| {
        if let Ok(n) = field.parse::<i64>() {
            attributes.push(Attribute::new(key, n));
        }
    };
    integer(attribute::RUNNING, fields[4]);
    // What a prefill node computes has just been counted.
    if role != PREFILL {
        integer(attribute::TOTAL_TOKENS, fields[5]);
    }
    integer(attribute::WAITING, fields[6]);
    integer(attribute::KV_BLOCKS, fields[13]);
    integer(attribute::KV_FREE_AT_START, fields[14]);
    integer(attribute::KV_FREE_AT_END, fields[15]);
    integer(attribute::KV_BLOCKS_USED, fields[16]);
    if let Ok(usage) = fields[12].parse::<f64>() {
        attributes.push(Attribute::new(attribute::KV_USAGE, usage));
    }
    for (name, field) in [
        (engine::EXECUTE_START, fields[9]),
        (engine::EXECUTE_END, fields[10]),
    ] {
        span.events
            .extend(parse_seconds(field.as_bytes()).map(|time| EventSuffix {
                time,
                name: name.to_owned(),
                ..EventSuffix::default()
            }));
    }
    for (n, id) in ids.iter().enumerate() {
        let id = canonical_request_id(id);
        let link = engine::link(vocabulary, node, role, id, None);
        let tokens = tokens.get(n).and_then(|n| n.parse::<i64>().ok());
        let tokens = tokens.map(|n| Attribute::new(attribute::SCHEDULED_TOKENS, n));
        let id = Attribute::new(attribute::REQUEST_ID, id);
        span.links.push(LinkSuffix::new(&Link {
            attributes: [id].into_iter().chain(tokens).collect(),
            ..link
        }));
    }
    Some(())
}

/// The items of a Python list of texts or numbers.
fn list(text: &str) -> Option<Vec<&str>> {
    let inner = text.trim().strip_prefix('[')?.strip_suffix(']')?;
    let items = inner.split(", ").map(|item| item.trim_matches(['\'', '"']));
    Some(items.filter(|item| !item.is_empty()).collect())
}

#[cfg(test)]
mod tests;
