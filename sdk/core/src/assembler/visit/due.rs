//! Which phases of a visit can be made, and which are left when nothing more comes.

use smallvec::SmallVec;

use crate::vocabulary::{PhaseId, Vocabulary};

use super::{Bounds, Seen, Visit};
use crate::assembler::Scope;

/// Phases with their tries; rarely more than this many at once.
pub(in crate::assembler) type Phases = SmallVec<[(PhaseId, u16); 8]>;

impl Visit {
    /// From where to where this phase goes, if it can be made now and is this
    /// process's to make.
    #[inline]
    pub(in crate::assembler) fn due(
        &self,
        vocabulary: &Vocabulary,
        scope: Scope,
        phase: PhaseId,
        occurrence: u16,
    ) -> Option<Bounds> {
        let definition = vocabulary.phase(phase);
        // Nearly always the answer, so it is asked for first.
        if self.first_seen.lacks(definition.bits, occurrence) {
            return None;
        }
        if !definition.live || self.role != Some(definition.role) || self.is_made(phase, occurrence)
        {
            return None;
        }
        let bounds = self.bounds(definition, occurrence);
        let here = |end: Seen| scope == Scope::Whole || !end.foreign;
        (bounds.start.is_some() && bounds.end.is_some_and(here)).then_some(bounds)
    }

    /// Every phase that is [`Self::due`], in the vocabulary's order.
    pub(in crate::assembler) fn all_due(&self, vocabulary: &Vocabulary, scope: Scope) -> Phases {
        let Some(role) = self.role else {
            return Phases::new();
        };
        let mut tries: SmallVec<[u16; 32]> = self.moments.iter().map(|m| m.occurrence).collect();
        tries.sort_unstable();
        tries.dedup();
        let phases = vocabulary.role(role).phases.iter();
        phases
            .flat_map(|phase| tries.iter().map(|occurrence| (*phase, *occurrence)))
            .filter(|(phase, occurrence)| {
                self.due(vocabulary, scope, *phase, *occurrence).is_some()
            })
            .collect()
    }

    /// Whether a SERVER or CLIENT span of this process is still to come.
    pub(in crate::assembler) fn has_open_main(
        &self,
        vocabulary: &Vocabulary,
        scope: Scope,
    ) -> bool {
        self.open_mains(vocabulary, scope).next().is_some()
    }

    /// SERVER and CLIENT spans of this process that are still to come, some more
    /// than once.
    fn open_mains(
        &self,
        vocabulary: &Vocabulary,
        scope: Scope,
    ) -> impl Iterator<Item = (PhaseId, u16)> {
        let mains = self.role.map(|role| &vocabulary.role(role).mains);
        let here = move |id: &PhaseId| self.ends_here(vocabulary, scope, *id);
        let mains = mains.into_iter().flatten().copied().filter(here);
        mains.flat_map(move |id| {
            let phase = vocabulary.phase(id);
            let moments = self.moments.iter();
            let open = moments.filter(move |m| {
                // The end of the request may stand in for a phase's end, but does
                // not make one.
                vocabulary.action(m.action).span == id
                    && (!m.foreign || scope == Scope::Whole)
                    && (phase.start.contains(&m.action) || phase.end.contains(&m.action))
                    && !self.is_made(id, m.occurrence)
            });
            open.map(move |m| (id, m.occurrence))
        })
    }

    fn ends_here(&self, vocabulary: &Vocabulary, scope: Scope, phase: PhaseId) -> bool {
        scope == Scope::Whole
            || vocabulary
                .phase(phase)
                .end
                .iter()
                .any(|end| self.processes & 1 << vocabulary.action(*end).process.min(63) != 0)
    }

    /// What is left to show when nothing more will come: open SERVER and CLIENT
    /// spans, and parents of spans already made; children before parents.
    pub(in crate::assembler) fn incomplete(&self, vocabulary: &Vocabulary, scope: Scope) -> Phases {
        let mut missing = Phases::new();
        for open in self.open_mains(vocabulary, scope) {
            if !missing.contains(&open) {
                missing.push(open);
            }
        }
        let made = self.made.iter().map(|made| made.phase);
        let open = missing.iter().map(|(phase, _)| *phase);
        let mut wanted: SmallVec<[PhaseId; 32]> = made.chain(open).collect();
        while let Some(phase) = wanted.pop() {
            let definition = vocabulary.phase(phase);
            let Some(parent) = definition.parent else {
                continue;
            };
            if vocabulary.phase(parent).role != definition.role
                || self.is_made(parent, 0)
                || missing.contains(&(parent, 0))
                || !self.ends_here(vocabulary, scope, parent)
            {
                continue;
            }
            missing.push((parent, 0));
            wanted.push(parent);
        }
        missing.sort_by_key(|(phase, _)| std::cmp::Reverse(vocabulary.phase(*phase).depth));
        missing
    }
}
