//! What OmniInfer's logger writes for SGLang: a request is known by its bootstrap room, which
//! its prefill and its decode node share, and the node by the file's name.
//!
//! ```text
//! profile REQ_ID[7301244955023216841] action:p_4 tokennizer to sche|Seq len=1024.Timestamp 1795334645.577302
//! profile: engine_step start:1795334645.57|finish:1795334645.6|…|engine_core_str=7|1795334645.579
//! profile: worker_step start:7|1795334645.579|model_step=12
//! ```

use std::sync::Arc;

use memchr::memmem;

use crate::engine::{STEP, StepId, WORKER_STEP, attribute};
use crate::span::{Source, Span};
use crate::value::Attribute;
use crate::vocabulary::Vocabulary;

use super::line::{LineError, parse_seconds};
use super::profile::{below_suffix, step_suffix};

/// A room of this number is a request's that has none, such as the engine's warm-up.
const NO_ROOM: &[u8] = b"0";
/// The action whose values stand after a colon.
const METRIC: &str = "CompletionMetric: ";
/// Values that OpenTelemetry has a name for.
const VALUES: [(&str, &str); 2] = [
    ("Seq len", "gen_ai.usage.input_tokens"),
    ("num_completion_tokens", "gen_ai.usage.output_tokens"),
];
/// Names of a step's values, in the order of vLLM's fields from the running requests on.
const FIELDS: [&str; 13] = [
    "seqs",
    "tokens",
    "waiting_reqs_num_after_step",
    "reqs_ids",
    "bs_tokens",
    "execute_model_start_time",
    "execute_model_end_time",
    "execute_model_cost_time",
    "kv_cache_usage",
    "kv_blocks_num",
    "start_free_block_num",
    "end_free_block_num",
    "cost_blocks_num",
];

/// One line of SGLang.
#[derive(Debug, PartialEq)]
pub enum SglangLine<'a> {
    /// A moment of a request.
    Action(SglangAction<'a>),
    /// A step of an engine, or a worker's share in it.
    Step(SglangStep<'a>),
    /// A moment of a request that has no room.
    NoRoom,
}

/// A moment of a request.
#[derive(Debug, PartialEq)]
pub struct SglangAction<'a> {
    /// The bootstrap room.
    pub room: &'a str,
    /// Action name, without its values.
    pub action: &'a str,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Its values.
    pub attributes: Vec<Attribute>,
}

/// A step of an engine, or a worker's share in it.
#[derive(Debug, PartialEq)]
pub struct SglangStep<'a> {
    id: StepId,
    content: Content<'a>,
}

#[derive(Debug, PartialEq)]
enum Content<'a> {
    /// The fields of a step, in vLLM's order.
    Engine {
        start: u64,
        end: u64,
        fields: Vec<&'a str>,
    },
    /// The worker's number of the step.
    Worker(i64),
}

/// Node and role behind a file's name: `omni_print_NODE_P0_12_34.json` is of `P0`, which
/// prefills. None of a name that says nothing.
pub fn sglang_node(file_name: &str) -> Option<(&str, Option<&'static str>)> {
    let (_, rest) = file_name.split_once("_NODE_")?;
    let node = rest.split(['_', '.']).next().filter(|n| !n.is_empty())?;
    let role = match node.as_bytes()[0] {
        b'P' => Some("sglang-prefill"),
        b'D' => Some("sglang-decode"),
        _ => None,
    };
    Some((node, role))
}

/// Reads what begins with `profile`; None: it is no line of SGLang's.
pub(super) fn parse(text: &[u8]) -> Result<Option<SglangLine<'_>>, LineError> {
    if let Some(text) = text.strip_prefix(b"profile REQ_ID[") {
        return action(text).map(Some);
    }
    if let Some(text) = text.strip_prefix(b"profile: engine_step start:") {
        return step(text).map(|step| Some(SglangLine::Step(step)));
    }
    if let Some(text) = text.strip_prefix(b"profile: worker_step start:") {
        return worker(text).map(|step| Some(SglangLine::Step(step)));
    }
    Ok(None)
}

