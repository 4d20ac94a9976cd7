//! The four statistics traces: average, TP90, TP95 and TP99 of every phase over
//! the complete requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use omnitrace::id::{PhaseKey, SpanId, TraceId};
use omnitrace::span::{Dropped, Source, Span, SpanKind, Status};
use omnitrace::value::Attribute;
use omnitrace::vocabulary::{PhaseId, RoleId, Vocabulary};

/// A statistic over durations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Statistic {
    /// Arithmetic mean.
    Average,
    /// Percentile with linear interpolation, numpy's default.
    Percentile(u8),
}

/// The statistics of a converted file, in the order in which they stand there.
pub const ALL: [Statistic; 4] = [
    Statistic::Percentile(99),
    Statistic::Percentile(95),
    Statistic::Percentile(90),
    Statistic::Average,
];

impl Statistic {
    /// Name of its trace.
    pub fn title(self) -> String {
        match self {
            Self::Average => "Request Average Trace".to_owned(),
            Self::Percentile(p) => format!("Request TP{p} Percentile Trace"),
        }
    }

    /// Its value over `sorted`, which must not be empty, in nanoseconds.
    pub fn of(self, sorted: &[u64]) -> u64 {
        let value = match self {
            Self::Average => sorted.iter().map(|n| *n as f64).sum::<f64>() / sorted.len() as f64,
            Self::Percentile(p) => {
                let position = f64::from(p) / 100.0 * (sorted.len() - 1) as f64;
                let below = sorted[position.floor() as usize] as f64;
                let above = sorted[position.ceil() as usize] as f64;
                below + (above - below) * position.fract()
            }
        };
        value.round_ties_even() as u64
    }

    fn key(self) -> String {
        match self {
            Self::Average => "omnitrace.duration.average".to_owned(),
            Self::Percentile(p) => format!("omnitrace.duration.p{p}"),
        }
    }
}

/// What the statistics need of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Start of its first span.
    pub start: u64,
    /// From there to the end of its last one.
    pub total: u64,
    /// Its phases, each once: duration, and start after the parent's.
    pub phases: Vec<(PhaseId, u64, u64)>,
}

/// Durations of every phase over requests.
#[derive(Debug, Default, PartialEq)]
pub struct Durations {
    /// Phase → its requests' durations, and the sum of the starts after their parent's.
    phases: BTreeMap<PhaseId, (Vec<u64>, u128)>,
    /// Whole requests, first start to last end.
    totals: Vec<u64>,
    /// Start of the earliest request.
    earliest: Option<u64>,
}

/// The roles that a request has passed through from entry to end; none if any of
/// its spans is incomplete.
pub fn roles_completed(vocabulary: &Vocabulary, spans: &[Span]) -> Vec<RoleId> {
    let incomplete = |s: &Span| {
        s.attributes
            .iter()
            .any(|a| &*a.key == "omnitrace.incomplete")
    };
    if spans.iter().any(incomplete) {
        return Vec::new();
    }
    let entered = |entry: PhaseId| {
        spans
            .iter()
            .any(|s| s.origin.as_ref().is_some_and(|o| o.phase == entry))
    };
    vocabulary
        .roles()
        .filter(|(_, role)| entered(role.entry))
        .map(|(id, _)| id)
        .collect()
}

impl Outline {
    /// None of a request without spans.
    pub fn of(vocabulary: &Vocabulary, spans: &[Span]) -> Option<Self> {
        let start = spans.iter().map(|s| s.start).min()?;
        let end = spans.iter().map(|s| s.end).max().unwrap_or(start);
        let mut phases: Vec<(PhaseId, u64, u64)> = Vec::with_capacity(spans.len());
        for span in spans {
            let Some(origin) = &span.origin else { continue };
            // Of several tries the first counts.
            if phases.iter().any(|(phase, ..)| *phase == origin.phase) {
                continue;
            }
            let above = vocabulary.phase(origin.phase).parent;
            let parent = spans
                .iter()
                .find(|s| above.is_some() && s.origin.as_ref().map(|o| o.phase) == above);
            let offset = span.start.saturating_sub(parent.map_or(start, |p| p.start));
            phases.push((origin.phase, span.end - span.start, offset));
        }
        Some(Self {
            start,
            total: end - start,
            phases,
        })
    }
}

impl Durations {
    /// Adds one request's spans.
    pub fn add(&mut self, vocabulary: &Vocabulary, spans: &[Span]) {
        if let Some(outline) = Outline::of(vocabulary, spans) {
            self.push(&outline);
        }
    }

    /// Adds one request.
    pub fn push(&mut self, outline: &Outline) {
        let start = outline.start;
        self.earliest = Some(self.earliest.map_or(start, |e| e.min(start)));
        self.totals.push(outline.total);
        for (phase, duration, offset) in &outline.phases {
            let (durations, offsets) = self.phases.entry(*phase).or_default();
            durations.push(*duration);
            *offsets += u128::from(*offset);
        }
    }

