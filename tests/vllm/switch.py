"""Tracing that can be switched on and off while a server runs: `--middleware switch.Switch`.

`POST /switch/on`, `POST /switch/off`. What OMNITRACE_BENCH_SWITCH names is switched in the API
process: `omnitrace` (its hooks are taken from what they are on, and put back), `native` (vLLM's
own tracing), `nothing` (to see what the measurement itself tells apart). So the same process,
with the same memory and the same open connections, serves with tracing and without. The answer
is the numbers of the threads that export, as the system has them.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WHERE = "/switch/"
Turn = Callable[[bool], None]


class Switch:
    """An ASGI application around the server's own."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._turn: Turn | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers what it is asked, passes on all else."""
        if scope["type"] != "http" or not scope["path"].startswith(_WHERE):
            await self._app(scope, receive, send)
            return
        if self._turn is None:
            self._turn = _TURNS[os.environ["OMNITRACE_BENCH_SWITCH"]](scope["app"])
        self._turn(scope["path"] == f"{_WHERE}on")
        exporters = json.dumps(_exporters()).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": exporters})


def _exporters() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    ours = [int(task.name) for task in tasks if (task / "comm").read_text() == "omnitrace\n"]
    theirs = [thread.native_id for thread in threading.enumerate() if "Otel" in thread.name]
    return ours + [number for number in theirs if number is not None]


def _nothing(app: Any) -> Turn:
    return lambda on: None


def _omnitrace(app: Any) -> Turn:
    from omnitrace.vllm import _plugin

    hooked: list[tuple[Any, str, Any]] = []
    for target, is_there in _plugin.found.items():
        if is_there:
            module, _, path = target.partition(":")
            *owners, name = path.split(".")
            owner: Any = sys.modules[module]
            for each in owners:
                owner = getattr(owner, each)
            if hasattr(owner.__dict__[name], "__wrapped__"):
                hooked.append((owner, name, owner.__dict__[name]))
    if not hooked:
        raise RuntimeError("no hook of omnitrace's is in place")

    def turn(on: bool) -> None:
        for owner, name, wrapper in hooked:
            setattr(owner, name, wrapper if on else wrapper.__wrapped__)

    return turn


def _native(app: Any) -> Turn:
    engine: Any = app.state.engine_client
    if not engine.output_processor.tracing_enabled:
        raise RuntimeError("vLLM's own tracing is off: --otlp-traces-endpoint")

    def turn(on: bool) -> None:
        async def is_tracing_enabled() -> bool:
            return on

        engine.output_processor.tracing_enabled = on
        engine.is_tracing_enabled = is_tracing_enabled

    return turn


_TURNS: dict[str, Callable[[Any], Turn]] = {
    "nothing": _nothing,
    "omnitrace": _omnitrace,
    "native": _native,
}
