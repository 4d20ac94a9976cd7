//! The vocabulary: which actions exist and which phases lie between them.
//!
//! A vocabulary is data (TOML). The built-in one, `omni-vllm`, holds the 37
//! actions of Omni Proxy and vLLM and the trace tree over them; what logs may hold
//! besides, SGLang's, is in [`Vocabulary::of_logs`]; another can be loaded with
//! [`Vocabulary::parse`].

use std::sync::{Arc, LazyLock};

use hashbrown::HashMap;

use crate::span::SpanKind;

mod known;
mod source;

pub use known::{KnownPhase, PhaseActions};

/// Index of an action in its vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ActionId(pub u16);

/// Index of a phase in its vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PhaseId(pub u16);

/// Index of a role in its vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoleId(pub u16);

/// One side of a request's way: the proxy, the prefill node, the decode node.
#[derive(Debug)]
pub struct Role {
    /// `proxy`, `prefill`, `decode`.
    pub name: Arc<str>,
    /// Service name in Jaeger unless the process is told another.
    pub service: Arc<str>,
    /// The phase that covers all the others of this role.
    pub entry: PhaseId,
    /// A client may send the same request id to it again: the time at which a
    /// request enters tells them apart.
    pub timed: bool,
    /// Its phases that a single process can make, in the order of the file.
    pub phases: Vec<PhaseId>,
    /// Those of them that are SERVER or CLIENT spans.
    pub mains: Vec<PhaseId>,
}

/// A named moment of a request.
#[derive(Debug)]
pub struct Action {
    /// Exact name, as in the legacy log.
    pub name: Arc<str>,
    /// Roles that record it; with more than one the recording node decides.
    pub roles: Vec<RoleId>,
    /// Process kind within the role's node (`api`, `engine`, …).
    pub process: u16,
    /// The phase that its attributes describe.
    pub span: PhaseId,
    /// Also shown as an event on that phase.
    pub event: bool,
    /// Phases that start or end with it.
    pub phases: Vec<PhaseId>,
    /// Its time must travel with the request to another process of the node.
    pub carried: bool,
    /// Nothing that a single process makes shows it.
    pub offline_only: bool,
}

/// A named span between two actions.
#[derive(Debug)]
pub struct Phase {
    /// Span name.
    pub name: Arc<str>,
    /// The role whose span it is.
    pub role: RoleId,
    /// OpenTelemetry span kind.
    pub kind: SpanKind,
    /// First known of these starts it.
    pub start: Vec<ActionId>,
    /// First known of these ends it.
    pub end: Vec<ActionId>,
    /// `start` and `end` as sets of bits: one test rules most phases out. None where an
    /// action is not among the vocabulary's first 64.
    pub(crate) bits: Option<(u64, u64)>,
    /// Its parent in the tree.
    pub parent: Option<PhaseId>,
    /// A phase whose span links to this one.
    pub linked_from: Option<PhaseId>,
    /// Made by the process that sees its end; otherwise offline only.
    pub live: bool,
    /// Ancestors in the tree.
    pub depth: usize,
    /// Measures that its span carries, as indices into [`Vocabulary::measures`].
    pub measures: Vec<usize>,
}

/// Seconds between two actions, kept as an attribute of a phase's span.
#[derive(Debug)]
pub struct Measure {
    /// Attribute key.
    pub attribute: Arc<str>,
    /// The phase that carries it.
    pub span: PhaseId,
    /// First known of these starts it.
    pub start: Vec<ActionId>,
    /// First known of these ends it.
    pub end: Vec<ActionId>,
}

/// What is sent from one host to another: received after it was sent, whatever the
/// hosts' clocks say.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// First known of these is when it was sent.
    pub from: Vec<ActionId>,
    /// First known of these is when it was received.
    pub to: Vec<ActionId>,
    /// By so many nanoseconds `from` may nevertheless come after `to`.
    pub slack: u64,
}

/// Actions, phases and measures with their names resolved to indices.
#[derive(Debug)]
pub struct Vocabulary {
    /// The vocabulary's own name.
    pub name: String,
    roles: Vec<Role>,
    actions: Vec<Action>,
    phases: Vec<Phase>,
    measures: Vec<Measure>,
    messages: Vec<Message>,
    by_name: HashMap<Arc<str>, ActionId>,
}

