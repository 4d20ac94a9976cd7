"""What each of the built-in hooks adds to a call of what it is at: wrapper, stage and recording.

The hooks are put on functions that do nothing (hollow.py); the same calls are made with and
without them in turns, in the CPU time of the calling thread.
"""

from __future__ import annotations

import itertools
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import hollow
from hollow import Outputs, Request, Step

CALLS = 500
"""Of each hooked function in a round."""
ROUNDS = 41
BATCH = 32
"""Requests in a step."""
ITEMS = 20
"""Items of a stream."""
CHUNK = (
    'data: {"id":"chatcmpl-38a4f1c0","object":"chat.completion.chunk","created":1795334645,'
    '"model":"m","choices":[{"index":0,"delta":{"content":" time"},"logprobs":null,'
    '"finish_reason":null,"token_ids":null}]}\n\n'
)

Arguments = Sequence[tuple[Any, ...]]


@dataclass
class Case:
    """Calls of a function that has hooks."""

    name: str
    function: Any
    prepare: Callable[[], Arguments]
    """Makes the arguments of CALLS calls."""
    run: Callable[[Any, Arguments], None]
    per: int = 1
    """What one call is divided by."""


@dataclass
class Cost:
    """What a hooked function costs more than without its hooks."""

    name: str
    hooks: int
    added_us: float
    """CPU time of the calling thread for one call: all its hooks."""
    spread_us: float
    """Between the quartiles of the rounds."""


class HookFailed(logging.Handler):
    """A hook that has failed is not called again: that is no figure."""

    def emit(self, record: logging.LogRecord) -> None:
        """Ends the bench."""
        raise SystemExit(record.getMessage())


def measure() -> list[Cost]:
    """Puts the built-in hooks in place and measures them."""
    logging.getLogger("omnitrace").addHandler(HookFailed(logging.ERROR))
    hollow.load()
    from omnitrace import vllm

    vllm.register()
    # It learns its role.
    hollow.EngineCore()
    return [_measure(case) for case in (*_of_api(), *_of_engine())]


def _measure(case: Case) -> Cost:
    without = case.function.__wrapped__
    added = []
    for number in range(ROUNDS):
        arguments = case.prepare()
        times = {}
        # Who is first finds the caches cold.
        for function in (case.function, without) if number % 2 else (without, case.function):
            before = time.thread_time_ns()
            case.run(function, arguments)
            times[function] = time.thread_time_ns() - before
        added.append((times[case.function] - times[without]) / (CALLS * case.per * 1000))
        _forget()
    low, middle, high = statistics.quantiles(added, n=4)
    return Cost(case.name, len(case.function.__omnitrace_hooks__), middle, high - low)


# ---- ways to call


def _call(function: Any, arguments: Arguments) -> None:
    for each in arguments:
        function(*each)


def _await(function: Any, arguments: Arguments) -> None:
    for each in arguments:
        _to_end(function(*each))


def _iterate(function: Any, arguments: Arguments) -> None:
    for each in arguments:
        _to_end(_all(function(*each)))


async def _all(items: Any) -> None:
    async for _ in items:
        pass


def _to_end(coroutine: Any) -> None:
    # Nothing here waits for anything, so no event loop is needed.
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError("a hollow function waits")


# ---- the cases

_numbers = itertools.count()
_known: list[Request] = []
"""Of this round: the engine forgets them after it."""


def _requests(count: int = CALLS) -> list[Request]:
    made = [Request(number) for number in itertools.islice(_numbers, count)]
    _known.extend(made)
    return made


def _forget() -> None:
    from omnitrace.vllm import _stages

    scheduler = hollow.Scheduler()
    for request in _known:
        _stages._api.ends(request.external_req_id)
        _stages._api.silent.pop(request.request_id, None)
        scheduler._free_request(request)
    _known.clear()
    scheduler.schedule()
    # The exporter's thread keeps up.
    time.sleep(0.02)


def _running(count: int = BATCH) -> list[Request]:
    """Requests that have been through everything up to their first output."""
    engine, scheduler = hollow.EngineCore(), hollow.Scheduler()
    requests = _requests(count)
    ids = [request.request_id for request in requests]
    for request in requests:
        # From an API process that is traced.
        request.trace_headers = {"omnitrace": "1"}
        engine.preprocess_add_request(request)
        scheduler.add_request(request)
        hollow.KVCacheManager().allocate_slots(request, 1)
    hollow.Scheduler.chosen = step = Step(ids, [])
    scheduler.schedule()
    hollow.MultiprocExecutor().execute_model(step)
    scheduler.update_from_output(step, SimpleNamespace(made={0: Outputs(ids)}))
    hollow.Scheduler.chosen = Step([], ids)
    return requests


def _chats() -> list[tuple[Any, Any]]:
    from starlette.requests import Request as Received

    chats = []
    for request in _requests():
        sent = {
            "host": "localhost:8000",
            "user-agent": "python-httpx/0.28",
            "accept": "*/*",
            "content-type": "application/json",
            "content-length": "512",
            "x-request-id": request.external_req_id.removeprefix("chatcmpl-"),
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        }
        headers = [(name.encode(), value.encode()) for name, value in sent.items()]
        received = Received({"type": "http", "headers": headers})
        _ = received.headers
        chat = SimpleNamespace(
            model="m",
            max_tokens=None,
            max_completion_tokens=128,
            temperature=0.7,
            top_p=1.0,
            stream=True,
            kv_transfer_params=None,
            request_id="0",
            # It will be streamed.
            answer=hollow.OpenAIServingChat().chat_completion_stream_generator(0, (), ""),
        )
        chats.append((chat, received))
    return chats


