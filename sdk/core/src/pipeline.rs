//! One process's way from records to delivered spans: a recorder for the host's
//! threads, and one thread that does everything else.

mod bell;
mod reporter;
mod wire;

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::assembler::{Assembler, LooseEvent, PhaseSpan, Scope, Sink};
use crate::clock::{self, Steering};
use crate::config::Config;
use crate::context::SpanContext;
use crate::delivery::{Delivery, Stats};
use crate::diagnostics;
use crate::event::{ActionName, Event, Parent};
use crate::id::{TraceId, canonical_request_id};
use crate::key::KeyRef;
use crate::legacy_log;
use crate::queue::{DecodedAction, Queue, Record};
use crate::recorder::Recorder;
use crate::span::Source;
use crate::value::{Attribute, Value};

use bell::Bell;
use reporter::Reporter;
use wire::{Arrived, Wire};

/// How often the queue is emptied when nothing asks for it sooner.
const DRAIN_EVERY: Duration = Duration::from_millis(100);
/// For how long the thread attends to a connection and to nothing else.
const SLICE: Duration = Duration::from_millis(10);

/// Why a pipeline did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No thread could be made.
    #[error("the exporter thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// A running recorder with its exporter thread.
pub struct Pipeline {
    recorder: Arc<Recorder>,
    commands: Sender<Command>,
    bell: Arc<Bell>,
    stats: Arc<Mutex<Stats>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The thread's number in the kernel.
    thread_id: Arc<AtomicU32>,
    /// The work of a thread that is away.
    seat: Seat,
}

type Seat = Arc<Mutex<Option<Box<Worker>>>>;

/// Deliver what is there by the deadline; answers whether all of it is safe.
struct Command {
    /// Before that, close every request; after it, end.
    ends: bool,
    deadline: Instant,
    done: Sender<bool>,
    /// The Collector has not taken a batch: the rest need not be tried.
    gives_up: bool,
}

impl Pipeline {
    /// Starts the exporter thread.
    pub fn start(config: Config) -> Result<Self, StartError> {
        diagnostics::set_level(config.log_level);
        let bell = Arc::new(Bell::default());
        let ring = Arc::clone(&bell);
        let queue = Queue::new(config.queue_bytes, Box::new(move || ring.ring()));
        let recorder = Arc::new(Recorder::new(&config, queue));
        let stats = Arc::new(Mutex::new(Stats::default()));
        let (commands, inbox) = mpsc::channel();
        let pipeline = Self {
            recorder: Arc::clone(&recorder),
            commands,
            bell: Arc::clone(&bell),
            stats: Arc::clone(&stats),
            thread: Mutex::default(),
            thread_id: Arc::default(),
            seat: Seat::default(),
        };
        pipeline.spawn(move |_| {
            let worker = Worker::new(config, recorder, stats, bell, inbox);
            Some(Box::new(worker))
        })?;
        Ok(pipeline)
    }

