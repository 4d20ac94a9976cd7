"""The engine process.

::

    API ══pipe══► input thread ──┐                       ┌─► output thread ══pipe══► API
                  KV threads ────┴─► events ─► step loop ┘

The step loop alone touches the scheduler. As in vLLM, a request's arrival is recorded
on the input thread and the sending of its output on the output thread.
"""

from __future__ import annotations

import logging
import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import omnitrace

from . import actions, books
from .kv_transfer import BlockServer, RemoteBlocks, TransferError
from .messages import AbortRequest, AddRequest, Output, Ready, Shutdown
from .options import Options
from .scheduler import Request, Scheduler, Step

log = logging.getLogger("standin.engine")

WORDS = ("one", "trace", "shows", "where", "the", "time", "of", "a", "request", "goes")

HOLD_SECONDS = 480.0
"""How long a prefill engine holds blocks that no decode node asks for."""

IDLE_SECONDS = 1.0
"""How often an idle engine looks for such blocks."""


@dataclass(frozen=True)
class PullFinished:
    """A fetch of remote blocks has ended, well or not."""

    request_id: str
    error: str | None = None


@dataclass(frozen=True)
class BlocksDone:
    """A decode node has fetched, or given up, a request's blocks."""

    request_id: str


@dataclass(frozen=True)
class Held:
    """A finished request whose blocks wait for a decode node."""

    request: Request
    until: float
    """On the monotonic clock."""


Event = AddRequest | AbortRequest | PullFinished | BlocksDone | Shutdown


def run(options: Options, inputs: Connection, outputs: Connection) -> None:
    """Serve until told to stop, or until the API process is gone."""
    # Ctrl-C and the like reach the whole process group; the API process decides.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    engine = Engine(options, inputs, outputs)
    try:
        engine.run()
    finally:
        books.close(options, "engine")


