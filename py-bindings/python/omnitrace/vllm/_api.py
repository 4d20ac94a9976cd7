"""The stages of a request in the API process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from .. import _omnitrace as omnitrace
from . import _carrier, _roles
from ._actions import FINISHED, RECEIVED, SENT, TOKENIZED, TOKENS

_MOST = 100_000
"""Requests that are kept in mind; one whose end is never seen is forgotten in the end."""

_PROMPT_OF = re.compile(r"(cmpl-.+)-\d+")
"""A completion has several prompts, each a request to the engine."""

_CHUNK = 'data: {"id"'
_NO_CHOICE = '"choices":[]'

_current: ContextVar[str] = ContextVar("omnitrace_request")
"""The request that a task of the event loop is about."""

# A request's own members, and what OpenTelemetry calls them.
_ASKED = {
    "gen_ai.request.model": ("model",),
    "gen_ai.request.max_tokens": ("max_completion_tokens", "max_tokens"),
    "gen_ai.request.temperature": ("temperature",),
    "gen_ai.request.top_p": ("top_p",),
    "gen_ai.request.stream": ("stream",),
}

# Of `RequestState` and of `FinishedRequestStats`.
_STATE = {
    "gen_ai.usage.input_tokens": "prompt_len",
    "gen_ai.usage.cache_read.input_tokens": "num_cached_tokens",
}
_STATISTICS = {
    "gen_ai.usage.output_tokens": "num_generation_tokens",
    "gen_ai.latency.e2e": "e2e_latency",
    "gen_ai.latency.time_in_queue": "queued_time",
    "gen_ai.latency.time_in_model_prefill": "prefill_time",
    "gen_ai.latency.time_in_model_decode": "decode_time",
    "gen_ai.latency.time_in_model_inference": "inference_time",
    "omnitrace.preemptions": "num_preemptions",
}


@dataclass
class _Open:
    """A request that has not been answered yet."""

    role: str
    attributes: dict[str, Any] = field(default_factory=dict)
    """What its end will say."""
    is_sent: bool = False
    tokens: int = 0
    """Chunks of the answer with tokens; not beyond those that are recorded."""


class Api:
    """What is known of the requests in this process."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        self._engines: dict[str, int] = {}
        """Which engine has a request, by the id that it has there."""

    def chat_received(self, request: Any, raw_request: Any) -> None:
        """A chat request, with its headers."""
        self._received("chatcmpl-", "chat", request, raw_request)

    def completion_received(self, request: Any, raw_request: Any) -> None:
        """A completion request, with its headers."""
        self._received("cmpl-", "text_completion", request, raw_request)

    def _received(self, prefix: str, operation: str, request: Any, raw_request: Any) -> None:
        request_id = _id(prefix, request, raw_request)
        if request_id is None:
            return
        if (headers := getattr(raw_request, "headers", None)) is not None:
            omnitrace.extract(headers, request_id)
        role = _roles.of_request(request)
        _make_room(self._open)
        self._open[request_id] = _Open(role)
        _current.set(request_id)
        attributes: dict[str, Any] = {"gen_ai.operation.name": operation}
        for name, members in _ASKED.items():
            given = (getattr(request, member, None) for member in members)
            if (value := next((v for v in given if v is not None), None)) is not None:
                attributes[name] = value
        omnitrace.action(RECEIVED[role], request_id, attributes)

    def tokenized(self) -> None:
        """The prompt of this task's request has become tokens."""
        request_id = _current.get("")
        if (open := self._open.get(request_id)) is not None:
            omnitrace.action(TOKENIZED[open.role], request_id)

    def chat_answered(self, request: Any, raw_request: Any, result: Any) -> None:
        """The answer to a chat request, or what will stream it."""
        self._answered(_id("chatcmpl-", request, raw_request), result)

    def completion_answered(self, request: Any, raw_request: Any, result: Any) -> None:
        """The answer to a completion request, or what will stream it."""
        self._answered(_id("cmpl-", request, raw_request), result)

    def _answered(self, request_id: str | None, result: Any) -> None:
        if request_id is None or hasattr(result, "__anext__"):
            return
        if isinstance(result, BaseException):
            self.fails(request_id, result)
        elif (error := _error(result)) is not None:
            self._finish(request_id, {"error.type": error})
        else:
            self.ends(request_id)

    def sent(self, request: Any) -> None:
        """A request leaves for the engine, where it has an id of its own."""
        request_id = self._received_as(_external_id(request))
        open = self._open.get(request_id)
        # Of several prompts the first.
        if open is not None and not open.is_sent:
            open.is_sent = True
            omnitrace.action(SENT[open.role], request_id)
        _carrier.put(request, request_id)

    def outputs(self, outputs: Any) -> None:
        """Outputs of the engine have come."""
        for output in getattr(outputs, "outputs", None) or ():
            if output.trace_headers:
                _carrier.take(output, output.request_id)
                _make_room(self._engines)
                self._engines[output.request_id] = getattr(outputs, "engine_index", 0)

    def finished(self, state: Any, reason: Any, statistics: Any) -> None:
        """The engine is done with a request: what it has taken."""
        engine = self._engines.pop(state.request_id, None)
        request_id = self._received_as(_external_id(state))
        open = self._open.get(request_id)
        if open is None:
            return
        attributes = open.attributes
        if engine is not None:
            attributes["omnitrace.engine.rank"] = engine
        if reason is not None:
            attributes["gen_ai.response.finish_reasons"] = [str(reason)]
        _copy(_STATE, state, attributes)
        if done := getattr(statistics, "finished_requests", None):
            _copy(_STATISTICS, done[-1], attributes)
        if open.role == _roles.PREFILL:
            self.ends(request_id)

    def _received_as(self, request_id: str) -> str:
        """The id of the request that a request to the engine is part of."""
        if request_id not in self._open and (prompt := _PROMPT_OF.fullmatch(request_id)):
            return prompt[1]
        return request_id

    def streams(self, request_id: str, chunk: str) -> None:
        """A chunk of the answer goes to the client."""
        open = self._open.get(request_id)
        if open is None or open.role == _roles.PREFILL or open.tokens >= len(TOKENS):
            return
        # Neither an error nor the usage nor the end of the stream.
        if chunk.startswith(_CHUNK) and _NO_CHOICE not in chunk:
            omnitrace.action(TOKENS[open.tokens], request_id)
            open.tokens += 1

    def ends(self, request_id: str) -> None:
        """The whole answer is there."""
        self._finish(request_id, {})

    def fails(self, request_id: str, error: BaseException) -> None:
        """There will be no more of the answer."""
        kind = type(error)
        if kind.__name__ in {"CancelledError", "GeneratorExit"}:
            # The client has gone.
            said = {"omnitrace.aborted": True, "gen_ai.response.finish_reasons": ["abort"]}
            self._finish(request_id, said)
        else:
            self._finish(request_id, {"error.type": kind.__qualname__})

    def _finish(self, request_id: str, attributes: dict[str, Any]) -> None:
        open = self._open.pop(request_id, None)
        if open is not None:
            omnitrace.action(FINISHED[open.role], request_id, {**open.attributes, **attributes})


def _make_room(requests: dict[str, Any]) -> None:
    while len(requests) >= _MOST:
        requests.pop(next(iter(requests)))


def _id(prefix: str, request: Any, raw_request: Any) -> str | None:
    """The id that vLLM will give a request: the client's own, else one that it has."""
    headers: Mapping[str, str] = getattr(raw_request, "headers", None) or {}
    base = headers.get("x-request-id") or getattr(request, "request_id", None)
    return f"{prefix}{base}" if base else None


def _external_id(request: Any) -> str:
    """The id that a request has outside the engine."""
    request_id: str = getattr(request, "external_req_id", None) or request.request_id
    return request_id


def _error(result: Any) -> str | None:
    """The kind of error that an answer tells of."""
    if type(result).__name__ != "ErrorResponse":
        return None
    error = getattr(result, "error", result)
    return str(getattr(error, "type", None) or "ErrorResponse")


def _copy(names: Mapping[str, str], of: Any, to: dict[str, Any]) -> None:
    for name, member in names.items():
        if (value := getattr(of, member, None)) is not None:
            to[name] = value
