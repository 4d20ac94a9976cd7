//! Starting a span.

use omnitrace::SpanContext;
use omnitrace::span::SpanKind;
use pyo3::prelude::*;

use crate::context::current;
use crate::edge::none;
use crate::process::{count_unsampled_span, forks};

use super::api::{Api, connected};
use super::mistakes::Mistake;
use super::packed::{Packed, Room};
use super::parent::{TraceState, in_context};
use super::provider::Sampling;
use super::span::{New, OnException, Owner, Span, clean_name, start_time};
use super::tracer::Tracer;
use super::unsampled::Unsampled;
use super::values::read;

type Object<'a, 'py> = Option<Borrowed<'a, 'py, PyAny>>;

/// The arguments of `start_span`; what is `None` is not there.
pub(crate) struct Given<'a, 'py> {
    pub(crate) name: Object<'a, 'py>,
    pub(crate) context: Object<'a, 'py>,
    pub(crate) kind: Object<'a, 'py>,
    pub(crate) attributes: Object<'a, 'py>,
    pub(crate) links: Object<'a, 'py>,
    pub(crate) start_time: Object<'a, 'py>,
    pub(crate) on_exception: OnException,
}

impl<'a, 'py> Given<'a, 'py> {
    /// From the eight in the API's order.
    #[inline]
    pub(crate) fn new(taken: [Object<'a, 'py>; 8]) -> Self {
        let [
            name,
            context,
            kind,
            attributes,
            links,
            start_time,
            record,
            set_status,
        ] = taken;
        let there = |object: Object<'a, 'py>| object.filter(|object| !object.is_none());
        let yes = |object: Object<'a, 'py>| object.is_none_or(|o| o.is_truthy().unwrap_or(true));
        Self {
            name,
            context: there(context),
            kind: there(kind),
            attributes: there(attributes),
            links: there(links),
            start_time: there(start_time),
            on_exception: OnException {
                record: yes(record),
                set_status: yes(set_status),
            },
        }
    }
}

/// What a sampler of the user's says.
struct Decision<'py> {
    is_recording: bool,
    is_sampled: bool,
    attributes: Option<Bound<'py, PyAny>>,
    trace_state: Option<TraceState>,
}

/// A new span, or one that is not recorded.
#[inline]
pub(crate) fn start<'py>(
    tracer: &Bound<'py, Tracer>,
    given: &Given<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = tracer.py();
    let api = connected(py)?;
    let provider = tracer.get().provider();
    if !provider.records() {
        return pass_through(api, py, given.context);
    }
    let parent = match given.context {
        Some(context) => in_context(api, &context),
        None => current(py),
    };
    let above = parent.as_ref().map(|parent| &parent.context);
    let mut context = provider.new_context(py, above);
    let kind = given
        .kind
        .map_or(SpanKind::Internal, |kind| kind_of(api, &kind));
    let mut decided = None;
    match provider.sampling() {
        Sampling::Ours(sampler) => {
            context.flags = sampler.flags(above.copied(), context.trace_id);
            if !context.is_sampled() {
                count_unsampled_span();
                let state = parent.and_then(|parent| parent.trace_state);
                return Ok(Bound::new(py, Unsampled::new(context, state))?.into_any());
            }
        }
        Sampling::Theirs(sampler) => {
            let decision = ask(sampler.bind(py), api, kind, &context, given);
            context.flags = above.map_or(0, |above| above.flags & !SpanContext::SAMPLED)
                | u8::from(decision.is_sampled);
            if !decision.is_recording {
                count_unsampled_span();
                let unsampled = Unsampled::new(context, decision.trace_state);
                return Ok(Bound::new(py, unsampled)?.into_any());
            }
            decided = Some(decision);
        }
    }
    let room = Room::of_span(provider.limits());
    let (attributes, trace_state) = match decided {
        None => {
            let attributes = given.attributes.map(|given| read(&given, room));
            let above = parent.as_ref();
            (
                attributes,
                above.and_then(|above| above.trace_state.clone()),
            )
        }
        Some(decision) => {
            let attributes = decision.attributes.map(|given| read(&given, room));
            (attributes, decision.trace_state)
        }
    };
    let name = given
        .name
        .map_or_else(|| none(py).unbind(), |name| clean_name(&name));
    let span = Span::new(New {
        tracer: tracer.clone().unbind(),
        context,
        parent: parent.as_ref().map(Into::into),
        trace_state,
        kind,
        start: start_time(given.start_time),
        owner: Owner::Process(forks()),
        on_exception: given.on_exception,
        name,
        attributes: attributes.unwrap_or_else(Packed::default),
    });
    let span = Bound::new(py, span)?;
    if let Some(links) = given.links {
        span.get().link_all(&links);
    }
    if provider.has_processor() {
        provider.on_start(&span, given.context.as_deref());
    }
    Ok(span.into_any())
}

/// Where nothing is recorded, the context of the span above is passed on.
fn pass_through<'py>(
    api: &Api,
    py: Python<'py>,
    context: Object<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let context = context
        .map(|context| context.to_owned())
        .or_else(|| api.current(py));
    let Some(span) = context.and_then(|context| api.span_in(&context)) else {
        return Ok(api.invalid_span.bind(py).clone());
    };
    if span.is_exact_instance_of::<Unsampled>()
        || span.is_instance(api.non_recording_span.bind(py))?
    {
        return Ok(span);
    }
    let context = span.call_method0("get_span_context")?;
    api.non_recording_span.bind(py).call1((context,))
}

#[inline]
fn kind_of(api: &Api, kind: &Bound<'_, PyAny>) -> SpanKind {
    const KINDS: [SpanKind; 5] = [
        SpanKind::Internal,
        SpanKind::Server,
        SpanKind::Client,
        SpanKind::Producer,
        SpanKind::Consumer,
    ];
    let known = api.kinds.iter().position(|known| known.is(kind));
    known.map_or_else(
        || {
            Mistake::Kind.say(kind.py(), "a span's kind is not a SpanKind: INTERNAL");
            SpanKind::Internal
        },
        |at| KINDS[at],
    )
}

/// Asks a sampler of the user's; one that fails samples everything.
#[cold]
fn ask<'py>(
    sampler: &Bound<'py, PyAny>,
    api: &Api,
    kind: SpanKind,
    context: &SpanContext,
    given: &Given<'_, 'py>,
) -> Decision<'py> {
    let py = sampler.py();
    let object = |object: Object<'_, 'py>| object.map_or_else(|| none(py), |o| o.to_owned());
    let arguments = (
        object(given.context),
        context.trace_id.value(),
        object(given.name),
        api.kinds[kind as usize].bind(py),
        object(given.attributes),
        given.links.map_or_else(
            || pyo3::types::PyTuple::empty(py).into_any(),
            |l| l.to_owned(),
        ),
    );
    let asked = || -> PyResult<Decision<'py>> {
        let result = sampler.call_method1("should_sample", arguments)?;
        let decision = result.getattr("decision")?;
        Ok(Decision {
            is_recording: decision.call_method0("is_recording")?.is_truthy()?,
            is_sampled: decision.call_method0("is_sampled")?.is_truthy()?,
            attributes: Some(result.getattr("attributes")?),
            trace_state: TraceState::read(&result.getattr("trace_state")?),
        })
    };
    asked().unwrap_or_else(|error| {
        let what = format!("the sampler fails ({error}): the span is recorded");
        Mistake::Sampler.say(py, &what);
        Decision {
            is_recording: true,
            is_sampled: true,
            attributes: given.attributes.map(|given| given.to_owned()),
            trace_state: None,
        }
    })
}
