//! Finished phases: one record in place of a phase's actions.

use crate::event::FinishedPhase;
use crate::key::KeyRef;
use crate::queue::PhaseRecord;
use crate::value::ValueRef;
use crate::vocabulary::{KnownPhase, PhaseActions, Vocabulary};

use super::Recorder;

type Pairs<'a> = Vec<(KeyRef<'a>, ValueRef<'a>)>;

impl Recorder {
    /// Phases that may be recorded with [`Self::finished_phase`], by whoever sees all of this
    /// process's part in a request. None: their actions have to be recorded, because the
    /// vocabulary makes more of them, or the legacy log has each as it happens.
    pub fn known_phases<const N: usize>(
        &self,
        phases: [PhaseActions<'_>; N],
    ) -> Option<[KnownPhase; N]> {
        if self.logs_actions {
            return None;
        }
        self.vocabulary.known_phases(&self.role, phases)
    }

    /// Records a finished phase: what its actions, with these attributes, would have made. Nothing
    /// else is to be recorded of the phase, and nothing is to have been extracted for the request.
    /// False: the queue was full; it is counted.
    #[inline]
    pub fn finished_phase(&self, phase: &FinishedPhase<'_>) -> bool {
        // Keys with a number are the caller's own, and said once.
        let has_text = |(key, _): &(KeyRef<'_>, _)| matches!(key, KeyRef::Text(_));
        if phase.attributes.iter().any(has_text) {
            return self.finished_with_texts(phase);
        }
        self.push_phase(phase)
    }

    fn finished_with_texts(&self, phase: &FinishedPhase<'_>) -> bool {
        let attributes = &unique(&self.vocabulary, phase);
        self.push_phase(&FinishedPhase {
            attributes,
            ..*phase
        })
    }

    #[inline]
    fn push_phase(&self, phase: &FinishedPhase<'_>) -> bool {
        let pushed = self.push_kept(phase.attributes, |kept| {
            self.queue.push(&PhaseRecord::new(phase, kept))
        });
        self.count(pushed)
    }
}

/// The attributes with each key once: the last value wins and keeps the first one's place, and
/// what is derived from the phase is not the caller's to say.
fn unique<'a>(vocabulary: &Vocabulary, phase: &FinishedPhase<'a>) -> Pairs<'a> {
    let measures = &vocabulary.phase(phase.phase.phase).measures;
    let is_derived = |key: &str| match key {
        "gen_ai.request.id" | "omnitrace.role" => true,
        "omnitrace.occurrence" => phase.occurrence > 0,
        _ => measures.iter().take(8).enumerate().any(|(at, measure)| {
            let is_there = phase.phase.measures >> at & 1 != 0;
            is_there && *vocabulary.measures()[*measure].attribute == *key
        }),
    };
    let mut list: Pairs<'a> = Vec::with_capacity(phase.attributes.len());
    for (key, value) in phase.attributes {
        match list
            .iter_mut()
            .find(|(known, _)| known.text() == key.text())
        {
            Some((_, known)) => *known = *value,
            None if is_derived(key.text()) => {}
            None => list.push((*key, *value)),
        }
    }
    list
}
