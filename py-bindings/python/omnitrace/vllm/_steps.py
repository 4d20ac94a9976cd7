"""The engine's steps as spans: what the scheduler has chosen, how long the model took, what
is left of the KV cache.

::

    Scheduler.schedule        Executor.execute_model        Scheduler.update_from_output
    begins ─► scheduled ─────► executing ── workers ──► executed ─► ends
                                  │  step id, traceparent
                                  └─► arrives ─► main model, mtp model

A step and the next one may overlap: a step is known by its scheduler output.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

from .. import _omnitrace as omnitrace
from . import _engine, _roles

logger = logging.getLogger("omnitrace")

VARIABLE = "OMNITRACE_VLLM_STEPS"

_MOST = 64
"""Steps on their way; more than any pipeline has stages. A step whose outcome never comes
is forgotten in the end."""


def ratio() -> float:
    """The part of the steps that is recorded, from 0 to 1; 0 unless asked for."""
    value = os.environ.get(VARIABLE, "").strip()
    if not value:
        return 0.0
    try:
        part = float(value)
    except ValueError:
        part = math.nan
    if 0 <= part <= 1:
        return part
    # Of all of vLLM's processes the first one tells.
    if multiprocessing.parent_process() is None:
        logger.warning(
            '%s="%s" is not a ratio from 0 to 1: no engine steps are recorded', VARIABLE, value
        )
    return 0.0


class _Step:
    """A step on its way."""

    __slots__ = (
        "attributes",
        "chosen",
        "context",
        "executed",
        "executing",
        "output",
        "requests",
        "start",
    )

    def __init__(self, start: int, attributes: dict[str, Any]) -> None:
        self.start = start
        self.attributes = attributes
        self.chosen = self.executing = self.executed = 0
        self.context: omnitrace.SpanContext | None = None
        self.output: Any = None
        self.requests: list[tuple[str, str, int]] = []


class Steps:
    """The steps that this process's engine makes.

    number: of the step that has just been scheduled.
    """

    def __init__(self, number: Callable[[], int]) -> None:
        self._number = number
        self._ratio = 0.0
        self._count = 0
        """Steps in which tokens were scheduled."""
        self._begun: _Step | None = None
        self._last: Any = None
        """A scheduler may pass on what the one that it is made of has made."""
        self._open: dict[int, _Step] = {}
        """By the id of its output, which it keeps alive."""

    def record(self, ratio: float) -> None:
        """From now on this part of the steps is recorded."""
        self._ratio = ratio

    def begins(self, scheduler: Any) -> None:
        """The scheduler begins to choose."""
        # Evenly spread, and the same each time.
        is_due = int((self._count + 1) * self._ratio) > int(self._count * self._ratio)
        if not is_due:
            self._begun = None
            return
        attributes = {"omnitrace.engine.kv.free_blocks_at_start": _free_blocks(scheduler)}
        self._begun = _Step(time.time_ns(), attributes)

    def scheduled(self, scheduler: Any, output: Any) -> None:
        """The scheduler has chosen."""
        step, self._begun = self._begun, None
        if not output.total_num_scheduled_tokens or output is self._last:
            return
        self._last = output
        self._count += 1
        if step is None:
            return
        tokens: int = output.total_num_scheduled_tokens
        step.chosen = time.time_ns()
        step.output = output
        step.requests = _requests(scheduler, output)
        step.attributes["omnitrace.engine.batch_size"] = len(output.num_scheduled_tokens)
        step.attributes["omnitrace.engine.scheduled_tokens"] = tokens
        step.attributes["omnitrace.engine.total_tokens"] = tokens + _computed_tokens(output)
        while len(self._open) >= _MOST:
            self._open.pop(next(iter(self._open)))
        self._open[id(output)] = step

    def executing(self, output: Any) -> None:
        """The output is about to go to the workers: they learn what it belongs to."""
        step = self._open.get(id(output))
        if step is not None and not step.executing:
            self._leave(step, time.time_ns())

    def _leave(self, step: _Step, executing: int) -> None:
        step.executing = executing
        output = step.output
        known = omnitrace._step_context(executing)
        if known is None:
            del self._open[id(output)]
            return
        step_id, step.context = known
        step.attributes["omnitrace.engine.step_id"] = step_id
        step.attributes["omnitrace.engine.step"] = self._number()
        output.omnitrace_step = step_id, step.context.traceparent

    def executed(self, output: Any) -> None:
        """The model has run."""
        step = self._open.get(id(output))
        if step is None or step.executed:
            return
        step.executed = time.time_ns()
        if not step.executing:
            # By an executor of somebody else's.
            self._leave(step, step.chosen)

    def ends(self, scheduler: Any, output: Any) -> None:
        """The scheduler has taken the outcome in."""
        step = self._open.pop(id(output), None)
        if step is None or step.context is None:
            return
        attributes = {
            "omnitrace.engine.pid": os.getpid(),
            "omnitrace.engine.rank": _engine.rank(scheduler),
            **step.attributes,
            **_after(scheduler, step.attributes["omnitrace.engine.kv.free_blocks_at_start"]),
        }
        times = (step.start, step.executing, step.executed, time.time_ns())
        omnitrace._record_step(step.context, times, step.requests, attributes)


class Models:
    """What the models of this worker do in a step."""

    def __init__(self) -> None:
        self._step: tuple[str, str] | None = None
        self._rank: int | None = None
        self._start = [0, 0]
        """When the main model and the proposer have begun."""
        self._done = [True, True]

    def arrives(self, worker: Any, output: Any) -> None:
        """A step arrives in a worker."""
        self._step = getattr(output, "omnitrace_step", None)
        if self._step is not None:
            self._rank = getattr(worker, "rank", None)
            self._start, self._done = [0, 0], [False, False]

    def main_begins(self) -> None:
        """The main model begins to run."""
        self._begin(0)

    def main_ends(self) -> None:
        """The main model has run."""
        self._end(0)

    def draft_begins(self) -> None:
        """The speculative proposer begins to run."""
        self._begin(1)

    def draft_ends(self) -> None:
        """The speculative proposer has run."""
        self._end(1)

    def _begin(self, model: int) -> None:
        # Of hooked functions that call each other the innermost counts.
        if self._step is not None and not self._done[model]:
            self._start[model] = time.time_ns()

    def _end(self, model: int) -> None:
        # The same functions run for warming up too: once in a step is the step's.
        if self._step is None or self._done[model] or not self._start[model]:
            return
        self._done[model] = True
        start, end = self._start[model], time.time_ns()
        omnitrace._record_model(bool(model), self._step, start, end, self._rank)


def _requests(scheduler: Any, output: Any) -> list[tuple[str, str, int]]:
    """Ids, roles and tokens of a step's requests."""
    known = getattr(scheduler, "requests", {})
    return [
        (request_id, _roles.of_request(known.get(request_id)), tokens)
        for request_id, tokens in output.num_scheduled_tokens.items()
    ]


