//! Phases of which one caller sees everything: it says each in one record, past the assembler.

use super::{ActionId, Phase, PhaseId, RoleId, Vocabulary};

/// The actions of a phase, as a caller says them that sees all of its role's part in a request.
#[derive(Debug, Clone, Copy)]
pub struct PhaseActions<'a> {
    /// Name of the phase.
    pub name: &'a str,
    /// What starts it, all at the same moment.
    pub start: &'a [&'a str],
    /// What ends it.
    pub end: &'a str,
}

/// Such a phase in its vocabulary, from [`Vocabulary::known_phases`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownPhase {
    pub(crate) phase: PhaseId,
    /// The one that counts of those that start it.
    pub(crate) start: ActionId,
    pub(crate) end: ActionId,
    /// Which of the phase's measures are as long as itself, by bits; it has no others.
    pub(crate) measures: u8,
    /// How many actions it stands for.
    pub(crate) actions: u8,
}

/// A phase as it was asked for, with its names resolved.
struct Asked<'v> {
    id: PhaseId,
    phase: &'v Phase,
    start: Vec<ActionId>,
    end: ActionId,
}

impl Asked<'_> {
    fn actions(&self) -> impl Iterator<Item = ActionId> {
        self.start.iter().copied().chain([self.end])
    }
}

impl Vocabulary {
    /// Phases of a role of which a caller can say each in one record, because nothing else comes
    /// of their actions. A phase may be there more than once, with other actions that start it.
    ///
    /// None: the vocabulary does not have them so, or makes more of these actions than these
    /// phases, and only the assembler can say what. The role's entry must be among them.
    pub fn known_phases<const N: usize>(
        &self,
        role: &str,
        phases: [PhaseActions<'_>; N],
    ) -> Option<[KnownPhase; N]> {
        let role = self.role_named(role)?;
        let asked: Option<Vec<_>> = phases.iter().map(|p| self.asked(role, p)).collect();
        let asked = asked?;
        let all: Vec<ActionId> = asked.iter().flat_map(Asked::actions).collect();
        let is_asked = |id: PhaseId| asked.iter().any(|a| a.id == id);
        let has = |list: &[ActionId]| list.iter().any(|action| all.contains(action));
        let makes_more = self.phases().any(|(id, phase)| {
            phase.role == role
                && phase.live
                && !is_asked(id)
                && has(&phase.start)
                && has(&phase.end)
        });
        if makes_more || !is_asked(self.role(role).entry) {
            return None;
        }
        let known: Option<Vec<_>> = asked.iter().map(|each| self.known(each, &asked)).collect();
        known?.try_into().ok()
    }

    fn asked(&self, role: RoleId, actions: &PhaseActions<'_>) -> Option<Asked<'_>> {
        let (id, phase) = self
            .phases()
            .find(|(_, phase)| phase.role == role && *phase.name == *actions.name)?;
        let start = actions.start.iter().map(|name| self.action_named(name));
        let asked = Asked {
            id,
            phase,
            start: start.collect::<Option<_>>()?,
            end: self.action_named(actions.end)?,
        };
        let is_plain = |id| {
            let action = self.action(id);
            action.roles.contains(&role) && !(action.event || action.carried || action.offline_only)
        };
        (phase.live
            && self.is_main(id)
            && self.action(asked.end).span == id
            && asked.actions().all(is_plain))
        .then_some(asked)
    }

    /// A phase among the others that were asked for.
    fn known(&self, asked: &Asked<'_>, all: &[Asked<'_>]) -> Option<KnownPhase> {
        let others = all.iter().filter(|other| other.id != asked.id);
        let there: Vec<ActionId> = asked
            .actions()
            .chain(others.flat_map(Asked::actions))
            .collect();
        // The first known of a list counts.
        let first = |list: &[ActionId]| list.iter().copied().find(|a| there.contains(a));
        let is_own = |start, end| asked.start.contains(&start) && asked.end == end;
        let (start, end) = (first(&asked.phase.start)?, first(&asked.phase.end)?);
        let under_another = asked.phase.parent.is_some_and(|parent| {
            self.phase(parent).role == asked.phase.role
                && !all.iter().any(|other| other.id == parent)
        });
        if !is_own(start, end) || under_another {
            return None;
        }
        let mut measures = 0;
        for (at, measure) in asked.phase.measures.iter().enumerate() {
            let measure = &self.measures()[*measure];
            match (first(&measure.start), first(&measure.end)) {
                (Some(start), Some(end)) if at < 8 && is_own(start, end) => measures |= 1 << at,
                (Some(_), Some(_)) => return None,
                _ => {}
            }
        }
        Some(KnownPhase {
            phase: asked.id,
            start,
            end,
            measures,
            actions: u8::try_from(asked.actions().count()).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: PhaseActions<'_> = PhaseActions {
        name: "Trace for Omni Proxy",
        start: &["Time received"],
        end: "Received all tokens",
    };
    const CALL: PhaseActions<'_> = PhaseActions {
        name: "D running",
        start: &["Enter state D running"],
        end: "Finish D running",
    };

    #[test]
    fn a_phase_counts_from_the_first_of_the_actions_that_start_it() {
        let vocabulary = Vocabulary::omni_vllm();
        let action = |name| vocabulary.action_named(name).unwrap();
        let both = PhaseActions {
            start: &["Time received", "Start to schedule"],
            ..ROOT
        };
        let [root, scheduled, call] = vocabulary
            .known_phases("proxy", [ROOT, both, CALL])
            .unwrap();
        assert_eq!(
            (root.start, root.end, root.actions),
            (action("Time received"), action("Received all tokens"), 2)
        );
        assert_eq!(
            (scheduled.start, scheduled.actions),
            (action("Start to schedule"), 3)
        );
        let measures = &vocabulary.phase(root.phase).measures;
        let e2e = &vocabulary.measures()[measures[root.measures.trailing_zeros() as usize]];
        assert_eq!((root.measures.count_ones(), call.measures), (1, 0));
        assert_eq!(&*e2e.attribute, "gen_ai.latency.e2e");
    }

    #[test]
    fn where_more_comes_of_the_actions_the_assembler_must_say_what() {
        let vocabulary = Vocabulary::omni_vllm();
        let refused = |role, phases: [PhaseActions<'_>; 2]| {
            assert_eq!(vocabulary.known_phases(role, phases), None, "{phases:?}");
        };
        // Another role's, unknown names, and calls without the request that they are of.
        refused("decode", [ROOT, CALL]);
        refused(
            "proxy",
            [
                ROOT,
                PhaseActions {
                    name: "none",
                    ..CALL
                },
            ],
        );
        refused(
            "proxy",
            [
                ROOT,
                PhaseActions {
                    end: "none",
                    ..CALL
                },
            ],
        );
        refused("proxy", [CALL, CALL]);
        // "D running" would end with the request; "Process request" would be there too; a token
        // is an event; the span would have measures between others' actions.
        let end = "Received all tokens";
        refused("proxy", [ROOT, PhaseActions { end, ..CALL }]);
        let more = PhaseActions {
            name: "P running",
            start: &["Enter state P running"],
            end: "Finish P running",
        };
        let start = &["Enter state tokenization"];
        refused("proxy", [ROOT, PhaseActions { start, ..more }]);
        let end = "Proxy got first token";
        refused("proxy", [ROOT, PhaseActions { end, ..more }]);
    }
}
