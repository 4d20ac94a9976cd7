//! One request in numbers.

use std::sync::Arc;

use omnitrace::id::TraceId;
use omnitrace::span::{Span, SpanKind};
use omnitrace::value::Value;
use omnitrace::vocabulary::{ActionId, PhaseId, RoleId, Vocabulary};

use super::sources::{Node, Sources};
use super::{path, roles_completed};

/// Attributes that begin so are seconds, measured by whoever recorded the span.
const LATENCIES: [&str; 3] = ["gen_ai.latency.", "gen_ai.server.", "omnitrace.latency."];
pub(super) const FIRST_TOKEN: &str = "gen_ai.latency.time_to_first_token";
pub(super) const PER_TOKEN: &str = "gen_ai.server.time_per_output_token";
const GAPS: [&str; 2] = [
    "omnitrace.latency.second_token",
    "omnitrace.latency.third_token",
];

/// What the statistics need of one request.
#[derive(Debug, Clone)]
pub(super) struct Digest {
    /// Its canonical id.
    pub(super) id: Arc<str>,
    pub(super) trace_id: TraceId,
    /// Nanoseconds since 1970.
    pub(super) start: u64,
    /// Nanoseconds since 1970.
    pub(super) end: u64,
    pub(super) roles: Vec<RoleId>,
    pub(super) spans: Vec<Piece>,
    pub(super) calls: Vec<CallPiece>,
    pub(super) latencies: Vec<LatencyPiece>,
    /// Nanoseconds of each phase on the critical path.
    pub(super) path: Vec<(PhaseId, u64)>,
    /// The last thing that is known of one that is not complete.
    pub(super) last: Option<ActionId>,
}

/// One span of a phase.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) phase: PhaseId,
    pub(super) node: Node,
    pub(super) start: u64,
    pub(super) duration: u64,
}

/// What went from one node to another.
#[derive(Debug, Clone)]
pub(super) struct CallPiece {
    pub(super) from: Node,
    pub(super) to: Node,
    pub(super) what: Way,
    pub(super) duration: u64,
}

/// How one node had to do with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Way {
    /// A call, as the caller saw it.
    Call(PhaseId),
    /// Of a call, what the callee did not spend: both ways, and queues before its server.
    Between(PhaseId),
    /// A phase that needs both.
    Linked(PhaseId),
}

#[derive(Debug, Clone)]
pub(super) struct LatencyPiece {
    pub(super) key: Arc<str>,
    pub(super) role: RoleId,
    pub(super) nanos: u64,
}

/// What a vocabulary says that is asked of every span.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) vocabulary: Arc<Vocabulary>,
    /// By phase: another that it links to.
    links: Vec<Option<PhaseId>>,
    /// By phase: the client may send a request again, and this is its whole.
    is_timed_entry: Vec<bool>,
}

impl Shape {
    pub(super) fn new(vocabulary: &Arc<Vocabulary>) -> Self {
        let phases = || vocabulary.phases();
        let link = |id| {
            let mut to = phases().filter(|(_, p)| p.linked_from == Some(id));
            to.next().map(|(to, _)| to)
        };
        let is_entry = |id, role| {
            let role = vocabulary.role(role);
            role.timed && role.entry == id
        };
        Self {
            links: phases().map(|(id, _)| link(id)).collect(),
            is_timed_entry: phases().map(|(id, p)| is_entry(id, p.role)).collect(),
            vocabulary: Arc::clone(vocabulary),
        }
    }

    /// The spans of a request id, for each time that a client has sent it; none where
    /// that was only once.
    pub(super) fn split(&self, spans: &[Span]) -> Option<Vec<Vec<Span>>> {
        let is_entry = |s: &&Span| {
            let origin = s.origin.as_ref();
            origin.is_some_and(|o| self.is_timed_entry[usize::from(o.phase.0)])
        };
        let mut entries: Vec<&Span> = spans.iter().filter(is_entry).collect();
        if entries.len() < 2 {
            return None;
        }
        entries.sort_by_key(|s| s.start);
        let mut groups: Vec<Vec<Span>> = vec![Vec::new(); entries.len()];
        for span in spans {
            let mut top = span;
            // Trees are as deep as the vocabulary's, and no deeper.
            for _ in 0..spans.len() {
                let above = |s: &&Span| Some(s.span_id) == top.parent_span_id;
                match spans.iter().find(above) {
                    Some(parent) => top = parent,
                    None => break,
                }
            }
            // What hangs under none of them belongs to the latest that had begun.
            let own = entries.iter().position(|e| e.span_id == top.span_id);
            let before = entries.partition_point(|e| e.start <= top.start);
            let group = own.unwrap_or(before.saturating_sub(1));
            groups[group].push(span.clone());
        }
        Some(groups)
    }
}

