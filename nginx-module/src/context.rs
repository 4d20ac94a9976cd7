//! What the module knows of a request, from its first handler to the log phase.
//!
//! There is one [`RequestContext`] per client request. Subrequests share it: they
//! are part of the same trace, and their upstream tries are children of its root.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ptr;

use nginx_sys::{ngx_http_request_t, ngx_pool_cleanup_add};
use ngx::http::HttpModule;
use omnitrace::id::{SpanId, TraceId, canonical_request_id};
use omnitrace::propagation::Propagated;
use omnitrace::{Action, KeyRef, Sampler, SpanContext, ValueRef};
use smallvec::SmallVec;

use crate::HttpOmnitraceModule;
use crate::actions::{self, Try};
use crate::clock::{self, NANOS_PER_SECOND};
use crate::conf::location::{LocationConfig, Trace};
use crate::guard::guard;
use crate::headers::{self, HeaderName, X_REQUEST_ID};
use crate::omni_proxy::{self, OmniRequest};
use crate::recorder::Recorder;
use crate::request::{OutOfMemory, Request, borrow};
use crate::request_id;
use crate::subrequest::Watch;
use crate::tokens::Tokens;
use crate::upstream::peer::TracedPeer;
use crate::upstream::states::Covered;

/// One client request.
pub(crate) struct RequestContext<'r> {
    /// As the client sent it or as made here.
    pub(crate) request_id: &'r str,
    /// The part of it that all processes share.
    pub(crate) canonical: &'r str,
    /// The trace that the request belongs to.
    pub(crate) trace_id: TraceId,
    /// The caller's span, where a valid context came, with the decision that counts here.
    pub(crate) remote: Option<SpanContext>,
    /// The caller wants the trace whatever a sampler says (B3).
    pub(crate) debug: bool,
    /// When it arrived, in nanoseconds since 1970.
    pub(crate) arrived: u64,
    /// The location that the client's URI chose, before any internal redirect.
    pub(crate) route: &'r [u8],
    /// The client sent no id: it was made here, and goes on in a header.
    pub(crate) id_was_made: bool,
    /// Whether it is recorded.
    pub(crate) sampled: Cell<bool>,
    /// That it arrived has been recorded.
    begun: Cell<bool>,
    /// Its place among the requests that are recorded when they are over.
    pub(crate) place: Cell<Option<u32>>,
    /// Upstream tries of each kind numbered so far.
    numbered: [Cell<u16>; Try::COUNT],
    /// The client's request on its way.
    main_hop: Cell<Hop>,
    /// Its subrequests, as far as they went through the rewrite phase.
    sub_hops: RefCell<Vec<Hop>>,
    /// Upstream exchanges whose tries are recorded while they happen; in the request's pool.
    pub(crate) peers: RefCell<SmallVec<[*mut TracedPeer; 1]>>,
    /// Which of nginx's own notes on tries the recorded tries are in.
    pub(crate) covered: RefCell<SmallVec<[Covered; 1]>>,
    /// The answer's tokens.
    pub(crate) tokens: RefCell<Tokens<'r>>,
    /// What Omni Proxy says of it, where its location listens.
    pub(crate) omni: Option<Box<OmniRequest>>,
}

/// The request or one of its subrequests on its way to an upstream.
#[derive(Clone, Copy)]
pub(crate) struct Hop {
    /// Which of them; it lives as long as the client's request.
    pub(crate) request: *mut ngx_http_request_t,
    /// It has a header list of its own.
    pub(crate) owns_headers: bool,
    /// The try that its `traceparent` announces, until that is made.
    pub(crate) announced: Option<Announced>,
    /// A subrequest's times, where they are kept; in its pool.
    pub(crate) watch: *const Watch,
}

/// A try as the headers that go upstream announce it.
#[derive(Clone, Copy)]
pub(crate) struct Announced {
    pub(crate) kind: Try,
    pub(crate) number: u16,
    /// The id of its span.
    pub(crate) span: SpanId,
}

