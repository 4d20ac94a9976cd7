//! Nodes by small numbers.

use std::collections::HashMap;
use std::sync::Arc;

use omnitrace::span::Source;

/// Handles of known sources that are compared before anything is looked up.
const RECENT: usize = 16;

/// A node's number in one [`Sources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Node(u32);

impl Node {
    /// All that there can be, in order.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..).map(Self)
    }

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// All nodes so far. A log's spans share few handles of few nodes, so that most are known
/// by their address.
#[derive(Debug, Default)]
pub(super) struct Sources {
    all: Vec<Arc<Source>>,
    by_name: HashMap<Arc<Source>, Node>,
    recent: Vec<(Arc<Source>, Node)>,
    next: usize,
}

impl Sources {
    pub(super) fn number(&mut self, source: &Arc<Source>) -> Node {
        let mut recent = self.recent.iter();
        if let Some((_, node)) = recent.find(|(known, _)| Arc::ptr_eq(known, source)) {
            return *node;
        }
        let node = match self.by_name.get(source) {
            Some(node) => *node,
            None => {
                let node = Node(self.all.len() as u32);
                self.all.push(Arc::clone(source));
                self.by_name.insert(Arc::clone(source), node);
                node
            }
        };
        let entry = (Arc::clone(source), node);
        if self.recent.len() < RECENT {
            self.recent.push(entry);
        } else {
            self.recent[self.next % RECENT] = entry;
            self.next += 1;
        }
        node
    }

    pub(super) fn get(&self, node: Node) -> &Arc<Source> {
        &self.all[node.index()]
    }

    /// For each node of `other`, by its number there, its number here.
    pub(super) fn absorb(&mut self, other: &Self) -> Vec<Node> {
        other.all.iter().map(|s| self.number(s)).collect()
    }
}