fn action(text: &[u8]) -> Result<SglangLine<'_>, LineError> {
    let split = |text, separator| split(text, separator).ok_or(LineError::NoRequestId);
    let (room, text) = split(text, b"] action:")?;
    // An action may hold the separator, its time cannot.
    let at = memmem::rfind(text, b".Timestamp ").ok_or(LineError::NoTimestamp)?;
    let (action, time) = (&text[..at], &text[at + b".Timestamp ".len()..]);
    let time = parse_seconds(time.trim_ascii()).ok_or(LineError::BadTimestamp)?;
    if room.trim_ascii() == NO_ROOM {
        return Ok(SglangLine::NoRoom);
    }
    let room = utf8(room)?.trim();
    if room.is_empty() {
        return Err(LineError::EmptyRequestId);
    }
    let action = utf8(action)?;
    let (action, values) = match action.strip_prefix(METRIC) {
        Some(values) => (METRIC.trim_end_matches(": "), values),
        None => action.split_once('|').unwrap_or((action, "")),
    };
    Ok(SglangLine::Action(SglangAction {
        room,
        action: action.trim(),
        time,
        attributes: values.split('|').filter_map(value).collect(),
    }))
}

/// `<key>=<value>` as an attribute; a number is one.
fn value(text: &str) -> Option<Attribute> {
    let (key, value) = text.split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    let known = VALUES.iter().find(|(name, _)| *name == key);
    let key = match known {
        Some((_, key)) => (*key).to_owned(),
        None => format!("sglang.{}", key.replace(' ', "_")),
    };
    Some(match (value.parse::<i64>(), value.parse::<f64>()) {
        (Ok(number), _) => Attribute::new(key, number),
        (_, Ok(number)) if number.is_finite() => Attribute::new(key, number),
        _ => Attribute::new(key, value),
    })
}

fn step(text: &[u8]) -> Result<SglangStep<'_>, LineError> {
    // The last value holds a bar itself.
    let (text, core) = split(text, b"|engine_core_str=").ok_or(LineError::BadProfile)?;
    let (pid, executed) = split(core, b"|").ok_or(LineError::BadProfile)?;
    let id = step_id(pid, executed)?;
    let mut parts = utf8(text)?.split('|');
    let start = parts.next().unwrap_or_default();
    let values: Vec<(&str, &str)> = parts
        .filter_map(|part| part.split_once('=').or_else(|| part.split_once(':')))
        .collect();
    let named = |name: &str| {
        let found = values.iter().find(|(key, _)| key.trim() == name);
        found.map_or("", |(_, value)| value.trim())
    };
    let seconds = |text: &str| parse_seconds(text.as_bytes()).ok_or(LineError::BadProfile);
    let finish = named("finish");
    let mut fields = vec!["", start, finish, named("execute time")];
    fields.extend(FIELDS.map(named));
    Ok(SglangStep {
        id,
        content: Content::Engine {
            start: seconds(start.trim())?,
            end: seconds(finish)?,
            fields,
        },
    })
}

fn worker(text: &[u8]) -> Result<SglangStep<'_>, LineError> {
    let (pid, rest) = split(text, b"|").ok_or(LineError::BadProfile)?;
    let (executed, number) = split(rest, b"|model_step=").ok_or(LineError::BadProfile)?;
    let number = utf8(number)?.trim().parse();
    Ok(SglangStep {
        id: step_id(pid, executed)?,
        content: Content::Worker(number.map_err(|_| LineError::BadProfile)?),
    })
}

fn step_id(pid: &[u8], executed: &[u8]) -> Result<StepId, LineError> {
    let pid = utf8(pid)?.trim().parse();
    let executed = parse_seconds(executed.trim_ascii());
    match (pid, executed) {
        (Ok(pid), Some(executed)) => Ok(StepId { pid, executed }),
        _ => Err(LineError::BadProfile),
    }
}

fn utf8(text: &[u8]) -> Result<&str, LineError> {
    std::str::from_utf8(text).map_err(|_| LineError::NotUtf8)
}

fn split<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = memmem::find(text, separator)?;
    Some((&text[..at], &text[at + separator.len()..]))
}

impl SglangStep<'_> {
    /// Its span on this node; none of fields that are damaged.
    pub fn span(&self, source: &Arc<Source>) -> Option<Span> {
        let node = &*source.node;
        let (name, end, suffix) = match &self.content {
            Content::Engine { start, end, fields } => {
                let vocabulary = Vocabulary::of_logs();
                let suffix = step_suffix(fields, self.id, &vocabulary, &source.role, node, *start)?;
                (STEP, *end, suffix)
            }
            Content::Worker(number) => {
                let mut suffix = below_suffix(self.id, WORKER_STEP, node, self.id.executed);
                let number = Attribute::new(attribute::MODEL_STEP, *number);
                suffix.attributes.0.push(number);
                (WORKER_STEP, self.id.executed, suffix)
            }
        };
        let span = suffix.span.as_ref()?;
        span.span(name, end, &suffix.attributes, Arc::clone(source))
    }
}

#[cfg(test)]
mod tests;