/// Why a vocabulary file was refused.
#[derive(Debug, thiserror::Error)]
pub enum VocabularyError {
    /// Not TOML of the right shape.
    #[error("vocabulary is not valid: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A name that nothing defines.
    #[error("{place} names the {kind} \"{name}\", which the vocabulary does not define")]
    Unknown {
        /// The table entry that names it.
        place: String,
        /// `role`, `action` or `phase`.
        kind: &'static str,
        /// The undefined name.
        name: String,
    },
    /// The same name twice.
    #[error("the {kind} \"{name}\" is defined twice")]
    Duplicate {
        /// `action` or `phase`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// Phases whose parents form a circle.
    #[error("the phase \"{0}\" is its own ancestor")]
    Cycle(String),
    /// An empty list or more entries than the format can hold.
    #[error("{0}")]
    Shape(String),
}

const OMNI_VLLM: &str = include_str!("../../vocabulary/omni-vllm.toml");
const SGLANG: &str = include_str!("../../vocabulary/sglang.toml");

static BUILT_IN: LazyLock<Arc<Vocabulary>> = LazyLock::new(|| built_in(&[OMNI_VLLM]));
static OF_LOGS: LazyLock<Arc<Vocabulary>> = LazyLock::new(|| built_in(&[OMNI_VLLM, SGLANG]));

fn built_in(texts: &[&str]) -> Arc<Vocabulary> {
    // The texts are part of the crate and a test parses them.
    #[allow(clippy::expect_used)]
    Arc::new(Vocabulary::parse_all(texts).expect("built-in vocabulary"))
}

impl Vocabulary {
    /// The built-in vocabulary of Omni Proxy and vLLM.
    pub fn omni_vllm() -> Arc<Self> {
        Arc::clone(&BUILT_IN)
    }

    /// All built-in vocabularies in one: [`Vocabulary::omni_vllm`], with the same indices,
    /// and SGLang's after it. Which of them a request follows is said by the names of its
    /// actions, so a directory may hold the logs of both.
    pub fn of_logs() -> Arc<Self> {
        Arc::clone(&OF_LOGS)
    }

    /// Reads a vocabulary from TOML text.
    pub fn parse(text: &str) -> Result<Self, VocabularyError> {
        Self::parse_all(&[text])
    }

    /// Reads several as one. No two may define the same role or the same action; phases
    /// of the same name stay apart.
    pub fn parse_all(texts: &[&str]) -> Result<Self, VocabularyError> {
        let files = texts.iter().map(|text| toml::from_str(text));
        source::resolve(files.collect::<Result<_, _>>()?)
    }

    /// All roles.
    pub fn roles(&self) -> impl Iterator<Item = (RoleId, &Role)> {
        (0u16..).map(RoleId).zip(&self.roles)
    }

    /// The role with this name.
    pub fn role_named(&self, name: &str) -> Option<RoleId> {
        self.roles()
            .find(|(_, r)| &*r.name == name)
            .map(|(id, _)| id)
    }

    /// All phases.
    pub fn phases(&self) -> impl Iterator<Item = (PhaseId, &Phase)> {
        (0u16..).map(PhaseId).zip(&self.phases)
    }

    /// All actions, in the order of the file.
    pub fn actions(&self) -> &[Action] {
        &self.actions
    }

    /// All measures.
    pub fn measures(&self) -> &[Measure] {
        &self.measures
    }

    /// All messages between hosts: a caller's to what it calls and back, as the tree of
    /// phases has them, and those that the vocabulary names besides.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The action with exactly this name.
    pub fn action_named(&self, name: &str) -> Option<ActionId> {
        self.by_name.get(name).copied()
    }

    /// The role behind an id of this vocabulary.
    pub fn role(&self, id: RoleId) -> &Role {
        &self.roles[usize::from(id.0)]
    }

    /// The action behind an id of this vocabulary.
    pub fn action(&self, id: ActionId) -> &Action {
        &self.actions[usize::from(id.0)]
    }

    /// The phase behind an id of this vocabulary.
    pub fn phase(&self, id: PhaseId) -> &Phase {
        &self.phases[usize::from(id.0)]
    }