class Engine:
    """The step loop, its threads and its side of the KV transfer."""

    def __init__(self, options: Options, inputs: Connection, outputs: Connection) -> None:
        """Start the threads and tell the API process."""
        self._options = options
        self._id = str(uuid.uuid4())
        self._scheduler = Scheduler(options)
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._outputs: SimpleQueue[list[Output] | None] = SimpleQueue()
        self._held: dict[str, Held] = {}
        self._pullers = ThreadPoolExecutor(8, "kv-pull")
        self._block_server: BlockServer | None = None
        if options.role == "prefill":
            self._block_server = BlockServer(
                options.side_channel_host,
                options.side_channel_port,
                lambda request_id: self._events.put(BlocksDone(request_id)),
            )
        outputs.send(Ready())
        self._sender = Thread(target=self._send, args=(outputs,), name="output", daemon=True)
        self._sender.start()
        Thread(target=self._receive, args=(inputs,), name="input", daemon=True).start()

    def run(self) -> None:
        """Step until :class:`Shutdown`."""
        while self._handle_events():
            step = self._scheduler.schedule()
            for request in step.pulls:
                self._pullers.submit(self._pull, request)
            if step.batch:
                self._execute(step)
        self._pullers.shutdown(wait=False, cancel_futures=True)
        if self._block_server:
            self._block_server.close()
        self._outputs.put(None)
        self._sender.join()

    # Input and output threads.

    def _receive(self, inputs: Connection) -> None:
        while True:
            try:
                message = inputs.recv()
            except EOFError:
                message = Shutdown()
            if isinstance(message, AddRequest):
                omnitrace.extract(message.carrier, message.request_id)
                omnitrace.action(actions.ENGINE_RECEIVED[self._options.role], message.request_id)
            self._events.put(message)
            if isinstance(message, Shutdown):
                return

    def _send(self, outputs: Connection) -> None:
        while (step := self._outputs.get()) is not None:
            for output in step:
                if output.first:
                    if self._options.role == "prefill":
                        omnitrace.action(actions.PREFILL_SEND, output.request_id)
                    omnitrace.inject(output.carrier, output.request_id)
            try:
                outputs.send(step)
            except BrokenPipeError:
                # The API process is gone; the input thread sees it too and ends us.
                continue

    # The step loop.

    def _handle_events(self) -> bool:
        """Take what has arrived, waiting if nothing can be computed; False: stop."""
        timeout: float | None = IDLE_SECONDS
        if self._scheduler.runnable:
            timeout = None
        elif self._scheduler.waiting:
            timeout = self._options.step_ms / 1000
        try:
            event = self._events.get(block=timeout is not None, timeout=timeout)
            while True:
                if isinstance(event, Shutdown):
                    return False
                self._handle(event)
                event = self._events.get_nowait()
        except Empty:
            pass
        self._expire()
        return True

    def _handle(self, event: AddRequest | AbortRequest | PullFinished | BlocksDone) -> None:
        match event:
            case AddRequest():
                params = event.kv_transfer_params or {}
                prefill = self._options.role == "prefill"
                self._scheduler.add(
                    Request(
                        added=event,
                        remote=None if prefill else RemoteBlocks.from_params(params),
                        hold=prefill and params.get("do_remote_decode") is True,
                    )
                )
            case AbortRequest():
                self._abort(event.request_id)
            case PullFinished():
                self._pulled(event)
            case BlocksDone():
                self._free_held(event.request_id)

    def _execute(self, step: Step) -> None:
        """Run the model for one step and send each request of the batch its token."""
        prefill = self._options.role == "prefill"
        if prefill:
            for request in step.prefills:
                omnitrace.action(actions.PREFILL_EXECUTE, request.id)
        else:
            for request in step.batch:
                if request.generated == 0:
                    omnitrace.action(actions.DECODE_SEND, request.id)

        prompt_tokens = sum(request.added.prompt_tokens for request in step.prefills)
        time.sleep(
            self._options.step_ms / 1000 + prompt_tokens / self._options.prefill_tokens_per_second
        )

        if prefill:
            for request in step.prefills:
                omnitrace.action(actions.PREFILL_EXECUTED, request.id)
        self._outputs.put([self._next_token(request) for request in step.batch])

    def _next_token(self, request: Request) -> Output:
        word = WORDS[request.generated % len(WORDS)]
        first = request.generated == 0
        output = Output(request.id, word if first else f" {word}", first)
        request.generated += 1
        if request.generated == request.added.max_tokens:
            output.finish_reason = request.added.finish_reason
            self._scheduler.finish(request)
            if request.hold and self._block_server:
                output.kv_transfer_params = self._hold(request, self._block_server)
            else:
                self._scheduler.free(request)
        return output

    def _abort(self, request_id: str) -> None:
        request = self._scheduler.abort(request_id)
        if request and request.remote and not request.blocks:
            # No fetch is under way and none will be: the prefill node need not hold the
            # blocks. If they were fetched already, it has freed them and ignores this.
            self._pullers.submit(self._give_up, request.remote)

    # KV transfer, prefill side.

    def _hold(self, request: Request, server: BlockServer) -> dict[str, Any]:
        blocks = request.blocks[: request.prompt_blocks]
        server.hold(request.id, blocks)
        until = time.monotonic() + HOLD_SECONDS
        self._held[request.id] = Held(request, until)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": self._id,
            "remote_block_ids": blocks,
            "remote_host": self._options.side_channel_host,
            "remote_port": server.port,
            "remote_request_id": request.id,
            "tp_size": 1,
        }

    def _free_held(self, request_id: str) -> None:
        held = self._held.pop(request_id, None)
        if held and self._block_server:
            self._block_server.release(request_id)
            omnitrace.action(actions.PREFILL_FREE, request_id)
            self._scheduler.free(held.request)

    def _expire(self) -> None:
        # Insertion order is the order of expiry.
        while self._held:
            request_id, held = next(iter(self._held.items()))
            if held.until > time.monotonic():
                return
            log.warning("no decode node fetched the KV blocks of %s", request_id)
            self._free_held(request_id)

    # KV transfer, decode side.

    def _pull(self, request: Request) -> None:
        """Fetch a request's blocks (on a thread of the pool)."""
        assert request.remote is not None
        error = None
        omnitrace.action(actions.START_PULL, request.id)
        try:
            request.remote.fetch()
            omnitrace.action(actions.FINISH_PULL, request.id)
            request.remote.done()
        except TransferError as failure:
            error = f"KV transfer failed: {failure}"
            log.warning("%s: %s", request.id, error)
        self._events.put(PullFinished(request.id, error))

    def _give_up(self, remote: RemoteBlocks) -> None:
        try:
            remote.done()
        except TransferError as failure:
            log.warning("%s: cannot be given up: %s", remote.request_id, failure)

    def _pulled(self, event: PullFinished) -> None:
        request = self._scheduler.pulled(event.request_id)
        if event.error is None and not request.aborted:
            self._scheduler.ready(request)
            return
        self._scheduler.free(request)
        if not request.aborted:
            self._outputs.put([Output(request.id, error=event.error)])
