//! Phases of which the recorder has said everything at once: their spans need no visit. Each is
//! what the assembler would have made of the phase's actions.

use crate::context::SpanContext;
use crate::encode::Raw;
use crate::id::{PhaseKey, SpanId, TraceId, canonical_request_id};
use crate::key::Key;
use crate::queue::{Attributes, DecodedPhase};
use crate::span::{Moment, PhaseOriginRef, Source, SpanKind};
use crate::vocabulary::Vocabulary;

use super::Assembler;
use super::keys::OWN;
use super::visit::SPAN_NAME;

static ERROR_TYPE: Key = Key::new("error.type");
static NAME: Key = Key::new(SPAN_NAME);

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
    /// The attributes that were recorded.
    pub(crate) recorded: Attributes<'a>,
    pub(crate) origin: PhaseOriginRef<'a>,
    vocabulary: &'a Vocabulary,
    measures: u8,
}

impl FinishedSpan<'_> {
    /// A SERVER span's parent is the caller; any other's is in this process.
    pub(crate) fn parent_is_remote(&self) -> bool {
        self.kind == SpanKind::Server
    }

    /// The attributes that are not recorded but follow from the rest.
    pub(crate) fn derived(&self, mut say: impl FnMut(&[u8], Raw<'_>)) {
        let definition = self.vocabulary.phase(self.origin.phase);
        let role = &self.vocabulary.role(definition.role).name;
        for (key, text) in [
            (&OWN.request_id, self.origin.request_id),
            (&OWN.role, &**role),
        ] {
            say(key.as_bytes(), Raw::Text(text.as_bytes()));
        }
        for (at, measure) in definition.measures.iter().take(8).enumerate() {
            if self.measures >> at & 1 != 0 {
                let key = &self.vocabulary.measures()[*measure].attribute;
                let seconds = (self.end - self.start) as f64 / 1e9;
                say(key.as_bytes(), Raw::F64(seconds));
            }
        }
        if self.origin.occurrence > 0 {
            let count = i64::from(self.origin.occurrence);
            say(OWN.occurrence.as_bytes(), Raw::I64(count));
        }
    }
}

impl Assembler {
    /// The span of a finished phase. None: its trace is not sampled.
    pub(crate) fn finished<'a>(
        &'a mut self,
        finished: &DecodedPhase<'a>,
        source: &Source,
    ) -> Option<FinishedSpan<'a>> {
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

        let [error, name] = finished.attributes.texts([ERROR_TYPE.get(), NAME.get()]);
        let moment = |action, time| Some(Moment { action, time });
        Some(FinishedSpan {
            trace_id,
            span_id,
            parent_span_id,
            flags,
            name: name.unwrap_or(definition.name.as_bytes()),
            kind: definition.kind,
            start: finished.start,
            end: finished.end,
            is_error: error.is_some(),
            recorded: finished.attributes.clone(),
            origin: PhaseOriginRef {
                request_id,
                phase: finished.phase.phase,
                occurrence,
                context,
                entered,
                start: moment(finished.phase.start, finished.start),
                end: moment(finished.phase.end, finished.end),
                seen: &[],
                recorded_attributes: finished.attributes.len(),
            },
            vocabulary,
            measures: finished.phase.measures,
        })
    }
}
