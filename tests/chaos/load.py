"""The program under chaos: records on several threads, forks, and reports its books at its end.

Reads `round TRACES FORKED`: so many traces from its own threads, and so many from a child that is
forked meanwhile; `return`: traces, slowly, until a Collector takes them; `settle`: until nothing
waits. Says `done` after each. Ends with its input, as any program ends.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import multiprocessing
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

REPORTS = Path(sys.argv[1])
THREADS = 2
HANGS = 300
"""Seconds after which a round is a deadlock, and says where."""


class Maker:
    """Makes traces whose ids say who made them; one for each process."""

    def __init__(self) -> None:
        self.label = os.getpid() << 32 | secrets.randbits(32)
        self.traces = 0
        self.lock = threading.Lock()

    def make(self, count: int) -> None:
        for made in range(count):
            with self.lock:
                self.traces += 1
                trace_id = f"{self.label:016x}{self.traces:016x}"
            recording.record(trace_id)
            if made % 200 == 199:
                time.sleep(0.01)

    def report(self) -> None:
        """What this process has made and what it says became of it."""
        said = {
            "pid": os.getpid(),
            "label": self.label,
            "traces": self.traces,
            "books": omnitrace.stats(),
        }
        part = REPORTS / f"{self.label}.part"
        part.write_text(json.dumps(said))
        part.rename(part.with_suffix(".json"))


def forked(count: int) -> None:
    """A child, and a child of it, that end without Python's own clean-up."""
    pid = os.fork()
    if pid == 0:
        maker = Maker()
        maker.make(count // 2)
        grandchild = os.fork()
        if grandchild == 0:
            maker = Maker()
            maker.make(count - count // 2)
        omnitrace.shutdown()
        maker.report()
        os._exit(os.waitpid(grandchild, 0)[1] if grandchild else 0)
    assert os.waitpid(pid, 0)[1] == 0


def as_multiprocessing_ends(count: int) -> None:
    """A child's work; nothing here delivers, omnitrace does that by itself."""
    maker = Maker()
    Finalize(None, maker.report, exitpriority=-1)
    maker.make(count)


def by_multiprocessing(count: int) -> None:
    context: Any = multiprocessing.get_context("fork")
    child = context.Process(target=as_multiprocessing_ends, args=(count,))
    child.start()
    child.join()
    assert child.exitcode == 0


def play(maker: Maker, line: str, child: Callable[[int], None]) -> None:
    """A round: every thread its share, and a child."""
    word, own, others = line.split()
    assert word == "round"
    shares = [int(own) * (n + 1) // THREADS - int(own) * n // THREADS for n in range(THREADS)]
    jobs = [threading.Thread(target=maker.make, args=(share,)) for share in shares]
    jobs.append(threading.Thread(target=child, args=(int(others),)))
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()


def be_back(maker: Maker) -> None:
    exported = omnitrace.stats()["exported"]
    while omnitrace.stats()["exported"] == exported:
        maker.make(1)
        time.sleep(0.05)


def settle() -> None:
    while omnitrace.stats()["in_flight"]:
        time.sleep(0.02)


def main() -> None:
    maker = Maker()
    children = [forked, by_multiprocessing]
    for number, line in enumerate(sys.stdin):
        faulthandler.dump_traceback_later(HANGS, exit=True)
        if line == "return\n":
            be_back(maker)
        elif line == "settle\n":
            settle()
        else:
            play(maker, line, children[number % 2])
        faulthandler.cancel_dump_traceback_later()
        print("done", flush=True)
    # Registered before omnitrace was imported, so it runs after its clean-up.
    AT_EXIT.append(maker.report)


AT_EXIT: list[Any] = []
if __name__ == "__main__":
    atexit.register(lambda: [each() for each in AT_EXIT])

import omnitrace  # noqa: E402
import recording  # noqa: E402

if __name__ == "__main__":
    main()
