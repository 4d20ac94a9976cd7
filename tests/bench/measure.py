"""One run: bursts of records at a fixed rate, and the CPU time they take."""

from __future__ import annotations

import time
from dataclasses import dataclass

from contestants import BURST, CONTESTANTS, Contestant

# Time from burst to burst: 100,000 records a second. Who cannot keep up gets the next
# burst at once.
PERIOD_NS = 10_000_000
# Bursts before the clock is read: connections, lazily made state, caches.
WARM_UP_NS = 100_000_000


@dataclass
class Settings:
    """What to run, and for how many seconds."""

    name: str
    seconds: float


@dataclass
class Cost:
    """What one run has cost."""

    caller_ns: float
    """CPU time of the calling thread for one record."""
    process_ns: float
    """CPU time of the whole process for one record, export included."""
    made: int
    """Spans made, warm-up included."""
    counted_lost: int | None
    """Spans that the contestant says are lost, if it counts."""
    arrived: int = 0
    """Spans that the sink has seen; only the parent knows."""

    @property
    def lost(self) -> float:
        """The part of the spans that did not arrive."""
        return 1 - self.arrived / self.made if self.made else 0.0


def measure(settings: Settings) -> Cost:
    """Runs one contestant in this process."""
    contestant = CONTESTANTS[settings.name].start()
    warm_up, _ = _paced(contestant, WARM_UP_NS)
    contestant.flush()
    process, thread = time.process_time_ns(), time.thread_time_ns()
    bursts, caller = _paced(contestant, int(settings.seconds * 1e9))
    # Sleeping between bursts is the bench's, not the contestant's.
    pacing = time.thread_time_ns() - thread - caller
    contestant.flush()
    process = time.process_time_ns() - process - pacing
    books = contestant.books((warm_up + bursts) * BURST)
    records = bursts * BURST
    return Cost(caller / records, process / records, books.made, books.lost)


def _paced(contestant: Contestant, length_ns: int) -> tuple[int, int]:
    """Records bursts for so long: how many, and the CPU time within them."""
    bursts = caller = 0
    due = time.monotonic_ns()
    end = due + length_ns
    while due < end:
        contestant.prepare(bursts)
        before = time.thread_time_ns()
        contestant.record()
        caller += time.thread_time_ns() - before
        bursts += 1
        now = time.monotonic_ns()
        due = max(due + PERIOD_NS, now)
        time.sleep((due - now) / 1e9)
    return bursts, caller
