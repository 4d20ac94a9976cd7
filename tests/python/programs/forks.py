"""Says how many threads the kernel counts at the moment of each fork; CPython warns of them."""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from pathlib import Path

counted: list[int] = []


def count() -> None:
    counted.append(len(list(Path("/proc/self/task").iterdir())))


# Before omnitrace's own, so it runs after that.
os.register_at_fork(before=count)

import omnitrace  # noqa: E402


def say(what: object) -> None:
    os.write(1, (json.dumps(what) + "\n").encode())


def record(name: str) -> None:
    with omnitrace.span(name):
        pass


def fork(patience: float) -> None:
    pid = os.fork()
    if pid == 0:
        record("child")
        os._exit(0 if omnitrace.flush(patience) else 1)
    assert os.waitpid(pid, 0)[1] == 0


def main() -> None:
    record("parent")
    # CPython 3.12 and later; the first releases of 3.13 count threads too late.
    if not (3, 13) <= sys.version_info < (3, 13, 18):
        warnings.simplefilter("error")
    fork(30)
    warnings.resetwarnings()
    thread = threading.Thread(target=fork, args=(30,))
    thread.start()
    thread.join()
    # In the middle of an export that hangs.
    sys.stdin.readline()
    record("parent")
    flush = threading.Thread(target=omnitrace.flush, args=(60,))
    flush.start()
    fork(0.1)
    say(counted)
    flush.join()
    omnitrace.shutdown()
    say(omnitrace.stats())


main()