    fn spawn(
        &self,
        worker: impl FnOnce(&Seat) -> Option<Box<Worker>> + Send + 'static,
    ) -> Result<(), StartError> {
        let (seat, thread_id) = (Arc::clone(&self.seat), Arc::clone(&self.thread_id));
        let thread = std::thread::Builder::new()
            .name("omnitrace".to_owned())
            .spawn(move || {
                diagnostics::mark_own_thread();
                thread_id.store(legacy_log::thread_id(), Ordering::Release);
                if let Some(worker) = worker(&seat) {
                    let left = worker.run();
                    *lock(&seat) = left;
                }
            })?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// Ends the exporter thread until [`Self::resume`], of which each call wants
    /// one. Nothing of this pipeline runs meanwhile, and nothing is lost. False: it
    /// has not got away within `timeout`.
    ///
    /// A fork wants this: what another thread has locked in the C library or in us
    /// stays locked in the child for ever.
    pub fn pause(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        self.bell.send_away();
        let mut thread = lock(&self.thread);
        // The kernel still counts it for a moment after its last word.
        while thread.as_ref().is_some_and(|t| !t.is_finished()) || self.is_in_kernel() {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        if let Some(thread) = thread.take() {
            // A panic is in stderr.
            let _ = thread.join();
        }
        self.thread_id.store(0, Ordering::Release);
        true
    }

    fn is_in_kernel(&self) -> bool {
        let id = self.thread_id.load(Ordering::Acquire);
        id != 0 && Path::new("/proc/self/task").join(id.to_string()).exists()
    }

    /// Goes on after [`Self::pause`].
    pub fn resume(&self) -> Result<(), StartError> {
        if !self.bell.call_back() {
            return Ok(());
        }
        if let Some(thread) = lock(&self.thread).take() {
            // It has left too late for the pause, so it ends now.
            let _ = thread.join();
        }
        self.spawn(|seat| lock(seat).take())
    }

    /// What the host's threads record with.
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// Waits until everything recorded before is exported or in the legacy log.
    /// A Collector that does not take it now is not waited for. False: the time
    /// ran out or something had to be dropped.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.ask(timeout, false)
    }

    /// Closes every request, delivers or logs everything within `timeout`, and
    /// ends the thread.
    pub fn shutdown(&self, timeout: Duration) -> Stats {
        let ended = self.ask(timeout, true);
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && (ended || thread.is_finished())
        {
            // It has answered, so it is past its last wait. A panic is in stderr.
            let _ = thread.join();
        }
        self.stats()
    }

    /// The books as of the thread's last round, and what the queue has lost.
    pub fn stats(&self) -> Stats {
        books(lock(&self.stats).clone(), &self.recorder)
    }

    fn ask(&self, timeout: Duration, ends: bool) -> bool {
        let (done, answer) = mpsc::channel();
        let command = Command {
            ends,
            deadline: Instant::now() + timeout,
            done,
            gives_up: false,
        };
        if self.commands.send(command).is_err() {
            return false;
        }
        self.bell.ring();
        // The thread keeps the deadline; the margin is for a busy machine.
        answer
            .recv_timeout(timeout + Duration::from_millis(500))
            .unwrap_or(false)
    }
}

/// The exporter thread's state.
struct Worker {
    recorder: Arc<Recorder>,
    assembler: Assembler,
    delivery: Delivery,
    wire: Option<Wire>,
    reporter: Option<Reporter>,
    bell: Arc<Bell>,
    inbox: Receiver<Command>,
    /// The command that is being carried out.
    asked: Option<Command>,
    source: Arc<Source>,
    steering: Steering,
    began: Instant,
    /// When the queue was last emptied.
    now: Instant,
    stats: Arc<Mutex<Stats>>,
    /// Records and spans lost when somebody last asked.
    lost: u64,
    losses: Losses,
}

impl Worker {
    fn new(
        mut config: Config,
        recorder: Arc<Recorder>,
        stats: Arc<Mutex<Stats>>,
        bell: Arc<Bell>,
        inbox: Receiver<Command>,
    ) -> Self {
        let resource = resource(&config);
        let source = Arc::new(Source {
            role: config.role.as_str().into(),
            node: config.node.as_str().into(),
        });
        let wire = config.exporter.clone().map(|e| {
            let metrics = config.metrics.clone().map(|metrics| metrics.exporter);
            Wire::new(e, metrics, Arc::clone(&source), resource.clone())
        });
        let wire = wire.transpose().unwrap_or_else(|error| {
            tracing::error!("{error}; spans go to the legacy log");
            config.exporter = None;
            None
        });
        Self {
            assembler: Assembler::new(Arc::clone(&config.vocabulary), Scope::Process)
                .sampled_by(config.sampler),
            delivery: Delivery::new(
                &config,
                Arc::clone(&source),
                &resource,
                Arc::clone(&recorder.scopes),
            ),
            source,
            reporter: Reporter::new(&config, &resource),
            wire,
            bell,
            inbox,
            asked: None,
            recorder,
            steering: Steering::new(),
            began: Instant::now(),
            now: Instant::now(),
            stats,
            lost: 0,
            losses: Losses::default(),
        }
    }