def _computed_tokens(output: Any) -> int:
    """Tokens of a step's requests that were computed before it."""
    cached = output.scheduled_cached_reqs
    numbers = getattr(cached, "num_computed_tokens", None)
    if numbers is None:
        # Before 0.9.2 they are a list of requests.
        numbers = [request.num_computed_tokens for request in cached]
    new = (request.num_computed_tokens for request in output.scheduled_new_reqs)
    return int(sum(numbers) + sum(new))


def _after(scheduler: Any, free_before: int | None) -> dict[str, Any]:
    """What is so after a step; what this scheduler does not have is None."""
    counts = getattr(scheduler, "get_request_counts", None)
    running, waiting = counts() if counts else (len(scheduler.running), len(scheduler.waiting))
    free = _free_blocks(scheduler)
    used = None if free is None or free_before is None else free_before - free
    return {
        "omnitrace.engine.running": running,
        "omnitrace.engine.waiting": waiting,
        "omnitrace.engine.kv.usage": _find(scheduler, "kv_cache_manager", "usage"),
        "omnitrace.engine.kv.blocks": _find(
            scheduler, "kv_cache_manager", "block_pool", "num_gpu_blocks"
        ),
        "omnitrace.engine.kv.free_blocks_at_end": free,
        "omnitrace.engine.kv.blocks_used": used,
    }


def _free_blocks(scheduler: Any) -> int | None:
    count = _find(scheduler, "kv_cache_manager", "block_pool", "get_num_free_blocks")
    return None if count is None else int(count())


def _find(of: Any, *names: str) -> Any:
    for name in names:
        of = getattr(of, name, None)
    return of
