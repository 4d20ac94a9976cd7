//! Head sampling: whether a trace is recorded, decided where it begins.
//!
//! The decision depends on nothing but the caller's own and the trace id, so every
//! process of a trace decides alike without being told.

use std::fmt;

use crate::context::SpanContext;
use crate::id::TraceId;

/// What decides whether a trace is recorded (OpenTelemetry specification, "Sampling").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    root: Root,
    asks_parent: bool,
}

/// The decision where no caller has made one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    AlwaysOn,
    AlwaysOff,
    /// The traces whose id, in its lower 63 bits from the second on, is below this.
    Below(u64),
}

impl Sampler {
    /// `always_on`: every trace.
    pub const ALWAYS_ON: Self = Self::root(Root::AlwaysOn);
    /// `always_off`: no trace.
    pub const ALWAYS_OFF: Self = Self::root(Root::AlwaysOff);

    /// The names that [`Self::named`] knows.
    pub(crate) const NAMES: [&str; 6] = [
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ];

    const fn root(root: Root) -> Self {
        Self {
            root,
            asks_parent: false,
        }
    }

    /// `traceidratio`: this share of all traces, from 0 to 1, chosen by trace id as
    /// OpenTelemetry's SDKs for Rust, Go and Python choose it. None: the ratio
    /// is no such number.
    pub fn trace_id_ratio(ratio: f64) -> Option<Self> {
        if !(0.0..=1.0).contains(&ratio) {
            return None;
        }
        if ratio == 1.0 {
            return Some(Self::ALWAYS_ON);
        }
        let below = (ratio * (1u64 << 63) as f64) as u64;
        Some(Self::root(Root::Below(below)))
    }

    /// The sampler of this name in OpenTelemetry's environment, such as
    /// `parentbased_traceidratio`; `ratio` counts for those that have one. None: there is
    /// no such sampler, or the ratio is not from 0 to 1.
    pub fn named(name: &str, ratio: f64) -> Option<Self> {
        let (root, asks_parent) = match name.strip_prefix("parentbased_") {
            Some(root) => (root, true),
            None => (name, false),
        };
        let root = match root {
            "always_on" => Self::ALWAYS_ON,
            "always_off" => Self::ALWAYS_OFF,
            "traceidratio" => Self::trace_id_ratio(ratio)?,
            _ => return None,
        };
        Some(Self {
            asks_parent,
            ..root
        })
    }

    /// `parentbased_…`: as the caller has decided; this one decides for a trace that
    /// begins here.
    pub const fn parent_based(self) -> Self {
        Self {
            asks_parent: true,
            ..self
        }
    }

    /// The W3C trace flags of spans in this trace: `parent` is the context that came
    /// with the request, none if the trace begins here. Flags other than "sampled" are
    /// the parent's.
    pub fn flags(&self, parent: Option<SpanContext>, trace_id: TraceId) -> u8 {
        let flags = parent.map_or(0, |parent| parent.flags);
        if self.asks_parent && parent.is_some() {
            return flags;
        }
        let sampled = match self.root {
            Root::AlwaysOn => true,
            Root::AlwaysOff => false,
            Root::Below(limit) => (trace_id.value() as u64) >> 1 < limit,
        };
        if sampled {
            flags | SpanContext::SAMPLED
        } else {
            flags & !SpanContext::SAMPLED
        }
    }
}

impl Default for Sampler {
    /// `parentbased_always_on`.
    fn default() -> Self {
        Self::ALWAYS_ON.parent_based()
    }
}

impl fmt::Display for Sampler {
    /// OpenTelemetry's name of it, with the ratio where there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.asks_parent {
            f.write_str("parentbased_")?;
        }
        match self.root {
            Root::AlwaysOn => f.write_str("always_on"),
            Root::AlwaysOff => f.write_str("always_off"),
            Root::Below(limit) => {
                let ratio = limit as f64 / (1u64 << 63) as f64;
                write!(f, "traceidratio({ratio})")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::SpanKind;
    use opentelemetry_sdk::trace::{Sampler as Theirs, SamplingDecision, ShouldSample as _};
    use proptest::prelude::*;

    use super::*;
    use crate::id::SpanId;

    fn context(trace_id: TraceId, flags: u8) -> SpanContext {
        SpanContext {
            trace_id,
            span_id: SpanId::new(7).unwrap(),
            flags,
        }
    }

    #[test]
    fn the_six_samplers_decide_for_each_parent_as_the_specification_says() {
        let low = TraceId::new(1).unwrap();
        let high = TraceId::new(u128::MAX).unwrap();
        let half = Sampler::trace_id_ratio(0.5).unwrap();
        // What they say to: no parent; one that samples; one that does not, in each case
        // for an id within the ratio and one beyond it.
        let cases = [
            (Sampler::ALWAYS_ON, [1, 1, 1, 1, 1, 1]),
            (Sampler::ALWAYS_OFF, [0, 0, 0, 0, 0, 0]),
            (half, [1, 0, 1, 0, 1, 0]),
            (Sampler::ALWAYS_ON.parent_based(), [1, 1, 1, 1, 0, 0]),
            (Sampler::ALWAYS_OFF.parent_based(), [0, 0, 1, 1, 0, 0]),
            (half.parent_based(), [1, 0, 1, 1, 0, 0]),
        ];
        for (sampler, expected) in cases {
            let mut said = Vec::new();
            for parent in [None, Some(1), Some(0)] {
                for id in [low, high] {
                    said.push(sampler.flags(parent.map(|flags| context(id, flags)), id));
                }
            }
            assert_eq!(said, expected, "{sampler}");
        }
    }

    #[test]
    fn the_parents_other_flags_stay() {
        let id = TraceId::new(u128::MAX).unwrap();
        let random = Some(context(id, 0x02));
        assert_eq!(Sampler::ALWAYS_ON.flags(random, id), 0x03);
        assert_eq!(Sampler::default().flags(random, id), 0x02);
        let both = Some(context(id, 0x03));
        assert_eq!(Sampler::ALWAYS_OFF.flags(both, id), 0x02);
    }

    #[test]
    fn a_ratio_is_a_number_from_0_to_1() {
        for ratio in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Sampler::trace_id_ratio(ratio), None, "{ratio}");
        }
        assert_eq!(Sampler::trace_id_ratio(1.0), Some(Sampler::ALWAYS_ON));
        let none = Sampler::trace_id_ratio(0.0).unwrap();
        assert_eq!(none.flags(None, TraceId::new(1 << 64).unwrap()), 0);
        let quarter = Sampler::trace_id_ratio(0.25).unwrap().parent_based();
        assert_eq!(quarter.to_string(), "parentbased_traceidratio(0.25)");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 4096, ..ProptestConfig::default() })]

        #[test]
        fn a_ratio_chooses_the_traces_that_opentelemetrys_own_sampler_chooses(
            ratio in prop_oneof![0.0..=1.0f64, Just(0.0), Just(1.0), Just(0.5)],
            id in prop_oneof![any::<u128>(), Just(1 << 63), Just(u128::from(u64::MAX >> 1))]
                .prop_filter_map("zero", TraceId::new),
        ) {
            let theirs = Theirs::TraceIdRatioBased(ratio).should_sample(
                None, id.value().into(), "span", &SpanKind::Server, &[], &[],
            );
            let sampled = theirs.decision == SamplingDecision::RecordAndSample;
            let ours = Sampler::trace_id_ratio(ratio).unwrap();
            prop_assert_eq!(ours.flags(None, id), u8::from(sampled));
        }
    }
}
