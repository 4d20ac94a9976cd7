//! Phases of which the recorder has said everything at once: their spans need no visit. Each is
//! what the assembler would have made of the phase's actions.

use smallvec::SmallVec;

use crate::context::SpanContext;
use crate::encode::Raw;
use crate::id::{PhaseKey, SpanId, TraceId, canonical_request_id};
use crate::queue::DecodedPhase;
use crate::span::{Moment, PhaseOriginRef, Source, SpanKind};

use super::Assembler;
use super::keys::OWN;
use super::visit::SPAN_NAME;

/// Room for a span's attributes; seldom more.
pub(crate) type FinishedAttributes<'a> = SmallVec<[(&'a [u8], Raw<'a>); 32]>;

/// The finished span of such a phase.
pub(crate) struct FinishedSpan<'a> {
    pub(crate) trace_id: TraceId,
    pub(crate) span_id: SpanId,
    pub(crate) parent_span_id: Option<SpanId>,
    pub(crate) flags: u8,
    pub(crate) name: &'a [u8],
    pub(crate) kind: SpanKind,
    /// Nanoseconds since 1970.
    pub(crate) start: u64,
    /// Nanoseconds since 1970, never before `start`.
    pub(crate) end: u64,
    /// Its status: an error, or nothing said.
    pub(crate) is_error: bool,
    /// The recorded ones first.
    pub(crate) attributes: &'a [(&'a [u8], Raw<'a>)],
    pub(crate) origin: PhaseOriginRef<'a>,
}

impl FinishedSpan<'_> {
    /// A SERVER span's parent is the caller; any other's is in this process.
    pub(crate) fn parent_is_remote(&self) -> bool {
        self.kind == SpanKind::Server
    }
}

impl Assembler {
    /// The span of a finished phase, with its attributes where there is room for them. None: its
    /// trace is not sampled.
    pub(crate) fn finished<'s, 'a: 's>(
        &'a mut self,
        finished: &DecodedPhase<'a>,
        source: &Source,
        attributes: &'s mut FinishedAttributes<'a>,
    ) -> Option<FinishedSpan<'s>> {
        let request_id = canonical_request_id(finished.request_id);
        let context = finished.context;
        let trace_id = context.map_or_else(|| TraceId::of_request(request_id), |c| c.trace_id);
        let flags = self.flags(context, trace_id);
        if flags & SpanContext::SAMPLED == 0 {
            return None;
        }
        let occurrence = finished.occurrence;
        let vocabulary = &*self.vocabulary;
        let definition = vocabulary.phase(finished.phase.phase);
        let role = vocabulary.role(definition.role);
        let entered = role.timed.then_some(Moment {
            action: finished.entry,
            time: finished.entered,
        });
        let ids = self.ids.begin(&PhaseKey {
            trace_id,
            request_id,
            remote_parent: context.map(|c| c.span_id),
            entered: entered.map_or(0, |moment| moment.time),
            role: &role.name,
            node: &source.node,
            phase: "",
            occurrence: 0,
        });
        let parent = definition.parent.map(|id| vocabulary.phase(id));
        let parent_span_id = match parent {
            Some(parent) if parent.role == definition.role => Some(ids.of(&parent.name, 0)),
            _ => context.map(|c| c.span_id),
        };
        let span_id = ids.of(&definition.name, occurrence);

        let (mut name, mut is_error) = (definition.name.as_bytes(), false);
        for (key, value) in finished.attributes.clone() {
            if let Raw::Text(text) = value {
                is_error |= key == b"error.type";
                if key == SPAN_NAME.as_bytes() {
                    name = text;
                }
            }
            attributes.push((key, value));
        }
        let recorded_attributes = attributes.len();
        let text = |text: &'a str| Raw::Text(text.as_bytes());
        attributes.push((OWN.request_id.as_bytes(), text(request_id)));
        attributes.push((OWN.role.as_bytes(), text(&role.name)));
        for (at, measure) in definition.measures.iter().take(8).enumerate() {
            if u32::from(finished.phase.measures) >> at & 1 != 0 {
                let key = vocabulary.measures()[*measure].attribute.as_bytes();
                let seconds = (finished.end - finished.start) as f64 / 1e9;
                attributes.push((key, Raw::F64(seconds)));
            }
        }
        if occurrence > 0 {
            let count = Raw::I64(i64::from(occurrence));
            attributes.push((OWN.occurrence.as_bytes(), count));
        }
        let moment = |action, time| Some(Moment { action, time });
        Some(FinishedSpan {
            trace_id,
            span_id,
            parent_span_id,
            flags,
            name,
            kind: definition.kind,
            start: finished.start,
            end: finished.end,
            is_error,
            attributes,
            origin: PhaseOriginRef {
                request_id,
                phase: finished.phase.phase,
                occurrence,
                context,
                entered,
                start: moment(finished.phase.start, finished.start),
                end: moment(finished.phase.end, finished.end),
                seen: &[],
                recorded_attributes,
            },
        })
    }
}
