//! The exporter thread: the queue's records through the assembler into delivery.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::assembler::{Assembler, LooseEvent, PhaseSpan, Scope, Sink};
use crate::clock::{self, Steering};
use crate::config::Config;
use crate::context::SpanContext;
use crate::delivery::{Delivery, Stats};
use crate::event::{ActionName, Event, Parent};
use crate::id::{TraceId, canonical_request_id};
use crate::legacy_log;
use crate::queue::{DecodedAction, DecodedPhase, Record};
use crate::recorder::Recorder;
use crate::span::Source;
use crate::vocabulary::PhaseId;

use super::bell::Bell;
use super::reporter::Reporter;
use super::wire::{Arrived, Wire};
use super::{Command, lock, resource};

/// How often the queue is emptied when nothing asks for it sooner.
const DRAIN_EVERY: Duration = Duration::from_millis(100);
/// The same while nobody records: each time twice as long, up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// For how long the thread attends to a connection and to nothing else.
const SLICE: Duration = Duration::from_millis(10);

/// Is shown the books.
pub(super) type Observe = Box<dyn Fn(&Stats) + Send>;

/// The exporter thread's state.
pub(super) struct Worker {
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
    /// Until it is next, and the longest that may be.
    pause: Duration,
    longest_pause: Duration,
    stats: Arc<Mutex<Stats>>,
    observe: Option<Observe>,
    /// Records and spans lost when somebody last asked.
    lost: u64,
    losses: Losses,
}

impl Worker {
    pub(super) fn new(
        mut config: Config,
        recorder: Arc<Recorder>,
        stats: Arc<Mutex<Stats>>,
        observe: Option<Observe>,
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
            pause: DRAIN_EVERY,
            longest_pause: config.schedule_delay.clamp(DRAIN_EVERY, LONGEST_PAUSE),
            stats,
            observe,
            lost: 0,
            losses: Losses::default(),
        }
    }

    /// Until the end; or until the thread is to be away, then it comes back.
    pub(super) fn run(mut self: Box<Self>) -> Option<Box<Self>> {
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
        due.map_or(self.pause, |at| {
            at.saturating_duration_since(Instant::now()).min(self.pause)
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
        let mut is_idle = true;
        recorder.queue.drain(|record| {
            is_idle = false;
            self.take(record);
        });
        self.pause = if is_idle {
            (2 * self.pause).min(self.longest_pause)
        } else {
            DRAIN_EVERY
        };
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
            Record::Phase(phase) => self.take_phase(&phase),
        }
    }

    fn take_phase(&mut self, phase: &DecodedPhase<'_>) {
        self.delivery.stats.events += u64::from(phase.phase.actions);
        match self.assembler.finished(phase, &self.source) {
            Some(span) => self.delivery.accept_finished(&span, self.now),
            None => self.delivery.stats.unsampled += 1,
        }
    }

    fn take_action(&mut self, action: DecodedAction<'_>) {
        self.learn(action.request_id);
        let attributes: Vec<_> = action.attributes.keyed().collect();
        let event = action.event(&attributes, &self.source);
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
        if action.last {
            self.assembler.conclude(action.request_id, &mut outlet);
        }
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
        if let Some(observe) = &self.observe {
            observe(&books(stats.clone(), &self.recorder));
        }
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

    fn contradictory(&mut self, _: PhaseId) {
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
pub(super) fn books(mut stats: Stats, recorder: &Recorder) -> Stats {
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