    /// Until the end; or until the thread is to be away, then it comes back.
    fn run(mut self: Box<Self>) -> Option<Box<Self>> {
        loop {
            if self.bell.leaves() {
                return Some(self);
            }
            if self.asked.is_none() {
                match self.inbox.try_recv() {
                    Ok(command) => self.begin(command),
                    Err(TryRecvError::Empty) => {}
                    Err(TryRecvError::Disconnected) => {
                        self.abandon();
                        return None;
                    }
                }
            }
            self.start_export();
            self.report_if_due();
            if let Some(command) = self.asked.take_if(|c| is_done(c, self.wire.as_ref())) {
                let safe = self.leave_nothing();
                self.publish();
                if command.ends {
                    self.report_for_the_last_time(command.deadline);
                }
                if let Some(wire) = self.wire.take_if(|_| command.ends) {
                    wire.end();
                }
                // Whoever asked may have stopped waiting.
                let _ = command.done.send(safe);
                if command.ends {
                    return None;
                }
            }
            self.publish();
            self.wait();
        }
    }

    fn begin(&mut self, command: Command) {
        self.bell.has_rung();
        if command.ends {
            self.close();
        } else {
            self.drain();
        }
        self.asked = Some(command);
    }

    /// The pipeline was dropped without a shutdown.
    fn abandon(&mut self) {
        self.close();
        self.delivery.spill_wire();
        self.delivery.spill_waiting();
        self.publish();
        if let Some(wire) = self.wire.take() {
            wire.end();
        }
    }

    /// Exports what is due; everything that waits, where somebody asks for that.
    fn start_export(&mut self) {
        let all = self.asked.is_some();
        let gives_up = self.asked.as_ref().is_some_and(|c| c.gives_up);
        if let Some(wire) = &mut self.wire
            && !wire.is_busy()
            && !gives_up
            && let Some(batch) = self.delivery.next_batch(Instant::now(), all)
        {
            wire.send(batch);
        }
    }

    /// Sends the books as metrics; who asks for spans does not wait for that.
    fn report_if_due(&mut self) {
        if let (Some(wire), Some(reporter)) = (&mut self.wire, &mut self.reporter)
            && self.asked.is_none()
            && Instant::now() >= reporter.due()
        {
            let books = books(lock(&self.stats).clone(), &self.recorder);
            wire.report(reporter.request(&books, self.delivery.on_wire()));
        }
    }

