"""The engine as the API process sees it: start, give requests, hand out tokens."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncGenerator
from threading import Thread

from . import engine
from .messages import AbortRequest, AddRequest, Output, Ready, Shutdown
from .options import Options

STOP_SECONDS = 10.0


class EngineError(Exception):
    """The engine cannot serve a request."""


class EngineClient:
    """One engine process, used from one event loop."""

    def __init__(self, options: Options) -> None:
        """Prepare; :meth:`start` starts the process."""
        context = multiprocessing.get_context("spawn")
        inputs, self._inputs = context.Pipe(duplex=False)
        self._outputs, outputs = context.Pipe(duplex=False)
        self._child_ends = (inputs, outputs)
        self._process = context.Process(
            target=engine.run,
            args=(options, inputs, outputs),
            name="engine",
            daemon=True,
        )
        self._requests: dict[str, asyncio.Queue[Output | None]] = {}
        self.alive = False

    async def start(self) -> None:
        """Start the process and wait until it takes requests."""
        self._process.start()
        for end in self._child_ends:
            # With our copies closed, either side sees the end of the other.
            end.close()
        try:
            ready = await asyncio.to_thread(self._outputs.recv)
        except EOFError:
            raise EngineError("the engine process did not start") from None
        assert isinstance(ready, Ready)
        self.alive = True
        loop = asyncio.get_running_loop()
        Thread(target=self._receive, args=(loop,), name="engine-output", daemon=True).start()

    async def generate(self, request: AddRequest) -> AsyncGenerator[Output]:
        """Run a request; leaving the iteration early aborts it."""
        if not self.alive:
            raise EngineError("the engine process is gone")
        queue: asyncio.Queue[Output | None] = asyncio.Queue()
        self._requests[request.request_id] = queue
        self._inputs.send(request)
        finished = False
        try:
            while not finished:
                output = await queue.get()
                finished = output is None or output.error is not None
                if output is None:
                    raise EngineError("the engine process is gone")
                if output.error is not None:
                    raise EngineError(output.error)
                finished = output.finish_reason is not None
                yield output
        finally:
            del self._requests[request.request_id]
            if not finished and self.alive:
                self._inputs.send(AbortRequest(request.request_id))

    async def stop(self) -> None:
        """Tell the process to stop and wait for it."""
        if self.alive:
            self._inputs.send(Shutdown())
        await asyncio.to_thread(self._process.join, STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()

    def _receive(self, loop: asyncio.AbstractEventLoop) -> None:
        """Move outputs to the event loop (on a thread of its own)."""
        try:
            while True:
                outputs: list[Output] = self._outputs.recv()
                loop.call_soon_threadsafe(self._deliver, outputs)
        except EOFError:
            self.alive = False
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._fail)

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            # A request aborted meanwhile is no longer known.
            if queue := self._requests.get(output.request_id):
                queue.put_nowait(output)

    def _fail(self) -> None:
        for queue in self._requests.values():
            queue.put_nowait(None)
