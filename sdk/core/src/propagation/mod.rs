//! Trace context in and out of a call's headers, in the formats that
//! `OTEL_PROPAGATORS` names.
//!
//! A carrier is anything that gives and takes text by header name; names are lower
//! case. W3C Trace Context and Baggage, B3 in one header and in several.

mod b3;
mod debug;

use crate::context::SpanContext;
use crate::id;
use crate::sampler::Sampler;

pub use debug::DebugTraces;

/// W3C Trace Context, level 1.
const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// W3C Baggage.
const BAGGAGE: &str = "baggage";

/// One format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagator {
    /// `tracecontext`: `traceparent` and `tracestate`.
    TraceContext,
    /// `baggage`, passed through as it came.
    Baggage,
    /// `b3`: reads both kinds of B3 headers, writes the single one.
    B3,
    /// `b3multi`: reads both kinds of B3 headers, writes those of one value each.
    B3Multi,
}

impl Propagator {
    fn fields(self) -> &'static [&'static str] {
        match self {
            Self::TraceContext => &[TRACEPARENT, TRACESTATE],
            Self::Baggage => &[BAGGAGE],
            Self::B3 | Self::B3Multi => &b3::FIELDS,
        }
    }
}

/// What a call carries beside its payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Propagated<'a> {
    /// The span that made the call.
    pub context: Option<SpanContext>,
    /// The caller has left it to us whether the trace is recorded (B3 without a
    /// sampling state); the context's flag then means nothing.
    pub deferred: bool,
    /// The caller wants this trace whatever any sampler says (B3's debug flag).
    pub debug: bool,
    /// `tracestate`, as it came with a valid `traceparent`.
    pub tracestate: Option<&'a str>,
    /// `baggage`, as it came.
    pub baggage: Option<&'a str>,
}

impl Propagated<'_> {
    /// The context with the decision that counts here: the sampler's, which is the
    /// caller's own if the sampler asks for it and the caller has made one.
    pub fn decided(&self, sampler: &Sampler) -> Option<SpanContext> {
        let context = self.context?;
        let parent = Some(context).filter(|_| !self.deferred);
        let flags = if self.debug {
            context.flags | SpanContext::SAMPLED
        } else {
            sampler.flags(parent, context.trace_id)
        };
        Some(SpanContext { flags, ..context })
    }
}

/// The formats of this process, in the order in which they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Propagators {
    formats: Vec<Propagator>,
    fields: Vec<&'static str>,
}

impl Propagators {
    /// These formats, each once.
    pub fn new(formats: impl IntoIterator<Item = Propagator>) -> Self {
        let mut each = Self {
            formats: Vec::new(),
            fields: Vec::new(),
        };
        for format in formats {
            if each.formats.contains(&format) {
                continue;
            }
            each.formats.push(format);
            for field in format.fields() {
                if !each.fields.contains(field) {
                    each.fields.push(field);
                }
            }
        }
        each
    }

    /// The names of the headers that these formats read and write, each once.
    pub fn fields(&self) -> &[&'static str] {
        &self.fields
    }

    /// Reads what came with a call. Where two formats hold a valid context, the later
    /// one's counts, as in OpenTelemetry's composite propagator.
    ///
    /// A header that came more than once has no value here but for `tracestate` and
    /// `baggage`, whose values may be joined by commas.
    pub fn extract<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> Propagated<'a> {
        let mut propagated = Propagated::default();
        for format in &self.formats {
            match format {
                Propagator::TraceContext => {
                    let context = get(TRACEPARENT).and_then(|v| SpanContext::parse(v.as_bytes()));
                    if context.is_some() {
                        propagated = Propagated {
                            context,
                            tracestate: get(TRACESTATE).filter(|v| !v.trim().is_empty()),
                            baggage: propagated.baggage,
                            ..Propagated::default()
                        };
                    }
                }
                Propagator::B3 | Propagator::B3Multi => {
                    if let Some(read) = b3::read(&get) {
                        propagated = Propagated {
                            baggage: propagated.baggage,
                            ..read
                        };
                    }
                }
                Propagator::Baggage => {
                    propagated.baggage = get(BAGGAGE).filter(|v| !v.trim().is_empty());
                }
            }
        }
        propagated
    }

    /// Writes what the receiver of a call is to get.
    pub fn inject(&self, propagated: &Propagated<'_>, mut set: impl FnMut(&'static str, &str)) {
        for format in &self.formats {
            match (format, &propagated.context) {
                (Propagator::TraceContext, Some(context)) => {
                    set(TRACEPARENT, id::text(&context.traceparent_bytes()));
                    if let Some(state) = propagated.tracestate {
                        set(TRACESTATE, state);
                    }
                }
                (Propagator::B3, Some(context)) => {
                    set(b3::SINGLE, &b3::single(context, propagated.debug));
                }
                (Propagator::B3Multi, Some(context)) => {
                    b3::multiple(context, propagated.debug, &mut set);
                }
                (Propagator::Baggage, _) => {
                    if let Some(baggage) = propagated.baggage {
                        set(BAGGAGE, baggage);
                    }
                }
                (_, None) => {}
            }
        }
    }
}

impl Default for Propagators {
    /// `tracecontext,baggage`.
    fn default() -> Self {
        Self::new([Propagator::TraceContext, Propagator::Baggage])
    }
}

#[cfg(test)]
mod tests;
