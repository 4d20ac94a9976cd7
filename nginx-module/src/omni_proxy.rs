//! Omni Proxy's action lines, read where it writes them.
//!
//! ```text
//!  Omni Proxy ─ ngx_log_error ─► writer ─► its request, if this worker has it ─► Recorder
//!                                   └────► mailbox ─► the worker that has it ─► Recorder
//! ```
//! Which requests are at which node one worker decides for all of them, so two of a request's
//! moments may be seen by a worker that does not have it: their times go through shared memory.
//!
//! What the module sees itself counts before what the lines say of it. A root begins when nginx
//! has the request's head and ends in the log phase; a try has the moments of both, and the
//! earlier one counts; tokens are those of the scanner where it reads the answer. So there is one
//! root and one span a try, whoever saw them.

use std::cell::RefCell;
use std::sync::atomic::{AtomicPtr, Ordering};

use omnitrace::SpanContext;
use omnitrace::legacy_log::{ProxyAction, ProxyLine, ProxySays};

use crate::actions;
use crate::context::RequestContext;
use crate::recorder::Recorder;

mod mailbox;
mod request;
mod requests;
mod stamp;
pub(crate) mod writer;

pub(crate) use mailbox::Mailbox;
pub(crate) use request::{OmniRequest, is_prefill};
use requests::{Key, Requests, key};

thread_local! {
    /// What nginx's own thread knows; other threads of the process have none.
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
}

/// Times of requests that another worker has.
static MAILBOX: AtomicPtr<Mailbox> = AtomicPtr::new(std::ptr::null_mut());

/// A worker's share in reading the lines.
#[derive(Default)]
struct Worker {
    requests: Requests,
    /// The request whose arrival was said last, and when that was.
    arrived: Option<(Key, u64)>,
    /// The context that was made up last.
    made: Option<SpanContext>,
}

/// Begins to listen; to be called by a worker's own thread.
pub(crate) fn start(mailbox: Option<&'static Mailbox>) {
    let mailbox = mailbox.map_or(std::ptr::null_mut(), |m| std::ptr::from_ref(m).cast_mut());
    MAILBOX.store(mailbox, Ordering::Release);
    WORKER.set(Some(Worker::default()));
}

/// Listens no more.
pub(crate) fn stop() {
    WORKER.set(None);
}

/// Runs `body` with what this thread knows. None: it is not nginx's own, or is at it already.
fn with_worker<T>(body: impl FnOnce(&mut Worker) -> T) -> Option<T> {
    // nginx goes on logging when the thread is at its end.
    let with = |worker: &RefCell<Option<Worker>>| worker.try_borrow_mut().ok()?.as_mut().map(body);
    WORKER.try_with(with).ok().flatten()
}

fn mailbox() -> Option<&'static Mailbox> {
    // SAFETY: shared memory that is there until the process ends.
    unsafe { MAILBOX.load(Ordering::Acquire).as_ref() }
}

/// When the request with this id arrived, if Omni Proxy has just said so: its own line has that
/// time too.
pub(crate) fn arrival_of(id: &[u8]) -> Option<u64> {
    let said = with_worker(|worker| worker.arrived.take()).flatten()?;
    (key(id) == said.0).then_some(said.1)
}

/// Whether Omni Proxy has made this context up: it is no caller's.
pub(crate) fn has_made(context: SpanContext) -> bool {
    let same =
        |made: SpanContext| (made.trace_id, made.span_id) == (context.trace_id, context.span_id);
    with_worker(|worker| worker.made.is_some_and(same)).unwrap_or(false)
}

/// Takes a line in, on any thread.
fn hear(line: ProxyLine<'_>) {
    match line.says {
        ProxySays::Action(action) => hear_action(line.connection, action),
        ProxySays::MadeContext(text) => {
            with_worker(|worker| worker.made = SpanContext::parse(text));
        }
        ProxySays::PrefillNode(index) => with_last(line, |omni| omni.prefill.set_index(index)),
        ProxySays::DecodeNode(index) => with_last(line, |omni| omni.decode.set_index(index)),
    }
}

/// The request that the line before was about, if this line is of the same connection.
fn with_last(line: ProxyLine<'_>, body: impl FnOnce(&OmniRequest)) {
    let last = with_worker(|worker| worker.requests.last(line.connection?)).flatten();
    // SAFETY: a request that is known is live, and this is the thread that ends it.
    let omni = last.and_then(|context| unsafe { context.as_ref() }.omni.as_deref());
    if let Some(omni) = omni {
        body(omni);
    }
}

fn hear_action(connection: Option<u64>, action: ProxyAction<'_>) {
    let time = stamp::to_time(action.stamp);
    if action.name == actions::START_TO_SCHEDULE {
        // The request is on its way to us, or we have taken it in before.
        with_worker(|worker| worker.arrived = action.ids().next().map(|id| (key(id), time)));
        return;
    }
    let known = with_worker(|worker| {
        action
            .ids()
            .find_map(|id| worker.requests.find(key(id), connection))
    });
    match known {
        Some(Some(context)) => {
            // SAFETY: as above; the worker's state is free again.
            let context: &RequestContext<'_> = unsafe { context.as_ref() };
            let recorder = Recorder::get().filter(|_| context.sampled.get());
            if let (Some(recorder), Some(omni)) = (recorder, &context.omni) {
                omni.hear(context, recorder, action, time);
            }
        }
        // Another worker's, or this one's and seen by another thread.
        _ => {
            if let Some(mailbox) = mailbox()
                && let Some(letter) = request::letter_of(action.name)
            {
                for id in action.ids() {
                    mailbox.post(key(id), letter, time);
                }
            }
        }
    }
}
