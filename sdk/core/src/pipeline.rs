//! One process's way from records to delivered spans: a recorder for the host's
//! threads, and one thread that does everything else.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::assembler::{Assembler, LooseEvent, PhaseSpan, Scope, Sink};
use crate::clock::{self, Steering};
use crate::config::Config;
use crate::context::SpanContext;
use crate::delivery::otlp::{ExportError, OtlpExporter, Taken};
use crate::delivery::{Delivery, Stats};
use crate::diagnostics;
use crate::event::{ActionName, Event, Parent};
use crate::id::canonical_request_id;
use crate::key::KeyRef;
use crate::legacy_log;
use crate::queue::{DecodedAction, Queue, Record};
use crate::recorder::Recorder;
use crate::span::Source;
use crate::value::{Attribute, Value};

/// How often the queue is emptied when nothing asks for it sooner.
const DRAIN_EVERY: Duration = Duration::from_millis(100);

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
    commands: UnboundedSender<Command>,
    stats: Arc<Mutex<Stats>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Command {
    /// Deliver what is there by the deadline; answers whether all of it is safe.
    Flush {
        deadline: Instant,
        done: mpsc::Sender<bool>,
    },
    /// The same, close every request, and end.
    Shutdown {
        deadline: Instant,
        done: mpsc::Sender<bool>,
    },
}

