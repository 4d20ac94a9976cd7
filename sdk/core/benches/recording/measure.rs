//! One run: bursts of records at a fixed rate, and the CPU time they take.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Records in a burst.
pub(crate) const BURST: u64 = 1_000;
/// Time from burst to burst of one thread: 100,000 records a second, which several threads share.
/// Who cannot keep up gets the next burst at once.
const PERIOD: Duration = Duration::from_millis(10);
/// Bursts before the clock is read: connections, lazily made state, caches.
const WARM_UP: u32 = 20;

/// One thread's way to record spans.
pub(crate) trait Caller: Send {
    /// Makes ready what a caller would have at hand; not measured.
    fn prepare(&mut self) {}
    /// Makes [`BURST`] records on this thread.
    fn record(&mut self);
}

/// Something that records spans.
pub(crate) trait Contestant {
    /// For one more thread.
    fn caller(&self) -> Box<dyn Caller>;
    /// Returns when everything recorded is exported or given up.
    fn flush(&mut self);
    /// To be asked after a flush, when this many bursts were recorded.
    fn books(&self, bursts: u64) -> Books;
}

/// What a contestant says of its own spans.
pub(crate) struct Books {
    /// Spans that should arrive.
    pub(crate) made: u64,
    /// How many of them it says are lost, if it counts.
    pub(crate) lost: Option<u64>,
}

/// What one run has cost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// CPU time of the calling thread for one record, in nanoseconds.
    pub(crate) caller_ns: f64,
    /// CPU time of the whole process for one record, export included.
    pub(crate) process_ns: f64,
    /// Spans made, warm-up included.
    pub(crate) made: u64,
    /// Spans that the sink has seen; only the parent knows.
    pub(crate) arrived: u64,
    /// Spans that the contestant says are lost.
    pub(crate) counted_lost: Option<u64>,
}

impl Cost {
    /// The part of the spans that did not arrive.
    pub(crate) fn lost(&self) -> f64 {
        1.0 - self.arrived as f64 / self.made as f64
    }
}

fn cpu(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn thread_cpu() -> u64 {
    cpu(ClockId::ThreadCPUTime)
}

/// What one thread has taken.
struct Taken {
    /// CPU time within the bursts.
    caller: u64,
    /// Between them: the bench's, not the contestant's.
    pacing: u64,
}

pub(crate) fn measure(contestant: &mut dyn Contestant, threads: u32, length: Duration) -> Cost {
    let period = PERIOD * threads;
    let bursts = (length.as_nanos() / period.as_nanos()) as u32;
    let (warm, go) = (
        &Barrier::new(threads as usize + 1),
        &Barrier::new(threads as usize + 1),
    );
    let callers: Vec<_> = (0..threads).map(|_| contestant.caller()).collect();
    let (taken, process) = thread::scope(|scope| {
        let run = |mut caller: Box<dyn Caller>| {
            move || {
                paced(WARM_UP, period, &mut *caller);
                warm.wait();
                go.wait();
                paced(bursts, period, &mut *caller)
            }
        };
        let running: Vec<_> = callers.into_iter().map(|c| scope.spawn(run(c))).collect();
        warm.wait();
        contestant.flush();
        let process = cpu(ClockId::ProcessCPUTime);
        go.wait();
        let taken: Vec<Taken> = running.into_iter().filter_map(|r| r.join().ok()).collect();
        assert_eq!(taken.len(), threads as usize, "a caller has panicked");
        (taken, process)
    });
    contestant.flush();
    let (caller, pacing) = taken.iter().fold((0, 0), |(caller, pacing), taken| {
        (caller + taken.caller, pacing + taken.pacing)
    });
    let process = cpu(ClockId::ProcessCPUTime) - process - pacing;
    let records = f64::from(bursts * threads) * BURST as f64;
    let books = contestant.books(u64::from((WARM_UP + bursts) * threads));
    Cost {
        caller_ns: caller as f64 / records,
        process_ns: process as f64 / records,
        made: books.made,
        arrived: 0,
        counted_lost: books.lost,
    }
}

/// Records this many bursts.
fn paced(bursts: u32, period: Duration, caller: &mut dyn Caller) -> Taken {
    let (begin, mut within) = (thread_cpu(), 0);
    let mut due = Instant::now();
    for _ in 0..bursts {
        caller.prepare();
        let before = thread_cpu();
        caller.record();
        within += thread_cpu() - before;
        due = (due + period).max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Taken {
        caller: within,
        pacing: thread_cpu() - begin - within,
    }
}
