//! The wall clock, as the recorder reads it.
//!
//! Where the kernel itself keeps time by the processor's time stamp counter
//! (Linux's clock source `tsc`: constant, and the same on every core), we read that
//! counter, at a third of the price of a system call's fast path. The exporter
//! thread holds it against the system's clock: [`Steering::adjust`].
//!
//! ```text
//!  nanoseconds = base + (counter − origin) × rate
//! ```
//! Time steered so never goes backwards: small differences are made up for by a
//! rate that is a little higher or lower until the next adjustment. Only a step of
//! the system's clock, as when somebody sets it, is followed at once.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970.
#[inline]
pub fn now() -> u64 {
    LINE.at(counter()).unwrap_or_else(system)
}

/// The system's clock, in nanoseconds since 1970.
fn system() -> u64 {
    // A clock before 1970 is a machine that has not been set; 0 is as good.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64)
}

/// The processor's time stamp counter.
#[cfg(target_arch = "x86_64")]
#[inline]
#[allow(unsafe_code)]
fn counter() -> u64 {
    // SAFETY: the instruction only reads a counter that every x86-64 processor has.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// There is no line where nothing counts: see [`kernel_trusts_counter`].
#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    0
}

/// Whether the counter runs at a constant rate, the same on every core: the kernel
/// has tested it if it keeps time by it.
fn kernel_trusts_counter() -> bool {
    const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    cfg!(target_arch = "x86_64")
        && std::fs::read_to_string(SOURCE).is_ok_and(|name| name.trim() == "tsc")
}

/// A difference to the system's clock that must be a step: nothing drifts so far
/// from one adjustment to the next.
const STEP_NS: u64 = 1_000_000;
/// A step that is worth a message; smaller ones are a time service's work.
const TOLD_STEP_NS: u64 = 1_000_000_000;
/// How often the line is held against the system's clock.
const ADJUST_EVERY: Duration = Duration::from_millis(100);
/// The rate is taken over at least this long, and at most twice as long as
/// [`LONGEST_LOOK`].
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_secs(10);
/// A rate is nanoseconds per tick with this many bits of fraction.
const SHIFT: u32 = 32;

/// The line that turns the counter into time.
static LINE: Line = Line::new();

/// A line that one thread draws and all read; rate 0 while there is none.
struct Line {
    /// Odd while it is being drawn.
    version: AtomicU64,
    origin: AtomicU64,
    base: AtomicU64,
    rate: AtomicU64,
    /// Who draws it: a number of [`Steering`].
    owner: AtomicU64,
}

impl Line {
    const fn new() -> Self {
        Self {
            version: AtomicU64::new(0),
            origin: AtomicU64::new(0),
            base: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            owner: AtomicU64::new(0),
        }
    }

    #[inline]
    /// The time at this count; none while there is no line to read.
    fn at(&self, count: u64) -> Option<u64> {
        let version = self.version.load(Ordering::Acquire);
        let origin = self.origin.load(Ordering::Relaxed);
        let base = self.base.load(Ordering::Relaxed);
        let rate = self.rate.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        if rate == 0 || version & 1 != 0 || self.version.load(Ordering::Relaxed) != version {
            return None;
        }
        // Another core's counter may be a few ticks behind the one that drew it.
        let ticks = count.saturating_sub(origin);
        let nanos = (u128::from(ticks) * u128::from(rate)) >> SHIFT;
        Some(base.wrapping_add(nanos as u64))
    }

    /// Only the owner draws.
    fn draw(&self, origin: u64, base: u64, rate: u64) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.origin.store(origin, Ordering::Relaxed);
        self.base.store(base, Ordering::Relaxed);
        self.rate.store(rate, Ordering::Relaxed);
        self.version
            .store((version | 1).wrapping_add(1), Ordering::Release);
    }

    fn erase(&self) {
        self.draw(0, 0, 0);
        self.owner.store(0, Ordering::Relaxed);
    }
}

/// To be called in a forked child before it records: the thread that draws the line
/// is not there, and may have been at it.
pub(crate) fn restart() {
    LINE.erase();
}

/// The counter and both clocks of the system at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    count: u64,
    /// Never stepped.
    elapsed: Duration,
    /// Nanoseconds since 1970.
    wall: u64,
}

/// One exporter thread's share in keeping time.
pub(crate) struct Steering {
    number: u64,
    began: Instant,
    adjusted: Option<Instant>,
    /// Where the rate is taken from, and where it will be taken from next.
    references: Option<[Sample; 2]>,
    rate: u64,
}

