//! Requests under way that are recorded when they are over, as most are. Those that their worker
//! does not live to finish are recorded as it ends.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::context::RequestContext;
use crate::recorder::Recorder;

type Live = NonNull<RequestContext<'static>>;

/// They are in their requests' pools; each knows its place here.
pub(crate) struct LiveRequests {
    list: RefCell<Vec<Live>>,
    /// Those of which nothing has been recorded.
    unsaid: Cell<u64>,
    /// The same, for the exporter's thread.
    shown: Arc<AtomicU64>,
}

impl LiveRequests {
    pub(crate) fn new(shown: Arc<AtomicU64>) -> Self {
        Self {
            list: RefCell::default(),
            unsaid: Cell::new(0),
            shown,
        }
    }

    /// Adds a request; it is to be removed before it goes.
    pub(crate) fn insert(&self, context: &RequestContext<'_>) {
        let mut list = self.list.borrow_mut();
        context.place.set(u32::try_from(list.len()).ok());
        list.push(NonNull::from(context).cast());
        self.count(1);
    }

    /// Notes that something is recorded of a request, if it is here.
    pub(crate) fn begin(&self, context: &RequestContext<'_>) {
        if context.place.get().is_some() {
            self.count(-1);
        }
    }

    /// Removes a request.
    pub(crate) fn remove(&self, context: &RequestContext<'_>) {
        let Some(place) = context.place.take() else {
            return;
        };
        let mut list = self.list.borrow_mut();
        list.swap_remove(place as usize);
        if let Some(moved) = list.get(place as usize) {
            // SAFETY: what is in the list is live, and only this thread uses it.
            unsafe { moved.as_ref() }.place.set(Some(place));
        }
        if !context.has_begun() {
            self.count(-1);
        }
    }

    /// Records what is known of all of them.
    pub(crate) fn say(&self, recorder: &Recorder) {
        for context in self.list.take() {
            // SAFETY: as in `remove`.
            let context = unsafe { context.as_ref() };
            context.say(recorder);
            context.place.set(None);
        }
    }

    fn count(&self, change: i64) {
        let unsaid = self.unsaid.get().saturating_add_signed(change);
        self.unsaid.set(unsaid);
        self.shown.store(unsaid, Ordering::Relaxed);
    }
}
