//! Steps of an inference engine: one pass of its scheduler with the model's execution.
//! Names and ids are the same live and out of a log.

use std::fmt;
use std::str::FromStr;

use crate::context::SpanContext;
use crate::id::{PhaseKey, SpanId, TraceId};
use crate::legacy_log::parse_seconds;
use crate::span::Link;
use crate::vocabulary::Vocabulary;

/// Name of a step's span.
pub const STEP: &str = "engine step";
/// Name of the span of a worker's main model, below the step's.
pub const MAIN_MODEL: &str = "main model";
/// Name of the span of a worker's speculative proposer, below the step's.
pub const MTP_MODEL: &str = "mtp model";
/// Name of the moment in which a worker of SGLang begins a step, below the step's.
pub const WORKER_STEP: &str = "worker step";
/// Event of a step: its model begins to run.
pub const EXECUTE_START: &str = "start execute_model";
/// Event of a step: its model has run.
pub const EXECUTE_END: &str = "done execute_model";

/// Nanoseconds of an engine's steps that make one trace, so that a UI can show it.
pub const WINDOW: u64 = 10_000_000_000;

/// Keys of the attributes that the legacy log has fields for.
pub mod attribute {
    /// Text of a [`StepId`](super::StepId): on a step's span and on those below it.
    pub const STEP_ID: &str = "omnitrace.engine.step_id";
    /// Process of the engine.
    pub const PID: &str = "omnitrace.engine.pid";
    /// Requests in the step.
    pub const BATCH_SIZE: &str = "omnitrace.engine.batch_size";
    /// Tokens that the step computes; on a link those of its request.
    pub const SCHEDULED_TOKENS: &str = "omnitrace.engine.scheduled_tokens";
    /// These and the tokens before them, of all requests in the step.
    pub const TOTAL_TOKENS: &str = "omnitrace.engine.total_tokens";
    /// Requests that run after the step.
    pub const RUNNING: &str = "omnitrace.engine.running";
    /// Requests that wait after the step.
    pub const WAITING: &str = "omnitrace.engine.waiting";
    /// Used part of the KV cache after the step, from 0 to 1.
    pub const KV_USAGE: &str = "omnitrace.engine.kv.usage";
    /// Blocks of the KV cache.
    pub const KV_BLOCKS: &str = "omnitrace.engine.kv.blocks";
    /// Free blocks when the step began.
    pub const KV_FREE_AT_START: &str = "omnitrace.engine.kv.free_blocks_at_start";
    /// Free blocks when the step ended.
    pub const KV_FREE_AT_END: &str = "omnitrace.engine.kv.free_blocks_at_end";
    /// Blocks that the step has taken, less those that it has given back.
    pub const KV_BLOCKS_USED: &str = "omnitrace.engine.kv.blocks_used";
    /// A worker's own number of the step.
    pub const MODEL_STEP: &str = "omnitrace.engine.model_step";
    /// Canonical id of a linked request.
    pub const REQUEST_ID: &str = "gen_ai.request.id";
}

/// Tells a step from all others of its node. Its text, `<pid>-<seconds>`, is what joins
/// the legacy log's lines of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepId {
    /// Process of the engine.
    pub pid: u32,
    /// When the model began to run, in nanoseconds since 1970.
    pub executed: u64,
}

/// A text that is not a [`StepId`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not <pid>-<seconds>")]
pub struct NoStepId;

impl FromStr for StepId {
    type Err = NoStepId;

    fn from_str(text: &str) -> Result<Self, NoStepId> {
        let (pid, executed) = text.split_once('-').ok_or(NoStepId)?;
        Ok(Self {
            pid: pid.parse().map_err(|_| NoStepId)?,
            executed: parse_seconds(executed.as_bytes()).ok_or(NoStepId)?,
        })
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pid, Seconds(self.executed))
    }
}

impl StepId {
    /// The step's own context: a root in its engine's trace of that time.
    pub fn context(self, node: &str) -> SpanContext {
        let trace_id = TraceId::of_engine(node, self.pid, self.executed / WINDOW);
        SpanContext {
            trace_id,
            span_id: self.span_id(node, trace_id, STEP, self.pid, self.executed),
            flags: SpanContext::SAMPLED,
        }
    }

    /// The id of a span below the step's, recorded by process `pid`; `start` is in
    /// nanoseconds since 1970.
    pub fn model_span_id(self, node: &str, name: &str, pid: u32, start: u64) -> SpanId {
        let trace_id = self.context(node).trace_id;
        self.span_id(node, trace_id, name, pid, start)
    }

    fn span_id(self, node: &str, trace_id: TraceId, name: &str, pid: u32, start: u64) -> SpanId {
        let key = PhaseKey {
            trace_id,
            request_id: &self.to_string(),
            remote_parent: None,
            entered: start,
            role: &pid.to_string(),
            node,
            phase: name,
            occurrence: 0,
        };
        key.span_id()
    }
}

/// Nanoseconds as the legacy log has them: seconds with nine decimals.
pub(crate) struct Seconds(pub(crate) u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        write!(f, "{seconds}.{nanos:09}")
    }
}

/// A link to the SERVER span that a request has on `node` in a role. `context` is what
/// came with the request. As a node that does both decodes, so does any role that the
/// vocabulary does not know.
pub(crate) fn link(
    vocabulary: &Vocabulary,
    node: &str,
    role: &str,
    canonical: &str,
    context: Option<SpanContext>,
) -> Link {
    let trace_id = context.map_or_else(|| TraceId::of_request(canonical), |c| c.trace_id);
    let known = vocabulary.role_named(role).is_some();
    let role = if known { role } else { "decode" };
    let entry = vocabulary.role_named(role).map(|id| {
        let role = vocabulary.role(id);
        &*vocabulary.phase(role.entry).name
    });
    let key = PhaseKey {
        trace_id,
        request_id: canonical,
        remote_parent: context.map(|c| c.span_id),
        entered: 0,
        role,
        node,
        phase: entry.unwrap_or_default(),
        occurrence: 0,
    };
    Link::new(trace_id, key.span_id())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Ids are a contract between versions and with stored traces: these never change.
    #[test]
    fn ids_of_steps_are_frozen_and_a_trace_holds_ten_seconds() {
        let step = StepId {
            pid: 7,
            executed: 1_795_334_645_577_302_011,
        };
        assert_eq!(step.to_string(), "7-1795334645.577302011");
        let context = step.context("10.0.0.3");
        let model = step.model_span_id("10.0.0.3", MAIN_MODEL, 8, step.executed);
        assert_eq!(
            (context.traceparent(), model.to_string()),
            (
                "00-850d4f244fa19bdf3e0b28b5a12ebac6-37c4a56589f8d9b3-01".into(),
                "98aafd38d58c5612".into()
            )
        );
        let at = |executed| StepId { executed, ..step }.context("10.0.0.3");
        let first = 1_795_334_640_000_000_000;
        assert_eq!(at(first).trace_id, context.trace_id);
        assert_eq!(at(first + WINDOW - 1).trace_id, context.trace_id);
        assert_ne!(at(first - 1).trace_id, context.trace_id);
        assert_ne!(at(first + WINDOW).trace_id, context.trace_id);
        assert_ne!(at(first).span_id, context.span_id);
        let other = StepId { pid: 8, ..step }.context("10.0.0.3");
        assert_ne!(other.trace_id, context.trace_id);
        assert_ne!(step.context("10.0.0.4").trace_id, context.trace_id);
    }
}
