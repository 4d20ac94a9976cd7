//! The books of all workers, in shared memory.
//!
//! Each worker has a page that its exporter's thread keeps up to date. A worker that ends, or is
//! found dead, has its page added to those before it: spans that it still held are lost.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use nginx_sys::{ESRCH, getpid, kill};
use omnitrace::Stats;

use crate::shared::Zone;

/// Most workers at once, those that still end included.
const PAGES: usize = 1024;
/// How often a page that is being written is read again.
const READINGS: usize = 1000;

/// Why spans are lost, and what counts all other reasons.
pub(crate) const REASONS: [&str; 6] = [
    "queue_full",
    "not_delivered",
    "rejected",
    "legacy_log_failed",
    WORKER_ENDED,
    "other",
];
/// Reason for a drop: the worker has ended with the span.
const WORKER_ENDED: &str = "worker_ended";

/// What is counted; the reasons for drops follow.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Count {
    Created,
    Exported,
    InFlight,
    Logged,
    Events,
    EventsLost,
    EventsLoose,
    Unsampled,
    Contradictory,
    OpenRequests,
    Dropped,
}

const COUNTS: usize = Count::Dropped as usize + REASONS.len();

/// Numbers by [`Count`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Numbers([u64; COUNTS]);

impl Numbers {
    fn of(stats: &Stats) -> Self {
        let mut numbers = Self::default();
        for (count, number) in [
            (Count::Created, stats.created),
            (Count::Exported, stats.exported),
            (Count::InFlight, stats.in_flight),
            (Count::Logged, stats.logged),
            (Count::Events, stats.events),
            (Count::EventsLost, stats.events_lost),
            (Count::EventsLoose, stats.events_loose),
            (Count::Unsampled, stats.unsampled),
            (Count::Contradictory, stats.contradictory),
            (Count::OpenRequests, stats.open_requests),
        ] {
            numbers.0[count as usize] = number;
        }
        for (reason, number) in &stats.dropped {
            let known = REASONS.iter().position(|known| known == reason);
            let at = known.unwrap_or(REASONS.len() - 1);
            numbers.0[Count::Dropped as usize + at] += number;
        }
        numbers
    }

    /// The number of this count.
    pub(crate) fn get(&self, count: Count) -> u64 {
        self.0[count as usize]
    }

    /// Spans lost, by reason.
    pub(crate) fn dropped(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let numbers = self.0[Count::Dropped as usize..].iter().copied();
        REASONS.into_iter().zip(numbers)
    }

    fn add(&mut self, other: &Self) {
        for (sum, number) in self.0.iter_mut().zip(other.0) {
            *sum += number;
        }
    }

    /// What is left of a worker that is gone.
    fn ended(mut self) -> Self {
        let held = std::mem::take(&mut self.0[Count::InFlight as usize]);
        let reason = REASONS.iter().position(|reason| *reason == WORKER_ENDED);
        self.0[Count::Dropped as usize + reason.unwrap_or_default()] += held;
        self.0[Count::OpenRequests as usize] = 0;
        self
    }
}

/// The books of all workers. What opens, closes or adds up pages holds the zone's lock.
#[repr(C)]
pub(crate) struct SharedBooks {
    /// Of workers that are gone.
    past: [AtomicU64; COUNTS],
    pages: [Page; PAGES],
}

/// The books of one worker.
#[repr(C, align(64))]
struct Page {
    /// Process number; 0 where there is none.
    owner: AtomicU64,
    /// Odd while the owner writes.
    version: AtomicU64,
    numbers: [AtomicU64; COUNTS],
}

impl SharedBooks {
    /// The sum of all books, and how many workers there are.
    pub(crate) fn total(&self) -> (Numbers, usize) {
        self.close_dead();
        let mut sum = load(&self.past);
        let mut workers = 0;
        for page in self.pages.iter().filter(|page| page.is_open()) {
            sum.add(&page.read());
            workers += 1;
        }
        (sum, workers)
    }

    fn open(&self, owner: u64) -> Option<&Page> {
        self.close_dead();
        let free = self.pages.iter().find(|page| !page.is_open())?;
        free.owner.store(owner, Ordering::Release);
        Some(free)
    }

    /// Moves a page's numbers to those of the past.
    fn close(&self, page: &Page) {
        let rest = page.read().ended();
        for (sum, number) in self.past.iter().zip(rest.0) {
            sum.fetch_add(number, Ordering::Relaxed);
        }
        page.version.store(0, Ordering::Relaxed);
        for number in &page.numbers {
            number.store(0, Ordering::Relaxed);
        }
        page.owner.store(0, Ordering::Release);
    }

    fn close_dead(&self) {
        for page in self
            .pages
            .iter()
            .filter(|page| page.is_open() && page.is_dead())
        {
            self.close(page);
        }
    }
}

impl Page {
    fn is_open(&self) -> bool {
        self.owner.load(Ordering::Acquire) != 0
    }

    /// Whether its worker is no more.
    fn is_dead(&self) -> bool {
        let owner = self.owner.load(Ordering::Relaxed) as i32;
        // SAFETY: signal 0 only asks.
        let answer = unsafe { kill(owner, 0) };
        answer != 0 && std::io::Error::last_os_error().raw_os_error() == Some(ESRCH as i32)
    }

    /// Only its owner writes.
    fn write(&self, numbers: &Numbers) {
        let version = self.version.load(Ordering::Relaxed) | 1;
        self.version.store(version, Ordering::Relaxed);
        fence(Ordering::Release);
        for (place, number) in self.numbers.iter().zip(numbers.0) {
            place.store(number, Ordering::Relaxed);
        }
        self.version
            .store(version.wrapping_add(1), Ordering::Release);
    }

    /// Numbers of one moment, so that they balance; unless the worker has died while it wrote.
    fn read(&self) -> Numbers {
        for _ in 0..READINGS {
            let before = self.version.load(Ordering::Acquire);
            let numbers = load(&self.numbers);
            fence(Ordering::Acquire);
            if before & 1 == 0 && self.version.load(Ordering::Relaxed) == before {
                return numbers;
            }
            std::hint::spin_loop();
        }
        load(&self.numbers)
    }
}

fn load(numbers: &[AtomicU64; COUNTS]) -> Numbers {
    Numbers(std::array::from_fn(|at| {
        numbers[at].load(Ordering::Relaxed)
    }))
}

/// This worker's page, until it ends. Without room there is none: its books are then only in
/// what it says at its end.
#[derive(Clone)]
pub(crate) struct OwnBooks {
    zone: Zone,
    page: Arc<Mutex<Option<&'static Page>>>,
}

impl OwnBooks {
    /// Opens a page. None: there is no room for it.
    pub(crate) fn open(zone: Zone) -> Option<Self> {
        // SAFETY: always works.
        let owner = unsafe { getpid() } as u64;
        let page = zone.with_books(|books| books.open(owner))?;
        Some(Self {
            zone,
            page: Arc::new(Mutex::new(Some(page))),
        })
    }

    /// Brings the page up to date. `unsaid` requests are open of which nothing was recorded yet.
    pub(crate) fn write(&self, stats: &Stats, unsaid: u64) {
        let page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = *page {
            let mut numbers = Numbers::of(stats);
            numbers.0[Count::OpenRequests as usize] += unsaid;
            page.write(&numbers);
        }
    }

    /// Closes the page with its last numbers; nothing is written after it.
    pub(crate) fn close(&self, stats: &Stats) {
        self.write(stats, 0);
        let page = self
            .page
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(page) = page {
            self.zone.with_books(|books| books.close(page));
        }
    }
}