impl<'r> RequestContext<'r> {
    /// The context of a request or subrequest, if it has one.
    pub(crate) fn of(request: Request<'r>) -> Option<&'r Self> {
        let main = request.main();
        // SAFETY: every request has an array with one slot for each module.
        let slot = unsafe { main.ctx.add(HttpOmnitraceModule::module().ctx_index) };
        // SAFETY: as above.
        let mut found = unsafe { *slot };
        // An internal redirect has cleared the array; the pool remembers.
        if found.is_null() && (main.internal() != 0 || main.filter_finalize() != 0) {
            // SAFETY: the request's pool and its list of cleanups.
            let mut cleanup = unsafe { (*main.pool).cleanup.as_ref() };
            while let Some(entry) = cleanup {
                if entry
                    .handler
                    .is_some_and(|handler| ptr::fn_addr_eq(handler, DROP_CONTEXT))
                {
                    found = entry.data;
                    // SAFETY: as above.
                    unsafe { *slot = found };
                    break;
                }
                // SAFETY: as above; NULL ends the list.
                cleanup = unsafe { entry.next.as_ref() };
            }
        }
        // SAFETY: only `store` puts a value there; it lives until the pool's cleanup.
        unsafe { found.cast::<Self>().as_ref() }
    }

    /// The context of a request; a client's request that has none gets one if its location is
    /// traced.
    pub(crate) fn of_or_new(request: Request<'r>, conf: &LocationConfig) -> Option<&'r Self> {
        if let Some(context) = Self::of(request) {
            return Some(context);
        }
        if !request.is_main() || matches!(conf.trace(), Trace::Off) {
            return None;
        }
        Self::create(request, conf).ok()
    }

    /// Takes over the caller's trace or starts one, finds or makes the request id, and notes the
    /// arrival.
    fn create(request: Request<'r>, conf: &LocationConfig) -> Result<&'r Self, OutOfMemory> {
        let arrived = clock::arrival(&request);
        let recorder = Recorder::get();
        let listens = conf.omni_proxy();
        let sampler = recorder.map_or_else(Sampler::default, |recorder| *recorder.sampler());
        let sent = match recorder {
            Some(recorder) if conf.context().extract => named_by_header(request, recorder),
            _ => Propagated::default(),
        };
        let named = recorder.filter(|_| listens);
        let named = named.and_then(|recorder| named_by_header(request, recorder).context);
        let made_up = named.is_some_and(omni_proxy::has_made);
        let sent = if made_up { Propagated::default() } else { sent };
        let (remote, debug) = (sent.decided(&sampler), sent.debug);

        let sent_id = headers::find(request, &X_REQUEST_ID)
            .map(|header| header.value.as_bytes())
            .find(|id| !id.is_empty());
        let request_id = match sent_id {
            Some(id) => request_id::read(request, id),
            None => request.keep_bytes(&request_id::generate())?,
        };
        let raw_id = sent_id.unwrap_or(request_id.as_bytes());
        let said = listens.then(|| omni_proxy::arrival_of(raw_id)).flatten();
        let arrived = said
            .filter(|said| said.abs_diff(arrived) < NANOS_PER_SECOND)
            .unwrap_or(arrived);
        let header_made = sent_id.is_none() && conf.request_id();
        if header_made {
            headers::set(request, &X_REQUEST_ID, borrow(request_id))?;
        }

        let canonical = canonical_request_id(request_id);
        let trace_id = remote.map_or_else(|| TraceId::of_request(canonical), |r| r.trace_id);
        let flags = remote.map_or_else(|| sampler.flags(None, trace_id), |remote| remote.flags);
        let context = store(
            request,
            Self {
                trace_id,
                debug,
                id_was_made: header_made,
                sampled: Cell::new(flags & SpanContext::SAMPLED != 0),
                begun: Cell::new(false),
                place: Cell::new(None),
                route: request.location(),
                request_id,
                canonical,
                remote,
                arrived,
                numbered: Default::default(),
                main_hop: Cell::new(Hop::new(request)),
                sub_hops: RefCell::default(),
                peers: RefCell::default(),
                covered: RefCell::default(),
                tokens: RefCell::default(),
                omni: listens.then(|| Box::new(OmniRequest::new(made_up))),
            },
        )?;
        // SAFETY: a request has its connection.
        let connection = unsafe { (*request.connection).number };
        OmniRequest::register(context, raw_id, connection);

        // The variable may ask for this very context, so it is evaluated when that exists.
        if let Trace::Variable(value) = conf.trace() {
            let on = matches!(request.evaluate(value), Some(b"on" | b"1"));
            context.sampled.set(context.sampled.get() && on);
        }
        if let Some(recorder) = recorder.filter(|_| context.sampled.get()) {
            if recorder.known(context).is_some() {
                recorder.live.insert(context);
            } else {
                context.begin(recorder);
            }
        }
        Ok(context)
    }

    /// Whether something was recorded of it.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// Records that it arrived, unless that was recorded.
    pub(crate) fn begin(&self, recorder: &Recorder) {
        if self.begun.replace(true) {
            return;
        }
        recorder.live.begin(self);
        let listens = self.omni.is_some();
        if self.id_was_made || listens {
            recorder.action(self, actions::START_TO_SCHEDULE, self.arrived, 0, &[]);
        }
        // Omni Proxy says it itself, when it gets the request.
        if !listens {
            recorder.action(self, actions::TIME_RECEIVED, self.arrived, 0, &[]);
        }
    }

    /// Records what is known of it as its worker ends.
    pub(crate) fn say(&self, recorder: &Recorder) {
        self.begin(recorder);
        for peer in self.peers.take() {
            // SAFETY: it is in the pool of this request, which is live.
            unsafe { (*peer).say(self, recorder) };
        }
    }

    /// A moment of it, of no try or of the first.
    pub(crate) fn action<'a>(
        &'a self,
        name: &'a str,
        time: u64,
        attributes: &'a [(KeyRef<'a>, ValueRef<'a>)],
    ) -> Action<'a> {
        Action {
            name,
            time,
            request_id: self.request_id,
            occurrence: 0,
            context: self.remote,
            attributes,
        }
    }

    /// The caller's span id.
    pub(crate) fn remote_span(&self) -> Option<SpanId> {
        self.remote.map(|remote| remote.span_id)
    }

    /// The W3C flags that go with the request.
    pub(crate) fn flags(&self) -> u8 {
        let sampled = if self.sampled.get() {
            SpanContext::SAMPLED
        } else {
            0
        };
        self.remote
            .map_or(0, |remote| remote.flags & !SpanContext::SAMPLED)
            | sampled
    }

    /// What the upstream of a request or subrequest is, by `omnitrace_upstream_role`; Omni Proxy's
    /// are known.
    pub(crate) fn upstream_role(&self, request: Request<'_>, conf: &LocationConfig) -> Try {
        let known = if self.omni.is_none() {
            None
        } else if request.is_main() {
            Some(Try::Decode)
        } else {
            omni_proxy::is_prefill(request).then_some(Try::Prefill)
        };
        conf.upstream_role().or(known).unwrap_or(Try::Plain)
    }

    /// Numbers the next try of a kind.
    pub(crate) fn number(&self, kind: Try) -> u16 {
        let counter = &self.numbered[kind as usize];
        let number = counter.get();
        counter.set(number.saturating_add(1));
        number
    }

    /// Takes a number back if it was the last one given.
    pub(crate) fn give_back(&self, kind: Try, number: u16) {
        let counter = &self.numbered[kind as usize];
        if counter.get() == number.saturating_add(1) {
            counter.set(number);
        }
    }

    /// The span id of a try, as it goes upstream and as the assembler will derive it.
    pub(crate) fn try_span(&self, recorder: &Recorder, kind: Try, number: u16) -> SpanId {
        recorder.span_id(self, kind.phase(), number)
    }

    /// What is known of this request or subrequest.
    pub(crate) fn hop(&self, request: Request<'_>) -> Hop {
        if request.is_main() {
            return self.main_hop.get();
        }
        let hops = self.sub_hops.borrow();
        let known = hops.iter().find(|hop| hop.request == request.as_ptr());
        known.copied().unwrap_or_else(|| Hop::new(request))
    }

    /// Changes what is known of a request or subrequest.
    pub(crate) fn set_hop(&self, hop: Hop) {
        if hop.request == self.main_hop.get().request {
            self.main_hop.set(hop);
            return;
        }
        let mut hops = self.sub_hops.borrow_mut();
        match hops.iter_mut().find(|known| known.request == hop.request) {
            Some(known) => *known = hop,
            None => hops.push(hop),
        }
    }

    /// The request and those of its subrequests that are known.
    pub(crate) fn hops(&self) -> impl Iterator<Item = Hop> + use<> {
        let sub_hops = self.sub_hops.borrow().clone();
        std::iter::once(self.main_hop.get()).chain(sub_hops)
    }
}

impl Hop {
    fn new(request: Request<'_>) -> Self {
        Self {
            request: request.as_ptr(),
            owns_headers: request.is_main(),
            announced: None,
            watch: ptr::null(),
        }
    }
}

/// The span that a request's headers name. A header that comes more than once names none (W3C
/// Trace Context, section 3.2).
pub(crate) fn named_by_header<'r>(request: Request<'r>, recorder: &Recorder) -> Propagated<'r> {
    recorder.propagators().extract(|name| {
        let mut sent = headers::find(request, HeaderName::of_context(name)?);
        match (sent.next(), sent.next()) {
            (Some(header), None) => std::str::from_utf8(header.value.as_bytes()).ok(),
            _ => None,
        }
    })
}

