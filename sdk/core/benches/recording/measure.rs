//! One run: bursts of records at a fixed rate, and the CPU time they take.

use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Records in a burst.
pub(crate) const BURST: u64 = 1_000;
/// Time from burst to burst: 100,000 records a second. Who cannot keep up gets
/// the next burst at once.
const PERIOD: Duration = Duration::from_millis(10);
/// Bursts before the clock is read: connections, lazily made state, caches.
const WARM_UP: u32 = 20;

/// Something that records spans.
pub(crate) trait Contestant {
    /// Makes ready what a caller would have at hand; not measured.
    fn prepare(&mut self) {}
    /// Makes [`BURST`] records on this thread.
    fn record(&mut self);
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

pub(crate) fn measure(contestant: &mut dyn Contestant, length: Duration) -> Cost {
    paced(WARM_UP, contestant);
    contestant.flush();
    let bursts = (length.as_nanos() / PERIOD.as_nanos()) as u32;
    let (process, thread) = (cpu(ClockId::ProcessCPUTime), thread_cpu());
    let caller = paced(bursts, contestant);
    // Sleeping between bursts is the bench's, not the contestant's.
    let pacing = thread_cpu() - thread - caller;
    contestant.flush();
    let process = cpu(ClockId::ProcessCPUTime) - process - pacing;
    let records = f64::from(bursts) * BURST as f64;
    let books = contestant.books(u64::from(WARM_UP + bursts));
    Cost {
        caller_ns: caller as f64 / records,
        process_ns: process as f64 / records,
        made: books.made,
        arrived: 0,
        counted_lost: books.lost,
    }
}

/// Records this many bursts; the CPU time within them.
fn paced(bursts: u32, contestant: &mut dyn Contestant) -> u64 {
    let mut caller = 0;
    let mut due = Instant::now();
    for _ in 0..bursts {
        contestant.prepare();
        let before = thread_cpu();
        contestant.record();
        caller += thread_cpu() - before;
        due = (due + PERIOD).max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    caller
}