    /// Whether a phase covers its whole role, as a SERVER or CLIENT span does;
    /// such a phase is shown even when its end never came.
    pub fn is_main(&self, id: PhaseId) -> bool {
        self.phase(id).kind != SpanKind::Internal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_vocabulary_has_the_37_legacy_actions_first() {
        let vocabulary = Vocabulary::omni_vllm();
        let at = |i: usize| &*vocabulary.actions()[i].name;
        assert_eq!(
            (at(0), at(10), at(16), at(25), at(31), at(33), at(36)),
            (
                "Start to schedule",
                "try to schedule in waiting queue",
                "Finish prefill pickle and start response",
                "Finish pull kv",
                "Finish decode pickle and start response",
                "Prefill free kv blocks",
                "Received all tokens",
            )
        );
        assert_eq!(vocabulary.actions().len(), 49);
    }

    #[test]
    fn what_logs_may_hold_is_the_built_in_vocabulary_and_sglangs_after_it() {
        let (live, logs) = (Vocabulary::omni_vllm(), Vocabulary::of_logs());
        let names = |v: &Vocabulary| -> Vec<String> {
            v.actions().iter().map(|a| a.name.to_string()).collect()
        };
        assert_eq!(names(&logs)[..49], names(&live));
        assert_eq!(logs.actions().len(), 49 + 35);
        let phases = |v: &Vocabulary| -> Vec<(String, u16, Option<PhaseId>)> {
            v.phases()
                .map(|(_, p)| (p.name.to_string(), p.role.0, p.parent))
                .collect()
        };
        let both = phases(&logs);
        assert_eq!(both[..phases(&live).len()], phases(&live));
        let entry = |role: &str| {
            let role = logs.role(logs.role_named(role).unwrap());
            let entry = logs.phase(role.entry);
            (
                role.service.to_string(),
                entry.name.to_string(),
                entry.depth,
            )
        };
        assert_eq!(
            [entry("prefill"), entry("sglang-prefill")],
            [
                ("vllm-prefill".into(), "Prefill".into(), 2),
                ("sglang-prefill".into(), "Prefill".into(), 0),
            ]
        );
        // Between the nodes of SGLang there are two messages, one in each direction.
        assert_eq!(logs.messages().len(), live.messages().len() + 2);
        assert_eq!(
            Vocabulary::parse_all(&[OMNI_VLLM, OMNI_VLLM])
                .unwrap_err()
                .to_string(),
            "the role \"proxy\" is defined twice"
        );
    }

    #[test]
    fn starts_that_end_in_another_process_are_carried() {
        let vocabulary = Vocabulary::omni_vllm();
        let carried: Vec<&str> = vocabulary
            .actions()
            .iter()
            .filter(|a| a.carried)
            .map(|a| &*a.name)
            .collect();
        assert_eq!(
            carried,
            [
                "PD api server get request",
                "Prefill done execute_model",
                "Start to send output in prefill stage",
                "Enter decode to generate",
                "Add need pulling sequence",
                "Start pull kv",
                "Finish pull kv",
                "Start append running sequece for decode",
                "Start to send output",
            ]
        );
    }

    #[test]
    fn messages_are_those_between_roles() {
        let vocabulary = Vocabulary::omni_vllm();
        let name = |ids: &[ActionId]| vocabulary.action(ids[0]).name.to_string();
        let all: Vec<(String, String, u64)> = vocabulary
            .messages()
            .iter()
            .map(|m| (name(&m.from), name(&m.to), m.slack))
            .collect();
        let expected = [
            ("Enter state P running", "PD api server get request", 0),
            (
                "Finish prefill pickle and start response",
                "Finish P running",
                0,
            ),
            ("Finish pull kv", "Prefill free kv blocks", 0),
            ("Enter state D running", "Enter decode to generate", 0),
            (
                "Finish decode pickle and start response",
                "Finish D running",
                0,
            ),
            (
                "First decode output token",
                "Proxy got first token",
                1_000_000,
            ),
        ];
        let expected = expected.map(|(from, to, slack)| (from.into(), to.into(), slack));
        assert_eq!(all, expected);
    }

    #[test]
    fn an_unknown_name_is_refused_with_its_place() {
        let text = r#"
            name = "x"
            [[role]]
            name = "r"
            service = "s"
            entry = "P"
            [[action]]
            name = "a"
            role = ["r"]
            process = "p"
            span = "P"
            [[phase]]
            name = "P"
            role = "r"
            start = ["a"]
            end = ["b"]
        "#;
        assert_eq!(
            Vocabulary::parse(text).unwrap_err().to_string(),
            "phase \"P\" names the action \"b\", which the vocabulary does not define"
        );
    }
}