/// Puts a context where [`RequestContext::of`] finds it, until the end of the request.
fn store<'r>(
    request: Request<'r>,
    context: RequestContext<'r>,
) -> Result<&'r RequestContext<'r>, OutOfMemory> {
    const ALIGNMENT: usize = align_of::<RequestContext<'_>>();
    // nginx aligns less than trace ids need.
    let room = size_of::<RequestContext<'_>>() + ALIGNMENT - 1;
    // SAFETY: the request's pool is live.
    let cleanup = unsafe { ngx_pool_cleanup_add(request.pool, room).as_mut() };
    let cleanup = cleanup.ok_or(OutOfMemory)?;
    let unused = cleanup.data.align_offset(ALIGNMENT);
    // SAFETY: less than ALIGNMENT bytes of the room are skipped, the rest is enough; every request
    // has an array with one slot for each module.
    unsafe {
        cleanup.data = cleanup.data.byte_add(unused);
        let place = cleanup.data.cast::<RequestContext<'r>>();
        place.write(context);
        cleanup.handler = Some(DROP_CONTEXT);
        *request.ctx.add(HttpOmnitraceModule::module().ctx_index) = place.cast();
        Ok(&*place)
    }
}

impl Drop for RequestContext<'_> {
    fn drop(&mut self) {
        if self.place.get().is_some()
            && let Some(recorder) = Recorder::get()
        {
            recorder.live.remove(self);
        }
    }
}

/// The cleanup that marks a context in a pool.
const DROP_CONTEXT: unsafe extern "C" fn(*mut c_void) = drop_context;

unsafe extern "C" fn drop_context(context: *mut c_void) {
    guard("the end of a request", (), || {
        // SAFETY: `store` put it there and registered this for it, once.
        unsafe { context.cast::<RequestContext<'_>>().drop_in_place() };
    });
}
