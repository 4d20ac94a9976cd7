//! What Omni Proxy's lines say of one request.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;

use omnitrace::ValueRef;
use omnitrace::legacy_log::ProxyAction;

use super::mailbox::Letter;
use super::requests::{Key, Live, key};
use super::{mailbox, with_worker};
use crate::actions::{self, Try};
use crate::context::RequestContext;
use crate::recorder::{Attributes, Recorder};
use crate::request::{Request, bytes};

/// Where Omni Proxy sends its prefill subrequests.
const PREFILL_URI: &[u8] = b"/prefill_sub/";

const P_SCHEDULED: &str = "Enter state P scheduled";
const D_SCHEDULED: &str = "Enter state D scheduled";

/// The letter that says when this action was, if another worker may see it.
pub(super) fn letter_of(action: &str) -> Option<Letter> {
    match action {
        P_SCHEDULED => Some(Letter::PScheduled),
        D_SCHEDULED => Some(Letter::DScheduled),
        _ => None,
    }
}

/// Whether a request is Omni Proxy's own to a prefill node.
pub(crate) fn is_prefill(request: Request<'_>) -> bool {
    // SAFETY: the URI lives as long as the request.
    !request.is_main() && unsafe { bytes(request.uri) }.starts_with(PREFILL_URI)
}

/// What is known of one request whose location listens.
#[derive(Default)]
pub(crate) struct OmniRequest {
    /// Omni Proxy had made a context up for it.
    pub(crate) had_made_context: bool,
    /// Under which it is known to the worker.
    known: Known,
    /// What only the master worker sees has been seen, by letter.
    scheduled: [Cell<bool>; Letter::COUNT],
    /// When it went to its first prefill and decode node; nanoseconds since 1970, 0 is never.
    started: [Cell<u64>; Try::COUNT],
    /// When the first reads of the answer were, likewise.
    reads: [Cell<u64>; actions::TOKENS.len()],
    pub(super) prefill: Node,
    pub(super) decode: Node,
}

/// A prefill or decode node.
#[derive(Default)]
pub(super) struct Node {
    /// Its place in Omni Proxy's list.
    index: Cell<Option<u32>>,
    /// Host and port.
    address: RefCell<String>,
}

impl Node {
    pub(super) fn set_index(&self, index: u32) {
        self.index.set(Some(index));
    }

    fn set_address(&self, action: ProxyAction<'_>) {
        if let Some(address) = action.upstream() {
            address.clone_into(&mut self.address.borrow_mut());
        }
    }
}

impl OmniRequest {
    pub(crate) fn new(had_made_context: bool) -> Self {
        Self {
            had_made_context,
            ..Self::default()
        }
    }

    /// Makes it known to its worker by its id. `context` is what it is in, at its final place.
    pub(crate) fn register(context: &RequestContext<'_>, id: &[u8], connection: u64) {
        let Some(omni) = &context.omni else { return };
        let (key, live) = (key(id), NonNull::from(context).cast());
        with_worker(|worker| worker.requests.insert(key, connection, live));
        omni.known.0.set(Some((key, live)));
    }

    /// When it went to the first node of a kind, in nanoseconds since 1970.
    pub(crate) fn started(&self, kind: Try) -> Option<u64> {
        Some(self.started[kind as usize].get()).filter(|time| *time != 0)
    }

    /// Takes in that an action of the request was at this time.
    pub(super) fn hear(
        &self,
        context: &RequestContext<'_>,
        recorder: &Recorder,
        action: ProxyAction<'_>,
        time: u64,
    ) {
        // Stamps are cut to microseconds.
        let time = time.max(context.arrived);
        if let Some(at) = actions::TOKENS.iter().position(|name| *name == action.name) {
            self.reads[at].set(time);
            return;
        }
        match action.name {
            // The log phase says it, with all that is known then.
            actions::RECEIVED_ALL_TOKENS => return,
            name if name == Try::Prefill.start() => {
                self.started[Try::Prefill as usize].set(time);
                self.ask(context, recorder, Letter::PScheduled);
            }
            name if name == Try::Decode.start() => {
                self.started[Try::Decode as usize].set(time);
                self.decode.set_address(action);
                self.ask(context, recorder, Letter::DScheduled);
            }
            name if name == Try::Prefill.finish() => self.prefill.set_address(action),
            name => {
                if let Some(letter) = letter_of(name) {
                    self.scheduled[letter as usize].set(true);
                }
            }
        }
        recorder.action(context, action.name, time, 0, &[]);
    }

    /// Records what another worker has seen, if that is known by now.
    fn ask(&self, context: &RequestContext<'_>, recorder: &Recorder, letter: Letter) {
        let (Some((key, _)), Some(mailbox)) = (self.known.0.get(), mailbox()) else {
            return;
        };
        if !self.scheduled[letter as usize].get()
            && let Some(time) = mailbox.take(key, letter)
            // Of this request, and not of one before it that had the same id.
            && time >= context.arrived
        {
            self.scheduled[letter as usize].set(true);
            let name = match letter {
                Letter::PScheduled => P_SCHEDULED,
                Letter::DScheduled => D_SCHEDULED,
            };
            recorder.action(context, name, time, 0, &[]);
        }
    }

    /// Completes what is known when the request is over, and says on its root where it was.
    /// `reads_count`: nothing else has seen the answer's tokens.
    pub(crate) fn finish<'r>(
        &self,
        context: &RequestContext<'r>,
        recorder: &Recorder,
        request: Request<'r>,
        reads_count: bool,
        attributes: &mut Attributes<'r>,
    ) {
        self.ask(context, recorder, Letter::PScheduled);
        self.ask(context, recorder, Letter::DScheduled);
        let reads = self.reads.iter().map(Cell::get).zip(actions::TOKENS);
        for (time, action) in reads.filter(|(time, _)| reads_count && *time != 0) {
            recorder.action(context, action, time, 0, &[]);
        }
        for (kind, node, address, index) in [
            (
                Try::Prefill,
                &self.prefill,
                key!("omnitrace.prefill.address"),
                key!("omnitrace.prefill.index"),
            ),
            (
                Try::Decode,
                &self.decode,
                key!("omnitrace.decode.address"),
                key!("omnitrace.decode.index"),
            ),
        ] {
            // Of a request that never got there Omni Proxy says index 0.
            if self.started(kind).is_none() {
                continue;
            }
            let text = node.address.borrow();
            attributes.text(address, request.keep(&text).unwrap_or_default());
            if let Some(number) = node.index.get() {
                attributes.push(index, ValueRef::I64(number.into()));
            }
        }
    }
}

/// A request's place among those of its worker, for as long as it lives.
#[derive(Default)]
struct Known(Cell<Option<(Key, Live)>>);

impl Drop for Known {
    fn drop(&mut self) {
        if let Some((key, context)) = self.0.get() {
            with_worker(|worker| worker.requests.remove(key, context));
        }
    }
}
