//! The vocabulary file's shape, and its way to resolved indices.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;

use super::{
    Action, ActionId, Measure, Message, Phase, PhaseId, Role, RoleId, Vocabulary, VocabularyError,
};
use crate::span::SpanKind;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    name: String,
    role: Vec<RoleText>,
    action: Vec<ActionText>,
    phase: Vec<PhaseText>,
    #[serde(default)]
    measure: Vec<MeasureText>,
    #[serde(default)]
    message: Vec<MessageText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoleText {
    name: String,
    service: String,
    entry: String,
    #[serde(default)]
    timed: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionText {
    name: String,
    role: Vec<String>,
    process: String,
    span: String,
    #[serde(default)]
    event: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PhaseText {
    name: String,
    role: String,
    #[serde(default)]
    kind: SpanKind,
    start: Vec<String>,
    end: Vec<String>,
    parent: Option<String>,
    linked_from: Option<String>,
    #[serde(default = "yes")]
    live: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MeasureText {
    attribute: String,
    span: String,
    start: Vec<String>,
    end: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageText {
    from: Vec<String>,
    to: Vec<String>,
    #[serde(default)]
    slack_ms: u32,
}

fn yes() -> bool {
    true
}

/// Names of one kind in one file and the index each stands for.
struct Names {
    kind: &'static str,
    index: HashMap<String, u16>,
}

impl Names {
    fn new<'a>(
        kind: &'static str,
        first: usize,
        names: impl Iterator<Item = &'a String>,
    ) -> Result<Self, VocabularyError> {
        let mut index = HashMap::new();
        for name in names {
            let Ok(next) = u16::try_from(first + index.len()) else {
                return Err(VocabularyError::Shape(format!("more than 65,536 {kind}s")));
            };
            if index.insert(name.clone(), next).is_some() {
                return Err(VocabularyError::Duplicate {
                    kind,
                    name: name.clone(),
                });
            }
        }
        Ok(Self { kind, index })
    }

    fn get(&self, name: &str, place: &str) -> Result<u16, VocabularyError> {
        self.index
            .get(name)
            .copied()
            .ok_or_else(|| VocabularyError::Unknown {
                place: place.to_owned(),
                kind: self.kind,
                name: name.to_owned(),
            })
    }

    fn actions(&self, names: &[String], place: &str) -> Result<Vec<ActionId>, VocabularyError> {
        if names.is_empty() {
            return Err(VocabularyError::Shape(format!(
                "{place} has an empty start or end"
            )));
        }
        names
            .iter()
            .map(|n| self.get(n, place).map(ActionId))
            .collect()
    }
}

/// One vocabulary of all `files`. Each has roles and actions of its own; names of phases
/// are its own affair.
pub(super) fn resolve(files: Vec<File>) -> Result<Vocabulary, VocabularyError> {
    let names: Vec<&str> = files.iter().map(|file| &*file.name).collect();
    let mut vocabulary = Vocabulary {
        name: names.join(" + "),
        roles: Vec::new(),
        actions: Vec::new(),
        phases: Vec::new(),
        measures: Vec::new(),
        messages: Vec::new(),
        by_name: hashbrown::HashMap::default(),
    };
    let mut processes = Vec::new();
    let mut messages = Vec::new();
    for file in files {
        messages.extend(add(file, &mut vocabulary, &mut processes)?);
    }
    send_along_the_tree(&mut vocabulary);
    vocabulary.messages.extend(messages);
    index_phases(&mut vocabulary);
    index_roles(&mut vocabulary);
    measure_depths(&mut vocabulary)?;
    Ok(vocabulary)
}

/// Adds what a file defines; the answer is the messages that it names.
fn add(
    file: File,
    vocabulary: &mut Vocabulary,
    processes: &mut Vec<String>,
) -> Result<Vec<Message>, VocabularyError> {
    let (roles, actions, phases) = (
        vocabulary.roles.len(),
        vocabulary.actions.len(),
        vocabulary.phases.len(),
    );
    let roles = Names::new("role", roles, file.role.iter().map(|r| &r.name))?;
    let actions = Names::new("action", actions, file.action.iter().map(|a| &a.name))?;
    let phases = Names::new("phase", phases, file.phase.iter().map(|p| &p.name))?;
    let duplicate = |kind, name: &str| VocabularyError::Duplicate {
        kind,
        name: name.to_owned(),
    };
    for role in &file.role {
        let place = format!("role \"{}\"", role.name);
        if vocabulary.role_named(&role.name).is_some() {
            return Err(duplicate("role", &role.name));
        }
        vocabulary.roles.push(Role {
            name: role.name.as_str().into(),
            service: role.service.as_str().into(),
            entry: PhaseId(phases.get(&role.entry, &place)?),
            timed: role.timed,
            phases: Vec::new(),
            mains: Vec::new(),
        });
    }
    for action in &file.action {
        let place = format!("action \"{}\"", action.name);
        let process = processes
            .iter()
            .position(|p| *p == action.process)
            .unwrap_or_else(|| {
                processes.push(action.process.clone());
                processes.len() - 1
            });
        if action.role.is_empty() {
            return Err(VocabularyError::Shape(format!("{place} has no role")));
        }
        let name: Arc<str> = action.name.as_str().into();
        let id = ActionId(actions.get(&action.name, &place)?);
        if vocabulary.by_name.insert(Arc::clone(&name), id).is_some() {
            return Err(duplicate("action", &name));
        }
        vocabulary.actions.push(Action {
            name,
            roles: action
                .role
                .iter()
                .map(|r| roles.get(r, &place).map(RoleId))
                .collect::<Result<_, _>>()?,
            process: process as u16,
            span: PhaseId(phases.get(&action.span, &place)?),
            event: action.event,
            phases: Vec::new(),
            carried: false,
            offline_only: false,
        });
    }
    for phase in file.phase {
        let place = format!("phase \"{}\"", phase.name);
        let by_name = |name: &Option<String>| -> Result<Option<PhaseId>, VocabularyError> {
            name.as_deref()
                .map(|n| phases.get(n, &place).map(PhaseId))
                .transpose()
        };
        vocabulary.phases.push(Phase {
            role: RoleId(roles.get(&phase.role, &place)?),
            kind: phase.kind,
            start: actions.actions(&phase.start, &place)?,
            end: actions.actions(&phase.end, &place)?,
            bits: None,
            parent: by_name(&phase.parent)?,
            linked_from: by_name(&phase.linked_from)?,
            live: phase.live,
            depth: 0,
            measures: Vec::new(),
            name: phase.name.into(),
        });
    }
    for measure in file.measure {
        let place = format!("measure \"{}\"", measure.attribute);
        vocabulary.measures.push(Measure {
            span: PhaseId(phases.get(&measure.span, &place)?),
            start: actions.actions(&measure.start, &place)?,
            end: actions.actions(&measure.end, &place)?,
            attribute: measure.attribute.into(),
        });
    }
    let message = |message: MessageText| {
        Ok(Message {
            from: actions.actions(&message.from, "message")?,
            to: actions.actions(&message.to, "message")?,
            slack: u64::from(message.slack_ms) * 1_000_000,
        })
    };
    file.message.into_iter().map(message).collect()
}

/// A role's entry is called by its parent and answers it; a phase that no single process
/// can make begins on one node and ends on another.
fn send_along_the_tree(vocabulary: &mut Vocabulary) {
    let message = |from: &[ActionId], to: &[ActionId]| Message {
        from: from.to_vec(),
        to: to.to_vec(),
        slack: 0,
    };
    for phase in &vocabulary.phases {
        if !phase.live {
            vocabulary.messages.push(message(&phase.start, &phase.end));
            continue;
        }
        let parent = phase.parent.map(|p| &vocabulary.phases[usize::from(p.0)]);
        if let Some(parent) = parent.filter(|parent| parent.role != phase.role) {
            let messages = &mut vocabulary.messages;
            messages.push(message(&parent.start, &phase.start));
            messages.push(message(&phase.end, &parent.end));
        }
    }
}

fn index_phases(vocabulary: &mut Vocabulary) {
    for (index, phase) in (0u16..).zip(&vocabulary.phases) {
        for action in phase.start.iter().chain(&phase.end) {
            let known = &mut vocabulary.actions[usize::from(action.0)].phases;
            if !known.contains(&PhaseId(index)) {
                known.push(PhaseId(index));
            }
        }
        if !phase.live {
            continue;
        }
        carry(&mut vocabulary.actions, &phase.start, &phase.end);
    }
    // The process that makes the span makes its measures too.
    for measure in &vocabulary.measures {
        let span = &vocabulary.phases[usize::from(measure.span.0)];
        carry(&mut vocabulary.actions, &measure.start, &span.end);
        carry(&mut vocabulary.actions, &measure.end, &span.end);
    }
}

/// Notes that the times of `what` are needed where any of `at` happens.
fn carry(actions: &mut [Action], what: &[ActionId], at: &[ActionId]) {
    for action in what {
        let from = actions[usize::from(action.0)].process;
        let crosses = |at: &ActionId| actions[usize::from(at.0)].process != from;
        if at.iter().any(crosses) {
            actions[usize::from(action.0)].carried = true;
        }
    }
}

/// Fills in what can be known before the first event.
fn index_roles(vocabulary: &mut Vocabulary) {
    for (index, phase) in (0u16..).zip(&vocabulary.phases).filter(|(_, p)| p.live) {
        let role = &mut vocabulary.roles[usize::from(phase.role.0)];
        role.phases.push(PhaseId(index));
        if phase.kind != SpanKind::Internal {
            role.mains.push(PhaseId(index));
        }
    }
    for (index, measure) in vocabulary.measures.iter().enumerate() {
        let phase = &mut vocabulary.phases[usize::from(measure.span.0)];
        phase.measures.push(index);
    }
    for phase in &mut vocabulary.phases {
        phase.bits = bits(&phase.start).zip(bits(&phase.end));
    }
    let phases = &vocabulary.phases;
    for action in &mut vocabulary.actions {
        let live = |p: &PhaseId| phases[usize::from(p.0)].live;
        action.offline_only = !action.event && !action.phases.iter().any(live);
    }
}

/// A set of bits; none for a list that does not fit.
fn bits(actions: &[ActionId]) -> Option<u64> {
    actions.iter().try_fold(0, |set, action| {
        Some(set | 1u64.checked_shl(action.0.into())?)
    })
}

/// Refuses a phase that is its own ancestor.
fn measure_depths(vocabulary: &mut Vocabulary) -> Result<(), VocabularyError> {
    for index in 0..vocabulary.phases.len() {
        let phase = &vocabulary.phases[index];
        let mut ancestor = phase.parent;
        let mut steps = 0;
        while let Some(parent) = ancestor {
            steps += 1;
            if usize::from(parent.0) == index || steps > vocabulary.phases.len() {
                return Err(VocabularyError::Cycle(phase.name.to_string()));
            }
            ancestor = vocabulary.phase(parent).parent;
        }
        vocabulary.phases[index].depth = steps;
    }
    Ok(())
}
