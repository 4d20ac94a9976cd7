//! B3, as Zipkin and many service meshes speak it: one header, or several.

use crate::context::SpanContext;
use crate::id::{SpanId, TraceId};

use super::Propagated;

pub(super) const SINGLE: &str = "b3";
const TRACE_ID: &str = "x-b3-traceid";
const SPAN_ID: &str = "x-b3-spanid";
const SAMPLED: &str = "x-b3-sampled";
const FLAGS: &str = "x-b3-flags";

/// All of them.
pub(super) const FIELDS: [&str; 5] = [SINGLE, TRACE_ID, SPAN_ID, SAMPLED, FLAGS];

/// What the caller says about recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Deferred,
    Denied,
    Accepted,
    Debug,
}

/// Reads the single header, else the several.
pub(super) fn read<'a>(get: &impl Fn(&str) -> Option<&'a str>) -> Option<Propagated<'static>> {
    get(SINGLE)
        .and_then(read_single)
        .or_else(|| read_multiple(get))
}

/// `{trace id}-{span id}[-{state}[-{parent span id}]]`. A state alone names no span.
fn read_single(value: &str) -> Option<Propagated<'static>> {
    let mut parts = value.trim().split('-');
    let (trace_id, span_id) = (parts.next()?, parts.next()?);
    let state = match parts.next() {
        None => State::Deferred,
        Some("d") => State::Debug,
        Some("1") => State::Accepted,
        Some("0") => State::Denied,
        Some(_) => return None,
    };
    if let Some(parent) = parts.next() {
        SpanId::parse(parent.as_bytes())?;
    }
    if parts.next().is_some() {
        return None;
    }
    propagated(trace_id, span_id, state)
}

fn read_multiple<'a>(get: &impl Fn(&str) -> Option<&'a str>) -> Option<Propagated<'static>> {
    let state = match (get(FLAGS).map(str::trim), get(SAMPLED).map(str::trim)) {
        (Some("1"), _) => State::Debug,
        (_, None) => State::Deferred,
        // Old tracers write words.
        (_, Some("1" | "true")) => State::Accepted,
        (_, Some("0" | "false")) => State::Denied,
        (_, Some(_)) => return None,
    };
    propagated(get(TRACE_ID)?.trim(), get(SPAN_ID)?.trim(), state)
}

fn propagated(trace_id: &str, span_id: &str, state: State) -> Option<Propagated<'static>> {
    let trace_id = match trace_id.len() {
        // A trace id of 64 bits is the lower half of ours.
        16 => TraceId::new(SpanId::parse(trace_id.as_bytes())?.value().into()),
        _ => TraceId::parse(trace_id.as_bytes()),
    };
    let sampled = matches!(state, State::Accepted | State::Debug);
    Some(Propagated {
        context: Some(SpanContext {
            trace_id: trace_id?,
            span_id: SpanId::parse(span_id.as_bytes())?,
            flags: u8::from(sampled) * SpanContext::SAMPLED,
        }),
        deferred: state == State::Deferred,
        debug: state == State::Debug,
        ..Propagated::default()
    })
}

pub(super) fn single(context: &SpanContext, debug: bool) -> String {
    let state = match (debug, context.is_sampled()) {
        (true, _) => 'd',
        (false, true) => '1',
        (false, false) => '0',
    };
    format!("{}-{}-{state}", context.trace_id, context.span_id)
}

pub(super) fn multiple(
    context: &SpanContext,
    debug: bool,
    set: &mut impl FnMut(&'static str, &str),
) {
    set(TRACE_ID, &context.trace_id.to_string());
    set(SPAN_ID, &context.span_id.to_string());
    if debug {
        // It implies the decision, which must not be sent besides.
        set(FLAGS, "1");
    } else {
        set(SAMPLED, if context.is_sampled() { "1" } else { "0" });
    }
}
