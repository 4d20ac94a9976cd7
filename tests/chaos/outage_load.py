"""Records as fast as nothing is lost, through an outage that has no end.

Reads `TRACES WAITING`: so many traces, no faster than keeps so many spans waiting at most. Says its
books after each, and when its input ends those that it ends with.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import threading
import time

import omnitrace
import recording
from traces import NAMES

THREADS = 4
AHEAD = 2_500
"""Events of each thread in the queue at most; a trace has as many as it has spans."""


class Pace:
    """Threads that record, and wait for the exporter thread when they are ahead of it."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        self.before = omnitrace.stats()["events"]
        self.made = [0] * THREADS

    def record(self, number: int, traces: int) -> None:
        for made in range(1, traces + 1):
            recording.record(f"{number + 1:016x}{time.time_ns():016x}")
            if made % 100 == 0:
                self.made[number] = made
                while self.is_ahead():
                    time.sleep(0.005)
        self.made[number] = traces

    def is_ahead(self) -> bool:
        books = omnitrace.stats()
        queued = sum(self.made) * len(NAMES) - (books["events"] - self.before)
        return queued > AHEAD * THREADS or books["in_flight"] > self.waiting


def main() -> None:
    faulthandler.dump_traceback_later(7200, exit=True)
    for line in sys.stdin:
        traces, waiting = map(int, line.split())
        pace = Pace(waiting)
        parts = [traces * (n + 1) // THREADS - traces * n // THREADS for n in range(THREADS)]
        threads = [threading.Thread(target=pace.record, args=each) for each in enumerate(parts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        omnitrace.flush(60)
        print(json.dumps(omnitrace.stats()), flush=True)
    omnitrace.shutdown(60)
    print(json.dumps(omnitrace.stats()), flush=True)


if __name__ == "__main__":
    main()
