//! Action names and sources as small numbers, the same for all threads.

use std::sync::{Arc, PoisonError, RwLock};

use hashbrown::HashMap;
use omnitrace::Vocabulary;
use omnitrace::span::Source;

use super::origin::Origin;

/// More than any log has; random bytes must not fill the memory.
const MAX_NAMES: usize = 60_000;

/// All names met so far. Numbers below the count of the vocabulary's actions are its
/// actions; the numbers beyond depend on which thread was first.
#[derive(Debug)]
pub(crate) struct Names {
    actions: RwLock<Interned<Box<str>>>,
    sources: RwLock<Interned<Origin<Box<str>>>>,
}

#[derive(Debug)]
struct Interned<T> {
    numbers: HashMap<T, u16>,
    all: Vec<T>,
}

impl<T: Clone + Eq + std::hash::Hash> Interned<T> {
    fn new() -> Self {
        Self {
            numbers: HashMap::new(),
            all: Vec::new(),
        }
    }

    fn number(&mut self, name: T) -> Option<u16> {
        if let Some(number) = self.numbers.get(&name) {
            return Some(*number);
        }
        if self.all.len() >= MAX_NAMES {
            return None;
        }
        let number = self.all.len() as u16;
        self.all.push(name.clone());
        self.numbers.insert(name, number);
        Some(number)
    }
}

impl Names {
    pub(crate) fn new(vocabulary: &Vocabulary) -> Self {
        let mut actions = Interned::new();
        for action in vocabulary.actions() {
            actions.number((&*action.name).into());
        }
        Self {
            actions: RwLock::new(actions),
            sources: RwLock::new(Interned::new()),
        }
    }
}

/// One thread's way to the numbers: it asks the others only for what it does not know.
pub(super) struct Numbers<'a> {
    names: &'a Names,
    actions: HashMap<Box<str>, u16>,
    /// By role, then by node.
    sources: HashMap<Box<str>, HashMap<Box<str>, u16>>,
}

impl<'a> Numbers<'a> {
    pub(super) fn new(names: &'a Names) -> Self {
        Self {
            names,
            actions: HashMap::new(),
            sources: HashMap::new(),
        }
    }

    /// None: there are too many already.
    pub(super) fn action(&mut self, name: &str) -> Option<u16> {
        if let Some(number) = self.actions.get(name) {
            return Some(*number);
        }
        let mut all = (self.names.actions.write()).unwrap_or_else(PoisonError::into_inner);
        let number = all.number(name.into())?;
        self.actions.insert(name.into(), number);
        Some(number)
    }

    /// None: there are too many already.
    pub(super) fn source(&mut self, role: &str, node: &str) -> Option<u16> {
        if let Some(number) = self.sources.get(role).and_then(|nodes| nodes.get(node)) {
            return Some(*number);
        }
        let number = self.origin(Origin {
            role,
            node,
            log: "",
        })?;
        let nodes = self.sources.entry(role.into()).or_default();
        nodes.insert(node.into(), number);
        Some(number)
    }
}

impl Numbers<'_> {
    /// The same of a source that is known by its log only; all threads are asked.
    pub(super) fn origin(&self, origin: Origin<&str>) -> Option<u16> {
        let mut all = (self.names.sources.write()).unwrap_or_else(PoisonError::into_inner);
        all.number(origin.map(Box::from))
    }
}

/// One thread's own copies of all names: counting references to shared ones would keep
/// the cores waiting for each other.
#[derive(Debug)]
pub(crate) struct Texts {
    actions: Vec<Arc<str>>,
    /// Those of different logs are different even where they are equal.
    sources: Vec<Arc<Source>>,
    nothing: (Arc<str>, Arc<Source>),
}

impl Texts {
    pub(crate) fn new(names: &Names) -> Self {
        let actions = (names.actions.read()).unwrap_or_else(PoisonError::into_inner);
        let sources = (names.sources.read()).unwrap_or_else(PoisonError::into_inner);
        let source = |role: &str, node: &str| {
            Arc::new(Source {
                role: role.into(),
                node: node.into(),
            })
        };
        Self {
            actions: actions.all.iter().map(|name| (&**name).into()).collect(),
            sources: (sources.all.iter())
                .map(|origin| source(&origin.role, &origin.node))
                .collect(),
            nothing: ("".into(), source("", "")),
        }
    }

    pub(crate) fn action(&self, number: u16) -> &Arc<str> {
        (self.actions.get(usize::from(number))).unwrap_or(&self.nothing.0)
    }

    /// The number of the source that an event of these texts has, else of one like it.
    pub(crate) fn number(&self, source: &Arc<Source>) -> Option<usize> {
        let mut all = self.sources.iter();
        let own = all.position(|known| Arc::ptr_eq(known, source));
        own.or_else(|| self.sources.iter().position(|known| known == source))
    }

    pub(crate) fn source(&self, number: u16) -> &Arc<Source> {
        (self.sources.get(usize::from(number))).unwrap_or(&self.nothing.1)
    }
}

impl Names {
    /// All sources by their numbers.
    pub(super) fn origins(&self) -> Vec<Origin<Box<str>>> {
        let sources = (self.sources.read()).unwrap_or_else(PoisonError::into_inner);
        sources.all.clone()
    }
}

/// The place of each name in an order that does not depend on the threads.
pub(super) struct Ranks {
    actions: Vec<u16>,
    sources: Vec<u16>,
    /// Of each source the first that differs from it in nothing but its log.
    alike: Vec<u16>,
}

impl Ranks {
    /// Of all names met; the first `known` actions are the vocabulary's, in its order.
    pub(super) fn new(names: &Names, known: usize) -> Self {
        let actions = (names.actions.read()).unwrap_or_else(PoisonError::into_inner);
        let sources = (names.sources.read()).unwrap_or_else(PoisonError::into_inner);
        let action = |n: &usize| (*n.min(&known), &actions.all[*n]);
        Self {
            actions: ranks(actions.all.len(), |a, b| action(a).cmp(&action(b))),
            sources: ranks(sources.all.len(), |a, b| {
                sources.all[*a].cmp(&sources.all[*b])
            }),
            alike: (sources.all.iter())
                .map(|own| {
                    let first = sources.all.iter().position(|other| own.is_like(other));
                    first.unwrap_or_default() as u16
                })
                .collect(),
        }
    }

    pub(super) fn action(&self, number: u16) -> u16 {
        self.actions
            .get(usize::from(number))
            .copied()
            .unwrap_or(u16::MAX)
    }

    /// Whether two sources are the same but for their logs.
    pub(super) fn are_alike(&self, a: u16, b: u16) -> bool {
        a == b || self.alike.get(usize::from(a)) == self.alike.get(usize::from(b))
    }

    pub(super) fn source(&self, number: u16) -> u16 {
        self.sources
            .get(usize::from(number))
            .copied()
            .unwrap_or(u16::MAX)
    }
}

fn ranks(count: usize, order: impl Fn(&usize, &usize) -> std::cmp::Ordering) -> Vec<u16> {
    let mut sorted: Vec<usize> = (0..count).collect();
    sorted.sort_by(order);
    let mut ranks = vec![0; count];
    for (rank, number) in sorted.into_iter().enumerate() {
        ranks[number] = rank as u16;
    }
    ranks
}
