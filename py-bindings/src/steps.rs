//! Spans of an engine's steps, for `omnitrace.vllm`.

use omnitrace::engine::{self, StepId, attribute};
use omnitrace::event::{FreeSpan, Parent};
use omnitrace::span::{Link, SpanEvent};
use omnitrace::{Attribute, KeyRef, Recorder, ValueRef};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::attributes::{Pair, with_attributes};
use crate::context::SpanContext;
use crate::process::{count_late_span, is_off, with_recorder};

/// The id and the context of the step whose model begins to run at `executed`; None
/// where nothing of it is recorded.
#[pyfunction]
#[pyo3(name = "_step_context")]
pub(crate) fn step_context(executed: u64) -> Option<(String, SpanContext)> {
    with_recorder(|recorder| {
        let id = StepId {
            pid: std::process::id(),
            executed,
        };
        let mut context = id.context(recorder.node());
        context.flags = recorder.sampler().flags(None, context.trace_id);
        if !context.is_sampled() {
            recorder.leave_out();
            return None;
        }
        Some((id.to_string(), SpanContext(context)))
    })
}

/// Records a step. `executed` is when its model has run; `requests` are ids with the
/// roles that they have here and their tokens.
#[pyfunction]
#[pyo3(name = "_record_step")]
pub(crate) fn record_step(
    context: SpanContext,
    times: [u64; 4],
    requests: Vec<(String, String, i64)>,
    attributes: &Bound<'_, PyAny>,
) {
    if is_off() {
        return;
    }
    let [start, execute, executed, end] = times;
    let events = [
        (engine::EXECUTE_START, execute),
        (engine::EXECUTE_END, executed),
    ]
    .map(|(name, time)| SpanEvent {
        time,
        name: name.into(),
        ..SpanEvent::default()
    });
    let recorded = with_attributes(Some(attributes), |attributes| {
        with_recorder(|recorder| {
            let links: Vec<Link> = requests
                .iter()
                .map(|(id, role, tokens)| link(recorder, id, role, *tokens))
                .collect();
            let root = Parent::Root(context.0.trace_id);
            Some(recorder.span(&FreeSpan {
                attributes,
                events: &events,
                links: &links,
                ..FreeSpan::new(engine::STEP, start, end, context.0.span_id, root)
            }))
        })
    });
    if recorded.is_none() {
        count_late_span();
    }
}

fn link(recorder: &Recorder, id: &str, role: &str, tokens: i64) -> Link {
    let (id, link) = recorder.link_to(id, role);
    Link {
        attributes: vec![
            Attribute::new(attribute::REQUEST_ID, id),
            Attribute::new(attribute::SCHEDULED_TOKENS, tokens),
        ],
        ..link
    }
}

/// Records what a model did in a step; `draft` is the speculative proposer's. `step` is
/// the step's `traceparent`.
#[pyfunction]
#[pyo3(name = "_record_model")]
pub(crate) fn record_model(
    draft: bool,
    step: (String, String),
    start: u64,
    end: u64,
    rank: Option<i64>,
) -> PyResult<()> {
    let (id, traceparent) = &step;
    let context = omnitrace::SpanContext::parse(traceparent.as_bytes())
        .ok_or_else(|| PyValueError::new_err("not a traceparent"))?;
    let step_id = id
        .parse::<StepId>()
        .map_err(|_| PyValueError::new_err("not the id of a step"))?;
    if is_off() {
        return Ok(());
    }
    let name = if draft {
        engine::MTP_MODEL
    } else {
        engine::MAIN_MODEL
    };
    let rank = rank.map(|rank| (KeyRef::Text("omnitrace.rank"), ValueRef::I64(rank)));
    let attributes: Vec<Pair<'_>> = [(KeyRef::Text(attribute::STEP_ID), ValueRef::Str(id))]
        .into_iter()
        .chain(rank)
        .collect();
    let recorded = with_recorder(|recorder| {
        let process = std::process::id();
        let span_id = step_id.model_span_id(recorder.node(), name, process, start);
        Some(recorder.span(&FreeSpan {
            attributes: &attributes,
            parent_is_remote: step_id.pid != process,
            ..FreeSpan::new(name, start, end, span_id, Parent::Span(context))
        }))
    });
    if recorded.is_none() {
        count_late_span();
    }
    Ok(())
}