def _receive(chats: Iterable[tuple[Any, Any]]) -> None:
    _await(hollow.OpenAIServingChat().create_chat_completion, list(chats))


def _received() -> list[Request]:
    """What chats will ask of the engine."""
    _receive(_chats())
    return list(_known)


def _sent() -> list[Request]:
    """Requests that carry their traces to the engine."""
    requests = _received()
    _await(hollow.AsyncMPClient.add_request_async, _each(requests))
    return requests


def _arrived() -> list[Request]:
    requests = _sent()
    _call(hollow.EngineCore.preprocess_add_request, _each(requests))
    return requests


def _each(requests: Iterable[Request]) -> Arguments:
    return [(None, request) for request in requests]


def _of_api() -> list[Case]:
    def called() -> Arguments:
        return [(None, raw.scope, None, None) for _, raw in _chats()]

    def added() -> Arguments:
        return [(None, request.external_req_id) for request in _received()]

    def answered() -> Arguments:
        return [(None, *chat) for chat in _chats()]

    def streamed() -> Arguments:
        chats = _chats()
        _receive(chats)
        prefix = "chatcmpl-"
        return [
            (None, chat, [CHUNK] * ITEMS, prefix + raw.headers["x-request-id"])
            for chat, raw in chats
        ]

    def finished() -> Arguments:
        requests = _sent()
        names = ("e2e_latency", "queued_time", "prefill_time", "decode_time", "inference_time")
        done = SimpleNamespace(
            num_generation_tokens=20, num_preemptions=0, **dict.fromkeys(names, 1.0)
        )
        said = SimpleNamespace(finished_requests=[done])
        return [(None, request, "length", said) for request in requests]

    def outputs(silent: int) -> Arguments:
        _await(client.add_request_async, _each(_requests(silent)))
        ids = [request.request_id for request in _requests(BATCH)]
        return [(None, Outputs(ids).outputs)] * CALLS

    call = hollow.ServerErrorMiddleware.__call__
    chat, client = hollow.OpenAIServingChat, hollow.AsyncMPClient
    process = hollow.OutputProcessor.process_outputs
    done = hollow.OutputProcessor._update_stats_from_finished
    return [
        Case("ServerErrorMiddleware.__call__, an HTTP call", call, called, _await),
        Case("create_chat_completion", chat.create_chat_completion, answered, _await),
        Case(
            f"chat_completion_stream_generator, one of {ITEMS} items",
            chat.chat_completion_stream_generator,
            streamed,
            _iterate,
            per=ITEMS,
        ),
        Case("AsyncLLM.add_request", hollow.AsyncLLM.add_request, added, _await),
        Case("add_request_async", client.add_request_async, lambda: _each(_received()), _await),
        Case(
            "add_request_async, of no chat",
            client.add_request_async,
            lambda: _each(_requests()),
            _await,
        ),
        Case(f"process_outputs, {BATCH} outputs", process, lambda: outputs(0), _call),
        Case(
            f"process_outputs, {BATCH} outputs, others are awaited",
            process,
            lambda: outputs(BATCH),
            _call,
        ),
        Case("_update_stats_from_finished", done, finished, _call),
    ]


def _of_engine() -> list[Case]:
    def step() -> Arguments:
        _running()
        return [(hollow.Scheduler,)] * CALLS

    def blocks() -> Arguments:
        (request,) = _running(1)
        return [(None, request, 1)] * CALLS

    def execute() -> Arguments:
        _running()
        return [(None, hollow.Scheduler.chosen)] * CALLS

    def update() -> Arguments:
        ids = [request.request_id for request in _running()]
        outcome = SimpleNamespace(made={0: Outputs(ids)})
        return [(hollow.Scheduler, Step([], ids), outcome)] * CALLS

    engine, scheduler = hollow.EngineCore, hollow.Scheduler
    executor, worker = hollow.MultiprocExecutor, hollow.Worker
    allocate = hollow.KVCacheManager.allocate_slots
    return [
        Case(
            "preprocess_add_request", engine.preprocess_add_request, lambda: _each(_sent()), _call
        ),
        Case("add_request", scheduler.add_request, lambda: _each(_arrived()), _call),
        Case(f"schedule, {BATCH} running", scheduler.schedule, step, _call),
        Case("allocate_slots, running", allocate, blocks, _call),
        Case(f"executor, {BATCH} running", executor.execute_model, execute, _call),
        Case(f"update_from_output, {BATCH} running", scheduler.update_from_output, update, _call),
        Case("_free_request", scheduler._free_request, lambda: _each(_arrived()), _call),
        Case(f"worker, {BATCH} running", worker.execute_model, execute, _call),
    ]


if __name__ == "__main__":
    print(json.dumps([asdict(cost) for cost in measure()]))