    /// Sends the last books, if they get through by the deadline.
    fn report_for_the_last_time(&mut self, deadline: Instant) {
        let (Some(wire), Some(reporter)) = (&mut self.wire, &mut self.reporter) else {
            return;
        };
        if self.delivery.is_failing() {
            return;
        }
        let mut is_last = false;
        loop {
            if !wire.is_moving() {
                if is_last {
                    break;
                }
                is_last = true;
                let books = books(lock(&self.stats).clone(), &self.recorder);
                wire.report(reporter.request(&books, 0));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match wire.carry_on(left) {
                Some(Arrived::Metrics(outcome)) => reporter.settle(outcome),
                Some(Arrived::Batch(_)) => {}
                None => break,
            }
        }
    }

    /// Until there is something to do.
    fn wait(&mut self) {
        let longest = match &self.asked {
            Some(command) => command.deadline.saturating_duration_since(Instant::now()),
            None => self.until_due(),
        };
        let mut is_idle = true;
        match &mut self.wire {
            Some(wire) if wire.is_moving() => match wire.carry_on(longest.min(SLICE)) {
                Some(Arrived::Batch(outcome)) => {
                    self.delivery.settle(outcome, Instant::now(), clock::now());
                    if let Some(command) = &mut self.asked {
                        command.gives_up = self.delivery.is_failing();
                    }
                }
                Some(Arrived::Metrics(outcome)) => {
                    if let Some(reporter) = &mut self.reporter {
                        reporter.settle(outcome);
                    }
                }
                None => is_idle = false,
            },
            _ => self.bell.sleep(longest),
        }
        // Who asks for what there is does not wait for what comes meanwhile, unless
        // there is no room for it.
        let is_time = is_idle || self.now.elapsed() >= DRAIN_EVERY;
        if self.bell.has_rung() || self.asked.is_none() && is_time {
            self.drain();
        }
    }

    /// The usual pause, or less when a batch is due.
    fn until_due(&self) -> Duration {
        let report = self.reporter.as_ref().map(Reporter::due);
        let due = self.delivery.wake_at().into_iter().chain(report).min();
        due.map_or(DRAIN_EVERY, |at| {
            at.saturating_duration_since(Instant::now())
                .min(DRAIN_EVERY)
        })
    }

    /// What the Collector has not taken by now goes to the legacy log; whether all
    /// is safe.
    fn leave_nothing(&mut self) -> bool {
        if let Some(wire) = &mut self.wire
            && wire.is_busy()
        {
            wire.hang_up();
            self.delivery.abandon_wire();
        }
        self.delivery.spill_waiting();
        let lost = self.delivery.stats.dropped_total() + self.recorder.queue.lost();
        std::mem::replace(&mut self.lost, lost) == lost
    }

    /// Empties the queue through the assembler into delivery.
    fn drain(&mut self) {
        self.steering.adjust();
        self.now = Instant::now();
        let recorder = Arc::clone(&self.recorder);
        recorder.queue.drain(|record| self.take(record));
        let now = self.now.saturating_duration_since(self.began).as_nanos() as u64;
        let (assembler, mut outlet) = self.assembling();
        assembler.settle(now, &mut outlet);
        self.delivery.end_round(self.now);
    }

    /// Empties the queue and closes every request.
    fn close(&mut self) {
        self.drain();
        let (assembler, mut outlet) = self.assembling();
        assembler.finish(&mut outlet);
        self.delivery.end_round(self.now);
    }

    /// The assembler, and where what comes out of it goes.
    fn assembling(&mut self) -> (&mut Assembler, Outlet<'_>) {
        let outlet = Outlet {
            delivery: &mut self.delivery,
            now: self.now,
        };
        (&mut self.assembler, outlet)
    }

    fn take(&mut self, record: Record<'_>) {
        match record {
            Record::Bind(bind) => {
                self.assembler
                    .bind(bind.request_id, bind.canonical, bind.context);
            }
            Record::Span(span) => {
                self.delivery.stats.events += 1;
                if let Parent::Request(id) = span.parent {
                    self.learn(id);
                }
                let place = self.assembler.place(span.parent);
                if place.flags & SpanContext::SAMPLED == 0 {
                    self.delivery.stats.unsampled += 1;
                } else {
                    self.delivery.accept_free(&span, &place, self.now);
                }
            }
            Record::Action(action) => self.take_action(action),
        }
    }

    fn take_action(&mut self, action: DecodedAction<'_>) {
        self.learn(action.request_id);
        let typed = action.attributes.typed();
        let attributes: Vec<_> = typed
            .map(|(key, value)| (KeyRef::Text(key), value))
            .collect();
        let event = Event {
            action: action.name,
            time: action.time,
            request_id: action.request_id,
            occurrence: action.occurrence,
            context: action.context,
            attributes: &attributes,
            source: &self.source,
            carried: action.carried,
        };
        if !event.carried {
            self.delivery.stats.events += 1;
            if self.delivery.logs_events() {
                log_event(&self.assembler, &mut self.delivery, &event);
            }
        }
        let mut outlet = Outlet {
            delivery: &mut self.delivery,
            now: self.now,
        };
        self.assembler.event(event, &mut outlet);
    }

    /// What another thread has read of a request may still wait in that thread's
    /// ring.
    fn learn(&mut self, request_id: &str) {
        if !self.assembler.knows(request_id)
            && let Some((canonical, context)) = self.recorder.bound(request_id)
        {
            self.assembler.bind(request_id, &canonical, context);
        }
    }

    fn publish(&mut self) {
        self.losses.look(self.recorder.queue.lost(), Instant::now());
        let stats = &mut self.delivery.stats;
        stats.open_requests = self.assembler.live() as u64;
        let in_flight = self.delivery.in_flight() as u64;
        let stats = Stats {
            in_flight,
            ..self.delivery.stats.clone()
        };
        *lock(&self.stats) = stats;
    }
}

/// The way from the assembler into delivery.
struct Outlet<'a> {
    delivery: &'a mut Delivery,
    now: Instant,
}

impl Sink for Outlet<'_> {
    fn span(&mut self, span: PhaseSpan<'_>) {
        self.delivery.accept_phase(span, self.now);
    }