impl Pipeline {
    /// Starts the exporter thread.
    pub fn start(config: Config) -> Result<Self, StartError> {
        diagnostics::set_level(config.log_level);
        let wake = Arc::new(Notify::new());
        let ring = Arc::clone(&wake);
        let queue = Queue::new(config.queue_bytes, Box::new(move || ring.notify_one()));
        let recorder = Arc::new(Recorder::new(&config, queue));
        let stats = Arc::new(Mutex::new(Stats::default()));
        let (commands, inbox) = unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name("omnitrace".to_owned())
            .spawn({
                let (recorder, stats) = (Arc::clone(&recorder), Arc::clone(&stats));
                move || {
                    let worker = runtime.block_on(async { Worker::new(config, recorder, stats) });
                    runtime.block_on(worker.run(wake, inbox));
                    // What hangs in a connection must not hold up the exit.
                    runtime.shutdown_background();
                }
            })?;
        Ok(Self {
            recorder,
            commands,
            stats,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// What the host's threads record with.
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// Waits until everything recorded before is exported or in the legacy log.
    /// A Collector that does not take it now is not waited for. False: the time
    /// ran out or something had to be dropped.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.ask(timeout, |deadline, done| Command::Flush { deadline, done })
    }

    /// Closes every request, delivers or logs everything within `timeout`, and
    /// ends the thread.
    pub fn shutdown(&self, timeout: Duration) -> Stats {
        let ended = self.ask(timeout, |deadline, done| Command::Shutdown {
            deadline,
            done,
        });
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
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
        let mut stats = self
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let lost_spans = self.recorder.lost_spans();
        stats.events_lost = self.recorder.queue.lost().saturating_sub(lost_spans);
        if lost_spans > 0 {
            stats.created += lost_spans;
            *stats.dropped.entry("queue_full").or_default() += lost_spans;
        }
        stats
    }

    fn ask(
        &self,
        timeout: Duration,
        command: impl FnOnce(Instant, mpsc::Sender<bool>) -> Command,
    ) -> bool {
        let (done, answer) = mpsc::channel();
        if self
            .commands
            .send(command(Instant::now() + timeout, done))
            .is_err()
        {
            return false;
        }
        // The thread keeps the deadline; the margin is for a busy machine.
        answer
            .recv_timeout(timeout + Duration::from_millis(500))
            .unwrap_or(false)
    }
}

type Export = Pin<Box<dyn Future<Output = Result<Taken, ExportError>>>>;

/// The exporter thread's state.
struct Worker {
    recorder: Arc<Recorder>,
    assembler: Assembler,
    delivery: Delivery,
    exporter: Option<Arc<OtlpExporter>>,
    source: Arc<Source>,
    steering: Steering,
    began: Instant,
    /// When the queue was last emptied.
    now: Instant,
    stats: Arc<Mutex<Stats>>,
    /// Records and spans lost when somebody last asked.
    lost: u64,
}

impl Worker {
    fn new(mut config: Config, recorder: Arc<Recorder>, stats: Arc<Mutex<Stats>>) -> Self {
        let resource = resource(&config);
        let source = Arc::new(Source {
            role: config.role.as_str().into(),
            node: config.node.as_str().into(),
        });
        let exporter = config
            .exporter
            .as_ref()
            .map(|e| OtlpExporter::new(e, Arc::clone(&source), &resource));
        let exporter = match exporter.transpose() {
            Ok(exporter) => exporter.map(Arc::new),
            Err(error) => {
                tracing::error!("{error}; spans go to the legacy log");
                config.exporter = None;
                None
            }
        };
        Self {
            assembler: Assembler::new(Arc::clone(&config.vocabulary), Scope::Process),
            delivery: Delivery::new(
                &config,
                Arc::clone(&source),
                &resource,
                Arc::clone(&recorder.scopes),
            ),
            source,
            exporter,
            recorder,
            steering: Steering::new(),
            began: Instant::now(),
            now: Instant::now(),
            stats,
            lost: 0,
        }
    }

    async fn run(mut self, wake: Arc<Notify>, mut inbox: UnboundedReceiver<Command>) {
        let mut on_wire: Option<Export> = None;
        loop {
            self.start_export(&mut on_wire, false);
            self.publish();
            let pause = tokio::time::sleep(self.pause());
            tokio::select! {
                () = pause => {}
                () = wake.notified() => {}
                result = ready(&mut on_wire) => {
                    on_wire = None;
                    self.delivery.settle(result, Instant::now(), clock::now());
                }
                command = inbox.recv() => match command {
                    Some(Command::Flush { deadline, done }) => {
                        self.drain();
                        let safe = self.deliver_all(&mut on_wire, deadline).await;
                        self.publish();
                        // Whoever asked may have stopped waiting.
                        let _ = done.send(safe);
                    }
                    Some(Command::Shutdown { deadline, done }) => {
                        self.close();
                        let safe = self.deliver_all(&mut on_wire, deadline).await;
                        self.publish();
                        let _ = done.send(safe);
                        return;
                    }
                    // The pipeline was dropped without a shutdown.
                    None => {
                        self.close();
                        self.delivery.spill_wire();
                        self.delivery.spill_waiting();
                        self.publish();
                        return;
                    }
                },
            }
            self.drain();
        }
    }

    /// Until the next round: the usual pause, or less when a batch is due.
    fn pause(&self) -> Duration {
        let due = self.delivery.wake_at();
        due.map_or(DRAIN_EVERY, |at| {
            at.saturating_duration_since(Instant::now())
                .min(DRAIN_EVERY)
        })
    }

    fn start_export(&mut self, on_wire: &mut Option<Export>, all: bool) {
        let Some(exporter) = &self.exporter else {
            return;
        };
        if on_wire.is_none()
            && let Some(batch) = self.delivery.next_batch(Instant::now(), all)
        {
            let exporter = Arc::clone(exporter);
            *on_wire = Some(Box::pin(async move { exporter.export(&batch).await }));
        }
    }

    /// Exports everything that waits; what is not taken goes to the legacy log.
    async fn deliver_all(&mut self, on_wire: &mut Option<Export>, deadline: Instant) -> bool {
        loop {
            self.start_export(on_wire, true);
            if on_wire.is_none() {
                break;
            }
            match tokio::time::timeout_at(deadline.into(), ready(on_wire)).await {
                Ok(result) => {
                    *on_wire = None;
                    self.delivery.settle(result, Instant::now(), clock::now());
                    if self.delivery.is_failing() {
                        break;
                    }
                }
                Err(_) => {
                    *on_wire = None;
                    self.delivery.abandon_wire();
                    break;
                }
            }
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
        let stats = &mut self.delivery.stats;
        stats.open_requests = self.assembler.live() as u64;
        let in_flight = self.delivery.in_flight() as u64;
        let stats = Stats {
            in_flight,
            ..self.delivery.stats.clone()
        };
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
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
    if context.is_some_and(|c| !c.is_sampled()) {
        return;
    }
    let name = match event.action {
        ActionName::Known(id) => &*assembler.vocabulary().action(id).name,
        ActionName::Custom(name) => name,
    };
    let canonical = match known {
        Some((canonical, _)) => canonical,
        None => canonical_request_id(event.request_id),
    };
    let entry = legacy_log::event_entry(event, name, canonical, context.as_ref());
    delivery.buffer_event(entry);
}

/// Waits for the export on the wire; for ever when there is none.
async fn ready(on_wire: &mut Option<Export>) -> Result<Taken, ExportError> {
    match on_wire {
        Some(export) => export.await,
        None => std::future::pending().await,
    }
}

/// What describes this process to the Collector.
fn resource(config: &Config) -> Vec<Attribute> {
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
