//! One request: its ids, its trace and its visits.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::context::SpanContext;
use crate::event::Event;
use crate::id::TraceId;
use crate::vocabulary::{RoleId, Vocabulary};

use super::visit::Visit;

pub(super) struct Request {
    /// The canonical id.
    pub(super) id: Arc<str>,
    aliases: Vec<Box<str>>,
    pub(super) bound: Option<SpanContext>,
    /// Nearly always one.
    pub(super) visits: SmallVec<[Visit; 1]>,
    /// Main phases wait for the round's end.
    pub(super) closing: bool,
    /// The trace that its id gives, once that was asked for.
    derived: Option<TraceId>,
}

impl Request {
    pub(super) fn new(canonical: &str) -> Self {
        Self {
            id: canonical.into(),
            aliases: Vec::new(),
            bound: None,
            visits: SmallVec::new(),
            closing: false,
            derived: None,
        }
    }

    /// Makes it fit for another id; its visits are gone already.
    pub(super) fn clear(&mut self) {
        self.aliases = Vec::new();
        self.bound = None;
        self.visits = SmallVec::new();
        self.closing = false;
        self.derived = None;
    }

    /// The canonical id has number 0, the aliases follow.
    pub(super) fn key(&self, number: u32) -> Option<&str> {
        match number.checked_sub(1) {
            None => Some(&self.id),
            Some(at) => self.aliases.get(at as usize).map(|alias| &**alias),
        }
    }

    /// All ids with their numbers.
    pub(super) fn keys(&self) -> impl Iterator<Item = (u32, &str)> {
        let aliases = self.aliases.iter().map(|alias| &**alias);
        (0..).zip(std::iter::once(&*self.id).chain(aliases))
    }

    /// Adds an id; the answer is its number.
    pub(super) fn add_key(&mut self, alias: &str) -> u32 {
        self.aliases.push(alias.into());
        self.aliases.len() as u32
    }

    /// The trace of a visit: its context's, else the request's.
    pub(super) fn trace_of_visit(&mut self, at: usize) -> TraceId {
        match self.visits[at].context {
            Some(context) => context.trace_id,
            None => self.trace_id(),
        }
    }

    /// The trace of the whole request: a context's, else derived from its id.
    pub(super) fn trace_id(&mut self) -> TraceId {
        match self.context() {
            Some(context) => context.trace_id,
            None => *self
                .derived
                .get_or_insert_with(|| TraceId::of_request(&self.id)),
        }
    }

    fn context(&self) -> Option<SpanContext> {
        self.bound
            .or_else(|| self.visits.iter().find_map(|v| v.context))
    }

    /// The visit this event belongs to, made where there is none.
    pub(super) fn visit_of(
        &mut self,
        vocabulary: &Vocabulary,
        role: Option<RoleId>,
        event: &Event<'_>,
        spare: &mut Vec<Visit>,
    ) -> usize {
        let context = event.context.or(self.bound);
        let visits = &mut self.visits;
        // Such a role always knows its caller: no context means that it is the first.
        let timed = role.is_some_and(|role| vocabulary.role(role).timed);
        let same = |v: &Visit| v.role == role && v.is_on_node_of(event.source);
        let found = match context {
            None => visits
                .iter()
                .rposition(|v| same(v) && (!timed || v.context.is_none())),
            Some(context) => visits
                .iter()
                .rposition(|v| same(v) && v.is_called_by(context))
                // Events that came before their context adopt it while no id depends on it.
                .or_else(|| {
                    let at = visits
                        .iter()
                        .rposition(|v| same(v) && v.context.is_none())?;
                    (!timed && !visits[at].has_made_spans()).then_some(at)
                }),
        };
        match found {
            Some(at) if !timed || !visits[at].is_entered_again(vocabulary, event) => {
                if visits[at].context.is_none() {
                    visits[at].context = context;
                }
                at
            }
            _ => {
                visits.push(Visit::enter(spare.pop(), role, event.source, context));
                visits.len() - 1
            }
        }
    }
}
