"""Which requests run in the next step: continuous batching over KV blocks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import omnitrace

from . import actions
from .kv_transfer import RemoteBlocks
from .messages import AddRequest
from .options import BLOCK_TOKENS, Options


@dataclass
class Request:
    """A request in the engine."""

    added: AddRequest
    remote: RemoteBlocks | None
    """Blocks to fetch from a prefill node instead of computing the prompt."""
    hold: bool
    """Keep the blocks for a decode node after the last token."""
    blocks: list[int] = field(default_factory=list)
    generated: int = 0
    aborted: bool = False

    @property
    def id(self) -> str:
        """The internal id."""
        return self.added.request_id

    @property
    def prompt_blocks(self) -> int:
        """How many blocks the prompt fills."""
        return -(-self.added.prompt_tokens // BLOCK_TOKENS)

    @property
    def needed_blocks(self) -> int:
        """How many blocks the prompt and the longest answer fill."""
        return -(-(self.added.prompt_tokens + self.added.max_tokens) // BLOCK_TOKENS)


@dataclass(frozen=True)
class Step:
    """What one execution of the model computes."""

    prefills: list[Request]
    """Requests whose prompts are computed in this step; they are in ``batch`` too."""
    batch: list[Request]
    """Requests that get a token in this step."""
    pulls: list[Request]
    """Requests whose remote blocks are to be fetched meanwhile."""


class Scheduler:
    """The waiting and running queues of one engine.

    A request's blocks for prompt and answer are taken at once, so nothing is ever
    preempted.
    """

    def __init__(self, options: Options) -> None:
        """Start with all blocks free."""
        self._options = options
        self._free = deque(range(options.num_blocks))
        self._waiting: deque[Request] = deque()
        self._pulling: dict[str, Request] = {}
        self._pulled: deque[Request] = deque()
        self._running: dict[str, Request] = {}

    @property
    def runnable(self) -> bool:
        """Whether a step now would compute something."""
        return bool(self._running or self._pulled)

    @property
    def waiting(self) -> bool:
        """Whether a request waits for blocks or a place."""
        return bool(self._waiting)

    def add(self, request: Request) -> None:
        """Queue a new request."""
        self._waiting.append(request)
        if self._options.role == "prefill":
            omnitrace.action(actions.PREFILL_WAITING, request.id)

    def schedule(self) -> Step:
        """Choose what the next step computes: all that runs, and what fits besides."""
        step = Step(prefills=[], batch=[], pulls=[])
        for request in self._waiting:
            omnitrace.action(actions.TRY_TO_SCHEDULE, request.id)
        while self._pulled and self._has_place():
            self._run(self._pulled.popleft())

        budget = self._options.max_num_batched_tokens - len(self._running)
        while self._waiting:
            request = self._waiting[0]
            if request.remote is None:
                # A prompt longer than the whole budget gets a step of its own.
                fits = request.added.prompt_tokens <= budget or not step.prefills
                if not (fits and self._has_place()):
                    break
            if not self._allocate(request):
                break
            self._waiting.popleft()
            if request.remote is None:
                budget -= request.added.prompt_tokens
                step.prefills.append(request)
                self._run(request)
            else:
                omnitrace.action(actions.NEED_PULL, request.id)
                self._pulling[request.id] = request
                step.pulls.append(request)
        step.batch.extend(self._running.values())
        return step

    def pulled(self, request_id: str) -> Request:
        """Take a request out of those whose blocks are being fetched."""
        return self._pulling.pop(request_id)

    def ready(self, request: Request) -> None:
        """Queue a request whose blocks have been fetched."""
        self._pulled.append(request)

    def finish(self, request: Request) -> None:
        """Take a request out of the batch; its blocks stay taken until :meth:`free`."""
        del self._running[request.id]

    def free(self, request: Request) -> None:
        """Give a request's blocks back."""
        self._free.extend(request.blocks)
        request.blocks = []

    def abort(self, request_id: str) -> Request | None:
        """Drop a request wherever it is; returns it if it was here.

        One whose blocks are being fetched is only marked: the fetch writes into them.
        """
        if pulling := self._pulling.get(request_id):
            pulling.aborted = True
            return pulling
        request = self._running.pop(request_id, None)
        for queue in (self._waiting, self._pulled):
            for queued in queue:
                if queued.id == request_id:
                    request = queued
                    queue.remove(queued)
                    break
        if request:
            request.aborted = True
            self.free(request)
        return request

    def _has_place(self) -> bool:
        return len(self._running) < self._options.max_num_seqs

    def _allocate(self, request: Request) -> bool:
        if len(self._free) < request.needed_blocks:
            return False
        request.blocks = [self._free.popleft() for _ in range(request.needed_blocks)]
        if self._options.role == "prefill":
            omnitrace.action(actions.PREFILL_BLOCKS, request.id)
        return True

    def _run(self, request: Request) -> None:
        self._running[request.id] = request
        omnitrace.action(actions.RUNNING[self._options.role], request.id)
