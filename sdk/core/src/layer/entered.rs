//! The spans that a thread is in.

use std::cell::RefCell;

use tracing::span::Id;

/// One span that this thread is in.
struct Entered {
    /// Whose it is: a number of a layer.
    layer: u64,
    id: Id,
    /// It is further out too; a thread is in it until it has left it there.
    again: bool,
}

thread_local! {
    static ENTERED: RefCell<Vec<Entered>> = const { RefCell::new(Vec::new()) };
}

/// What a thread that is about to end does is of no account.
fn with<T>(f: impl FnOnce(&mut Vec<Entered>) -> T) -> Option<T> {
    ENTERED.try_with(|spans| f(&mut spans.borrow_mut())).ok()
}

pub(super) fn enter(layer: u64, id: &Id) {
    with(|spans| {
        let again = spans.iter().any(|e| e.layer == layer && e.id == *id);
        let id = id.clone();
        spans.push(Entered { layer, id, again });
    });
}

/// Spans may be left in any order.
pub(super) fn exit(layer: u64, id: &Id) {
    with(|spans| {
        let last = spans.iter().rposition(|e| e.layer == layer && e.id == *id);
        if let Some(at) = last {
            spans.remove(at);
        }
    });
}

/// The innermost.
#[inline]
pub(super) fn current(layer: u64) -> Option<Id> {
    with(|spans| {
        let mut inner = spans.iter().rev();
        let found = inner.find(|e| e.layer == layer && !e.again);
        found.map(|e| e.id.clone())
    })
    .flatten()
}
