//! What stands around the spans of a request, for each scope of the process.

use std::sync::Arc;

use crate::encode::{Envelope, ScopeEnvelope};
use crate::scopes::Scopes;
use crate::span::ScopeId;
use crate::value::Attribute;

pub(super) struct Envelopes {
    resource: Envelope,
    scopes: Arc<Scopes>,
    /// By scope, as far as they have been asked for.
    known: Vec<ScopeEnvelope>,
}

impl Envelopes {
    pub(super) fn new(resource: &[Attribute], scopes: Arc<Scopes>) -> Self {
        let own = ScopeEnvelope::new(&scopes.get(ScopeId::default()));
        Self {
            resource: Envelope::new(resource),
            scopes,
            known: vec![own],
        }
    }

    pub(super) fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// The longest that [`Self::around`] puts in front of omnitrace's own spans.
    pub(super) fn room(&self) -> usize {
        let longest = u32::MAX as usize;
        self.known.first().map_or(0, |own| {
            // Other scopes' names are often a little longer.
            self.resource.around(own, longest).0.len() + 128
        })
    }

    /// What makes a request of one scope's spans, `spans` bytes long: in front of
    /// them, and behind.
    pub(super) fn around(&mut self, scope: ScopeId, spans: usize) -> (Vec<u8>, &[u8]) {
        self.learn(scope);
        self.resource
            .around(&self.known[usize::from(scope.0)], spans)
    }

    /// A request of several scopes' spans.
    pub(super) fn whole(&mut self, parts: Vec<(ScopeId, Vec<&[u8]>)>) -> Vec<u8> {
        parts.iter().for_each(|(scope, _)| self.learn(*scope));
        let known = |id: ScopeId| &self.known[usize::from(id.0)];
        let parts: Vec<_> = parts
            .into_iter()
            .map(|(scope, runs)| (known(scope), runs))
            .collect();
        self.resource.whole(&parts)
    }

    fn learn(&mut self, scope: ScopeId) {
        for id in self.known.len()..=usize::from(scope.0) {
            self.known
                .push(ScopeEnvelope::new(&self.scopes.get(ScopeId(id as u16))));
        }
    }
}
