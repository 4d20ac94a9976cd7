//! The open blocks of a span object.

use omnitrace::Attribute;
use pyo3::prelude::*;

use crate::context::Variable;
use crate::opentelemetry::Seen;
use crate::opentelemetry::parent::Parent;

/// What a span object has.
#[derive(Default)]
pub(super) struct State {
    /// Set before a block: what every block of this object has.
    pub(super) attributes: Vec<Attribute>,
    /// The block that was opened last.
    pub(super) last: Option<Open>,
    /// The same object may be entered again, on other threads too.
    others: Vec<Open>,
}

/// An open block.
pub(super) struct Open {
    pub(super) start: u64,
    pub(super) context: omnitrace::SpanContext,
    pub(super) above: Option<Parent>,
    /// Set while the block was open.
    pub(super) attributes: Vec<Attribute>,
    pub(super) place: Place,
    /// What OpenTelemetry sees of it, where that is in use.
    pub(super) seen: Option<Seen>,
    /// The process that records it, as [`forks`] tells it; none does where recording
    /// is off.
    pub(super) owner: Option<u64>,
}

/// Where the variable of the current span stands.
pub(super) enum Place {
    /// It holds our span; the token puts back what was there.
    Here(Variable, Py<PyAny>),
    /// A suspended generator has taken it away, this value.
    Away(Variable, Py<PyAny>),
}

impl State {
    /// Adds a block.
    pub(super) fn open(&mut self, open: Open) {
        match &self.last {
            None => self.last = Some(open),
            Some(_) => self.others.extend(self.last.replace(open)),
        }
    }

    /// Takes out the block whose context is `here`, else the last one; with one block
    /// nobody is asked.
    pub(super) fn close(
        &mut self,
        here: impl FnOnce() -> Option<omnitrace::SpanContext>,
    ) -> Option<Open> {
        if self.others.is_empty() {
            return self.last.take();
        }
        let here = here();
        if self.last.as_ref().map(|open| open.context) != here
            && let Some(at) = self.others.iter().rposition(|o| Some(o.context) == here)
        {
            return Some(self.others.remove(at));
        }
        std::mem::replace(&mut self.last, self.others.pop())
    }
}