impl Steering {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let first = kernel_trusts_counter()
            // Of several pipelines in a process the first one does it.
            && LINE.owner.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        Self {
            number: if first { number } else { 0 },
            began: Instant::now(),
            adjusted: None,
            references: None,
            rate: 0,
        }
    }

    /// Holds the line against the system's clock, if it is time; to be called again
    /// and again.
    pub(crate) fn adjust(&mut self) {
        let recent = |at: Instant| at.elapsed() < ADJUST_EVERY;
        if self.number == 0 || self.adjusted.is_some_and(recent) && self.rate != 0 {
            return;
        }
        self.adjusted = Some(Instant::now());
        let step = self.take(self.sample(), &LINE);
        if let Some(step) = step.filter(|ns| ns.unsigned_abs() >= TOLD_STEP_NS) {
            let (by, to) = (Duration::from_nanos(step.unsigned_abs()), step.signum());
            tracing::warn!(
                "the system's clock was set {} by {by:?}: what was open then has a wrong length",
                if to > 0 { "forward" } else { "back" },
            );
        }
    }

    /// The best of a few: one that was interrupted has read its clocks at different
    /// moments.
    fn sample(&self) -> Sample {
        let sample = || {
            let before = counter();
            let (elapsed, wall) = (self.began.elapsed(), system());
            let width = counter().saturating_sub(before);
            let count = before + width / 2;
            (
                width,
                Sample {
                    count,
                    elapsed,
                    wall,
                },
            )
        };
        let mut best = sample();
        for _ in 0..3 {
            let next = sample();
            if next.0 < best.0 {
                best = next;
            }
        }
        best.1
    }

    /// Draws the line anew. Some: the system's clock was stepped by so many
    /// nanoseconds.
    fn take(&mut self, now: Sample, line: &Line) -> Option<i64> {
        let Some([reference, next]) = &mut self.references else {
            self.references = Some([now; 2]);
            return None;
        };
        let span = now.elapsed.saturating_sub(reference.elapsed);
        let ticks = now.count.saturating_sub(reference.count);
        if span < FIRST_LOOK || ticks == 0 {
            return None;
        }
        let rate = ((span.as_nanos() << SHIFT) / u128::from(ticks)) as u64;
        if now.elapsed.saturating_sub(next.elapsed) >= LONGEST_LOOK {
            (*reference, *next) = (*next, now);
        }
        let first = self.rate == 0;
        self.rate = rate;
        let ours = line.at(now.count).filter(|_| !first).unwrap_or(now.wall);
        let error = now.wall.wrapping_sub(ours) as i64;
        if error.unsigned_abs() >= STEP_NS {
            line.draw(now.count, now.wall, rate);
            // The counter itself may have jumped, as when a machine is moved.
            self.references = Some([now; 2]);
            return Some(error);
        }
        // What is missing is made up for within about a second.
        let correction = i128::from(rate) * i128::from(error) / 1_000_000_000;
        let rate = (i128::from(rate) + correction) as u64;
        line.draw(now.count, ours, rate);
        None
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        // Without adjustment the line would drift away.
        let owner = &LINE.owner;
        if self.number != 0 && owner.load(Ordering::Relaxed) == self.number {
            LINE.erase();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GHZ: u64 = 3;
    const START: u64 = 1_795_334_645_000_000_000;

    /// A machine with a counter of 3 GHz whose clocks gain 100 ns a second on it.
    struct Machine {
        ns: u64,
        stepped: i64,
    }

    impl Machine {
        fn sample(&self) -> Sample {
            let clocks = self.ns + self.ns / 10_000_000;
            Sample {
                count: 7_000_000 + self.ns * GHZ,
                elapsed: Duration::from_nanos(clocks),
                wall: (START + clocks).wrapping_add_signed(self.stepped),
            }
        }

        /// Goes on in small steps and holds every reading against the last one.
        fn run(&mut self, line: &Line, steering: &mut Steering, ns: u64) -> Vec<i64> {
            let mut steps = Vec::new();
            let mut last = 0;
            let end = self.ns + ns;
            while self.ns < end {
                self.ns += 10_000_000;
                let sample = self.sample();
                let time = line.at(sample.count);
                let step = steering.take(sample, line);
                let Some(time) = time else { continue };
                assert!(step.is_some() || time.abs_diff(sample.wall) < 5_000);
                assert!(time >= last);
                last = if step.is_some() { 0 } else { time };
                steps.extend(step);
                assert!(step.is_some() || line.at(sample.count) == Some(time));
            }
            steps
        }
    }

    fn steering() -> Steering {
        Steering {
            number: 0,
            began: Instant::now(),
            adjusted: None,
            references: None,
            rate: 0,
        }
    }

    #[test]
    fn the_line_follows_the_systems_clock_and_never_goes_back() {
        let (line, mut steering) = (Line::new(), steering());
        let mut machine = Machine { ns: 0, stepped: 0 };
        assert_eq!(line.at(7), None);
        let steps = machine.run(&line, &mut steering, 60_000_000_000);
        assert_eq!(steps, Vec::<i64>::new());
        let sample = machine.sample();
        let time = line.at(sample.count).unwrap();
        assert!(time.abs_diff(sample.wall) < 100, "{time} {sample:?}");
    }

    #[test]
    fn a_clock_that_is_set_back_is_followed_at_once() {
        let (line, mut steering) = (Line::new(), steering());
        let mut machine = Machine { ns: 0, stepped: 0 };
        machine.run(&line, &mut steering, 1_000_000_000);
        machine.stepped = -3_600_000_000_000;
        let steps = machine.run(&line, &mut steering, 1_000_000_000);
        assert_eq!(steps.len(), 1);
        assert!(steps[0].abs_diff(-3_600_000_000_000) < 5_000, "{steps:?}");
        let sample = machine.sample();
        assert!(line.at(sample.count).unwrap().abs_diff(sample.wall) < 5_000);
    }

    #[test]
    fn the_time_is_the_systems() {
        let mut steering = Steering::new();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(300) {
            steering.adjust();
            let (before, time, after) = (system(), now(), system());
            // A clock that is set during the test is not this test's subject.
            assert!(before - STEP_NS <= time && time <= after + STEP_NS);
        }
        // The line is there exactly where the kernel trusts the counter.
        let drawn = LINE.rate.load(Ordering::Relaxed) != 0;
        assert!(!drawn || kernel_trusts_counter());
    }
}
