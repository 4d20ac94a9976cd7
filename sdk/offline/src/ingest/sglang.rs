//! Which node of SGLang a file is of: its lines do not say.

use std::path::Path;
use std::sync::Arc;

use omnitrace::Vocabulary;
use omnitrace::legacy_log::{SglangStep, sglang_node};
use omnitrace::span::{Source, Span};

use crate::jaeger::span::role_of;

/// The service of which neither the file's name nor the action tells more.
const SERVICE: &str = "sglang";

/// The node that has written a file.
#[derive(Debug)]
pub(super) struct Node {
    /// Its name, which may be empty, and its role.
    pub(super) source: Arc<Source>,
    /// The file's name says the role.
    is_known: bool,
}

impl Default for Node {
    fn default() -> Self {
        Self::new("", None)
    }
}

impl Node {
    fn new(node: &str, role: Option<&str>) -> Self {
        Self {
            is_known: role.is_some(),
            source: Arc::new(Source {
                role: role.map_or_else(|| role_of(SERVICE).into(), Arc::from),
                node: node.into(),
            }),
        }
    }

    pub(super) fn of_file(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match sglang_node(&name) {
            Some((node, role)) => Self::new(node, role),
            None => Self::default(),
        }
    }

    /// The role of a request's action on it: the node's, else the action's own.
    pub(super) fn role_at<'a>(&'a self, vocabulary: &'a Vocabulary, action: &str) -> &'a str {
        let action = vocabulary.action_named(action).filter(|_| !self.is_known);
        let role = action.and_then(|action| vocabulary.action(action).roles.first());
        role.map_or(&*self.source.role, |role| &*vocabulary.role(*role).name)
    }

    /// The span of a step; none of one whose fields are damaged.
    pub(super) fn step(&self, step: &SglangStep<'_>) -> Option<Span> {
        step.span(&self.source)
    }
}