impl Digest {
    /// Of all spans of one request; none of a request without a phase.
    pub(super) fn new(shape: &Shape, sources: &mut Sources, spans: &[Span]) -> Option<Self> {
        let vocabulary = &*shape.vocabulary;
        let first = spans.iter().find_map(|s| s.origin.as_ref())?;
        let mut digest = Self {
            id: Arc::clone(&first.request_id),
            trace_id: spans.first()?.trace_id,
            start: spans.iter().map(|s| s.start).min()?,
            end: spans.iter().map(|s| s.end).max()?,
            roles: roles_completed(vocabulary, spans),
            spans: Vec::with_capacity(spans.len()),
            calls: Vec::new(),
            latencies: Vec::new(),
            path: Vec::new(),
            last: None,
        };
        if digest.roles.is_empty() {
            let moments = spans.iter().filter_map(|s| s.origin.as_ref());
            let moments = moments.flat_map(|o| o.start.iter().chain(&o.end).chain(&o.seen));
            digest.last = moments.max_by_key(|m| m.time).map(|m| m.action);
            return Some(digest);
        }
        for span in spans {
            let Some(origin) = &span.origin else { continue };
            digest.spans.push(Piece {
                phase: origin.phase,
                node: sources.number(&span.source),
                start: span.start,
                duration: span.end - span.start,
            });
            if vocabulary.is_main(origin.phase) {
                digest.latencies(vocabulary, origin.phase, span);
                digest.called(sources, spans, span, origin.phase);
            }
            if let Some(other) = shape.links[usize::from(origin.phase.0)] {
                digest.linked(sources, spans, span, origin.phase, other);
            }
        }
        for (at, nanos) in path::critical(spans) {
            let Some(origin) = &spans[at].origin else {
                continue;
            };
            match digest.path.iter_mut().find(|(p, _)| *p == origin.phase) {
                Some((_, sum)) => *sum += nanos,
                None => digest.path.push((origin.phase, nanos)),
            }
        }
        Some(digest)
    }

    /// From the first start to the last end, in nanoseconds.
    pub(super) fn duration(&self) -> u64 {
        self.end - self.start
    }

    /// Time to the first token in nanoseconds, as the first role to know it says.
    pub(super) fn first_token(&self) -> Option<u64> {
        let of = self.latencies.iter().filter(|l| &*l.key == FIRST_TOKEN);
        of.min_by_key(|l| l.role).map(|l| l.nanos)
    }

    /// Its nodes' numbers after [`Sources::absorb`].
    pub(super) fn renumber(&mut self, nodes: &[Node]) {
        self.spans
            .iter_mut()
            .for_each(|p| p.node = nodes[p.node.index()]);
        for call in &mut self.calls {
            call.from = nodes[call.from.index()];
            call.to = nodes[call.to.index()];
        }
    }

    fn latencies(&mut self, vocabulary: &Vocabulary, phase: PhaseId, span: &Span) {
        let role = vocabulary.phase(phase).role;
        let (mut gaps, mut sum, mut has_per_token) = (0, 0.0, false);
        for attribute in &span.attributes {
            let Value::F64(seconds) = attribute.value else {
                continue;
            };
            let is_latency = LATENCIES.iter().any(|l| attribute.key.starts_with(l));
            if !is_latency || !(0.0..1e9).contains(&seconds) {
                continue;
            }
            has_per_token |= &*attribute.key == PER_TOKEN;
            if GAPS.contains(&&*attribute.key) {
                gaps += 1;
                sum += seconds;
            }
            self.latencies.push(LatencyPiece {
                key: Arc::clone(&attribute.key),
                role,
                nanos: (seconds * 1e9).round() as u64,
            });
        }
        // Of Omni Proxy no more is known than the time of three tokens.
        if gaps > 0 && !has_per_token {
            self.latencies.push(LatencyPiece {
                key: PER_TOKEN.into(),
                role,
                nanos: (sum / f64::from(gaps) * 1e9).round() as u64,
            });
        }
    }

    /// A SERVER span and the span of another node that called it.
    fn called(&mut self, sources: &mut Sources, spans: &[Span], span: &Span, phase: PhaseId) {
        if span.kind != SpanKind::Server {
            return;
        }
        let parent = |s: &&Span| Some(s.span_id) == span.parent_span_id;
        let Some(caller) = spans.iter().find(parent) else {
            return;
        };
        if caller.kind != SpanKind::Client || caller.source == span.source {
            return;
        }
        let (from, to) = (sources.number(&caller.source), sources.number(&span.source));
        let mut piece = |what, duration| {
            self.calls.push(CallPiece {
                from,
                to,
                what,
                duration,
            });
        };
        let call = caller.end - caller.start;
        if let Some(origin) = &caller.origin {
            piece(Way::Call(origin.phase), call);
        }
        let within = |time: u64| time.clamp(caller.start, caller.end);
        let inside = within(span.end) - within(span.start);
        piece(Way::Between(phase), call - inside);
    }

    /// A phase that links to one on another node, as pulling the KV cache does to freeing it.
    fn linked(
        &mut self,
        sources: &mut Sources,
        spans: &[Span],
        span: &Span,
        phase: PhaseId,
        other: PhaseId,
    ) {
        let is = |s: &&Span| s.origin.as_ref().is_some_and(|o| o.phase == other);
        if let Some(other) = spans.iter().find(is).filter(|o| o.source != span.source) {
            self.calls.push(CallPiece {
                from: sources.number(&other.source),
                to: sources.number(&span.source),
                what: Way::Linked(phase),
                duration: span.end - span.start,
            });
        }
    }
}