    fn loose(&mut self, event: LooseEvent) {
        self.delivery.accept_loose(event, self.now);
    }

    fn unsampled(&mut self) {
        self.delivery.stats.unsampled += 1;
    }

    fn contradictory(&mut self) {
        self.delivery.stats.contradictory += 1;
    }
}

/// Writes the line of an event as it happens.
fn log_event(assembler: &Assembler, delivery: &mut Delivery, event: &Event<'_>) {
    let known = assembler.known(event.request_id);
    let context = event.context.or(known.and_then(|(_, bound)| bound));
    let name = match event.action {
        ActionName::Known(id) => &*assembler.vocabulary().action(id).name,
        ActionName::Custom(name) => name,
    };
    let canonical = match known {
        Some((canonical, _)) => canonical,
        None => canonical_request_id(event.request_id),
    };
    let trace_id = || TraceId::of_request(canonical);
    let flags = assembler.flags(context, context.map_or_else(trace_id, |c| c.trace_id));
    if flags & SpanContext::SAMPLED == 0 {
        return;
    }
    let entry = legacy_log::event_entry(event, name, canonical, context.as_ref());
    delivery.buffer_event(entry);
}

/// Says when records begin to be lost, and how many were when it is over.
#[derive(Default)]
struct Losses {
    lost: u64,
    /// While it goes on: what was lost before, and when the last one was.
    since: Option<(u64, Instant)>,
}

impl Losses {
    /// Without a loss for so long it is over.
    const OVER_AFTER: Duration = Duration::from_secs(5);

    fn look(&mut self, lost: u64, now: Instant) {
        let before = std::mem::replace(&mut self.lost, lost);
        match &mut self.since {
            None if lost > before => {
                self.since = Some((before, now));
                tracing::warn!(
                    "records are being lost: a thread records faster than they can be taken \
                     out of its queue; record less, or leave a core to the exporter thread"
                );
            }
            Some((_, last)) if lost > before => *last = now,
            Some((first, last)) if now.saturating_duration_since(*last) >= Self::OVER_AFTER => {
                tracing::warn!("no more records are lost; {} were", lost - *first);
                self.since = None;
            }
            _ => {}
        }
    }
}

/// The thread's books with what never came to it.
fn books(mut stats: Stats, recorder: &Recorder) -> Stats {
    let lost_spans = recorder.lost_spans();
    stats.unsampled += recorder.unsampled();
    stats.events_lost = recorder.queue.lost().saturating_sub(lost_spans);
    if lost_spans > 0 {
        stats.created += lost_spans;
        *stats.dropped.entry("queue_full").or_default() += lost_spans;
    }
    stats
}

/// Whether all that can be done for it has been.
fn is_done(command: &Command, wire: Option<&Wire>) -> bool {
    let is_busy = wire.is_some_and(Wire::is_busy);
    !is_busy || command.gives_up || Instant::now() >= command.deadline
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What describes this process to the Collector.
pub fn resource(config: &Config) -> Vec<Attribute> {
    let pid = std::process::id();
    let mut attributes = vec![
        Attribute::new("service.name", config.service_name().as_str()),
        Attribute::new("host.ip", config.node.as_str()),
        Attribute::new("process.pid", i64::from(pid)),
        Attribute::new("telemetry.sdk.name", "omnitrace"),
        Attribute::new("telemetry.sdk.language", "rust"),
        Attribute::new("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
    ];
    attributes.extend(config.resource.iter().cloned());
    if !attributes.iter().any(|a| &*a.key == "service.instance.id") {
        let instance = Value::Str(format!("{}:{pid}", config.node).into());
        attributes.push(Attribute {
            key: "service.instance.id".into(),
            value: instance,
        });
    }
    attributes
}