    /// Adds what another has.
    pub fn absorb(&mut self, other: Self) {
        if self.totals.is_empty() {
            *self = other;
            return;
        }
        self.earliest = self.earliest.into_iter().chain(other.earliest).min();
        self.totals.extend(other.totals);
        for (phase, (durations, offsets)) in other.phases {
            let (all, sum) = self.phases.entry(phase).or_default();
            all.extend(durations);
            *sum += offsets;
        }
    }

    /// Requests added.
    pub fn requests(&self) -> usize {
        self.totals.len()
    }

    /// To be called after the last request.
    pub fn sort(&mut self) {
        for (durations, _) in self.phases.values_mut() {
            durations.sort_unstable();
        }
        self.totals.sort_unstable();
    }

    /// The trace of one statistic. Each span is as long as the statistic says
    /// and stands where it stands on average, moved as little as it takes to be
    /// inside its parent.
    pub fn trace(&self, vocabulary: &Vocabulary, statistic: Statistic) -> Vec<Span> {
        let Some(earliest) = self.earliest else {
            return Vec::new();
        };
        let title = statistic.title();
        let draw = Drawing {
            vocabulary,
            statistic,
            trace_id: TraceId::of_request(&title),
        };
        let whole = statistic.of(&self.totals);
        let root = draw.span(
            &title,
            "proxy",
            None,
            earliest,
            earliest + whole,
            whole,
            self.requests(),
        );
        let mut placed: BTreeMap<PhaseId, (SpanId, u64, u64)> = BTreeMap::new();
        let top = (root.span_id, root.start, root.end);
        let mut spans = vec![root];
        let mut waiting: Vec<PhaseId> = self.phases.keys().copied().collect();
        while !waiting.is_empty() {
            let before = waiting.len();
            waiting.retain(|phase| {
                let definition = vocabulary.phase(*phase);
                let parent = definition.parent.filter(|p| self.phases.contains_key(p));
                let parent = match parent {
                    // The whole request's own phase is the root.
                    None if definition.parent.is_none() && definition.kind == SpanKind::Server => {
                        placed.insert(*phase, top);
                        return false;
                    }
                    None => top,
                    Some(parent) => match placed.get(&parent) {
                        Some(place) => *place,
                        None => return true,
                    },
                };
                let (durations, offsets) = &self.phases[phase];
                let duration = statistic.of(durations);
                let offset = (offsets / durations.len().max(1) as u128) as u64;
                let (id, from, to) = parent;
                let shown = duration.min(to - from);
                let start = (from + offset).min(to - shown).max(from);
                let role = &vocabulary.role(definition.role).name;
                let mut span = draw.span(
                    &definition.name,
                    role,
                    Some(id),
                    start,
                    start + shown,
                    duration,
                    durations.len(),
                );
                span.kind = definition.kind;
                placed.insert(*phase, (span.span_id, span.start, span.end));
                spans.push(span);
                false
            });
            // The vocabulary refuses cycles, so each round places something.
            if waiting.len() == before {
                break;
            }
        }
        spans.sort_by_key(|s| (s.start, std::cmp::Reverse(s.end)));
        spans
    }
}

struct Drawing<'a> {
    vocabulary: &'a Vocabulary,
    statistic: Statistic,
    trace_id: TraceId,
}

impl Drawing<'_> {
    #[allow(clippy::too_many_arguments)]
    fn span(
        &self,
        name: &str,
        role: &str,
        parent: Option<SpanId>,
        start: u64,
        end: u64,
        duration: u64,
        requests: usize,
    ) -> Span {
        debug_assert!(self.vocabulary.role_named(role).is_some());
        Span {
            trace_id: self.trace_id,
            span_id: PhaseKey {
                trace_id: self.trace_id,
                request_id: "",
                remote_parent: None,
                entered: 0,
                role,
                node: "statistics",
                phase: name,
                occurrence: 0,
            }
            .span_id(),
            parent_span_id: parent,
            parent_is_remote: false,
            flags: 1,
            trace_state: Box::default(),
            name: name.into(),
            kind: SpanKind::Internal,
            start,
            end,
            status: Status::Unset,
            attributes: vec![
                Attribute::new(self.statistic.key(), duration as f64 / 1e9),
                Attribute::new("omnitrace.requests", requests as i64),
            ],
            events: Vec::new(),
            links: Vec::new(),
            dropped: Dropped::default(),
            scope: None,
            source: Arc::new(Source {
                role: role.into(),
                node: "".into(),
            }),
            origin: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate_as_numpy_does() {
        let sorted = [10, 20, 30, 40];
        let of = |s: Statistic| s.of(&sorted);
        assert_eq!(of(Statistic::Average), 25);
        assert_eq!(of(Statistic::Percentile(90)), 37);
        assert_eq!(of(Statistic::Percentile(99)), 40);
        assert_eq!(Statistic::Percentile(95).of(&[7]), 7);
    }
}
