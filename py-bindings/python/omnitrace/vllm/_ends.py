"""The end of a vLLM: what its processes have recorded is to be delivered or in the log."""

from __future__ import annotations

import time
from typing import Any

from .. import _omnitrace as omnitrace

_GRACE = 3.0
"""Seconds for engines to end by themselves. A vLLM that has no shutdown timeout kills them
in the moment in which it tells them to end."""
_FLUSH = 2.0
"""Seconds for a Collector to take what an engine has."""


def engines_end(manager: Any, timeout: float | None) -> None:
    """The API process is about to end its engines."""
    # None: vLLM's own grace.
    if timeout is None or timeout >= _GRACE:
        return
    deadline = time.monotonic() + _GRACE
    running = [process for process in manager.processes if process.is_alive()]
    for process in running:
        process.terminate()
    for process in running:
        process.join(max(0.0, deadline - time.monotonic()))


def engine_ends() -> None:
    """An engine ends, before it takes down what it is made of."""
    omnitrace.flush(_FLUSH)
