//! One process's way from records to delivered spans: a recorder for the host's
//! threads, and one thread that does everything else.

mod bell;
mod reporter;
mod wire;
mod worker;

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::delivery::Stats;
use crate::diagnostics;
use crate::legacy_log;
use crate::queue::Queue;
use crate::recorder::Recorder;
use crate::value::{Attribute, Value};

use bell::Bell;
use worker::{Observe, Worker, books};

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
        Self::start_with(config, None)
    }

    /// Starts the exporter thread. At the end of each of its rounds it shows the books to
    /// `observe`, which must not wait.
    pub fn start_observed(
        config: Config,
        observe: impl Fn(&Stats) + Send + 'static,
    ) -> Result<Self, StartError> {
        Self::start_with(config, Some(Box::new(observe)))
    }

    fn start_with(config: Config, observe: Option<Observe>) -> Result<Self, StartError> {
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
            let worker = Worker::new(config, recorder, stats, observe, bell, inbox);
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
