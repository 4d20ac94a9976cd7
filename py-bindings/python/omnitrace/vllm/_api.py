"""The stages of a request in the API process."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from operator import attrgetter
from typing import Any

from .. import _omnitrace as omnitrace
from . import _carrier, _roles
from ._actions import FINISHED, RECEIVED, SENT, TOKENIZED, TOKENS

_MOST = 100_000
"""Requests that are kept in mind; one whose end is never seen is forgotten in the end."""

_PROMPT_OF = re.compile(r"(cmpl-.+)-\d+")
"""A completion has several prompts, each a request to the engine."""

_CHOICE_OF = re.compile(r"\d+_((?:chat)?cmpl-.+)")
"""So does each of several choices where versions have no `external_req_id`."""

_CHUNK = 'data: {"id"'
_NO_CHOICE = '"choices":[]'

_current: ContextVar[str] = ContextVar("omnitrace_request")
"""The request that a task of the event loop is about."""


class _Members:
    """Members of an object, by OpenTelemetry's names; those that a version has."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._there: tuple[str, ...] = ()
        self._get: Callable[[Any], tuple[Any, ...]] | None = None

    def of(self, what: Any) -> dict[str, Any]:
        """What an object has of them."""
        if self._get is not None:
            try:
                return dict(zip(self._there, self._get(what)))
            except AttributeError:
                # It is another class's.
                pass
        there = {name: member for name, member in self._names.items() if hasattr(what, member)}
        # One more, that every object has: of a single one it makes no tuple.
        self._there, self._get = tuple(there), attrgetter(*there.values(), "__class__")
        return dict(zip(self._there, self._get(what)))


# Of `RequestState`, for each prompt.
_PROMPT = _Members(
    {
        "gen_ai.usage.input_tokens": "prompt_len",
        "gen_ai.usage.cache_read.input_tokens": "num_cached_tokens",
    }
)
# Of `FinishedRequestStats`.
_CHOICE = _Members(
    {
        "gen_ai.usage.output_tokens": "num_generation_tokens",
        "omnitrace.preemptions": "num_preemptions",
        "gen_ai.latency.e2e": "e2e_latency",
        "gen_ai.latency.time_in_queue": "queued_time",
        "gen_ai.latency.time_in_model_prefill": "prefill_time",
        "gen_ai.latency.time_in_model_decode": "decode_time",
        "gen_ai.latency.time_in_model_inference": "inference_time",
    }
)
# Of several prompts and choices these add up; of the others the last to finish says it.
_SUMS = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.output_tokens",
    "omnitrace.preemptions",
)


class _Open:
    """A request that has not been answered yet."""

    __slots__ = ("attributes", "in_engine", "prompts", "role", "tokens")

    def __init__(self, role: str) -> None:
        self.role = role
        self.in_engine: set[str] = set()
        """Requests to the engine that it is made of, one for each prompt and choice."""
        self.prompts: set[str] = set()
        """Those that count already."""
        self.attributes: dict[str, Any] = {}
        """What its end will say."""
        self.tokens = 0
        """Chunks of the answer with tokens; not beyond those that are recorded."""


class Api:
    """What is known of the requests in this process."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        self._engines: dict[str, int] = {}
        """Which engine has a request, by the id that it has there."""
        self.silent: dict[str, None] = {}
        """Those of which the engine has not said anything yet, by the same."""

    def chat_received(self, request: Any, raw_request: Any) -> None:
        """A chat request, with its headers."""
        self._received("chatcmpl-", "chat", request, raw_request)

    def completion_received(self, request: Any, raw_request: Any) -> None:
        """A completion request, with its headers."""
        self._received("cmpl-", "text_completion", request, raw_request)

    def _received(self, prefix: str, operation: str, request: Any, raw_request: Any) -> None:
        headers = _carrier.of_call(raw_request)
        request_id = _id(prefix, request, headers)
        if request_id is None:
            return
        omnitrace.extract(headers, request_id)
        # pydantic warns whoever asks it for max_tokens, and takes long to say that it has none.
        members = vars(request)
        role = _roles.of_parameters(members.get("kv_transfer_params"))
        if len(self._open) >= _MOST:
            _make_room(self._open)
        self._open[request_id] = _Open(role)
        _current.set(request_id)
        most = members.get("max_completion_tokens")
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": members.get("model"),
            # The older name; where a request has both, vLLM takes the newer.
            "gen_ai.request.max_tokens": members.get("max_tokens") if most is None else most,
            "gen_ai.request.temperature": members.get("temperature"),
            "gen_ai.request.top_p": members.get("top_p"),
            "gen_ai.request.stream": members.get("stream"),
        }
        omnitrace.action(RECEIVED[role], request_id, attributes)

    def tokenized(self) -> None:
        """The prompt of this task's request has become tokens."""
        request_id = _current.get("")
        if (open := self._open.get(request_id)) is not None:
            omnitrace.action(TOKENIZED[open.role], request_id)

    def chat_answered(self, request: Any, raw_request: Any, result: Any) -> None:
        """The answer to a chat request, or what will stream it."""
        self._answered("chatcmpl-", request, raw_request, result)

    def completion_answered(self, request: Any, raw_request: Any, result: Any) -> None:
        """The answer to a completion request, or what will stream it."""
        self._answered("cmpl-", request, raw_request, result)

    def _answered(self, prefix: str, request: Any, raw_request: Any, result: Any) -> None:
        if hasattr(result, "__anext__"):
            return
        request_id = _id(prefix, request, _carrier.of_call(raw_request))
        if request_id is None:
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
        if (open := self._open.get(request_id)) is not None:
            # Of several prompts the first.
            if not open.in_engine and not open.prompts:
                omnitrace.action(SENT[open.role], request_id)
            open.in_engine.add(request.request_id)
        if len(self.silent) >= _MOST:
            _make_room(self.silent)
        self.silent[request.request_id] = None
        _carrier.put(request, request_id)

    def outputs(self, outputs: Iterable[Any]) -> None:
        """Outputs of the engine have come; the first of a request has its trace with it."""
        silent = self.silent
        for output in outputs:
            if output.request_id in silent:
                request_id = output.request_id
                del silent[request_id]
                if (rank := _carrier.take(output, request_id)) is not None:
                    if len(self._engines) >= _MOST:
                        _make_room(self._engines)
                    self._engines[request_id] = rank

    def finished(self, state: Any, reason: Any, statistics: Any) -> None:
        """The engine is done with a request: what it has taken."""
        engine = self._engines.pop(state.request_id, None)
        self.silent.pop(state.request_id, None)
        prompt = _external_id(state)
        request_id = self._received_as(prompt)
        open = self._open.get(request_id)
        if open is None:
            return
        attributes, said = open.attributes, {}
        if engine is not None:
            attributes["omnitrace.engine.rank"] = engine
        if reason is not None:
            attributes.setdefault("gen_ai.response.finish_reasons", []).append(str(reason))
        is_first = not open.prompts
        if prompt not in open.prompts:
            # All its choices have read it once.
            open.prompts.add(prompt)
            said = _PROMPT.of(state)
        if done := getattr(statistics, "finished_requests", None):
            said.update(_CHOICE.of(done[-1]))
        if not is_first:
            _add_up(attributes, said)
        attributes.update(said)
        open.in_engine.discard(state.request_id)
        if open.role == _roles.PREFILL and not open.in_engine:
            self.ends(request_id)

    def request_of(self, state: Any) -> tuple[str, str] | None:
        """Id and role of the request that a request to the engine is part of."""
        request_id = self._received_as(_external_id(state))
        open = self._open.get(request_id)
        return None if open is None else (request_id, open.role)

    def _received_as(self, request_id: str) -> str:
        """The id of the request that a request to the engine is part of."""
        if request_id not in self._open and (prompt := _PROMPT_OF.fullmatch(request_id)):
            return prompt[1]
        return request_id

    def begins(self, request_id: str) -> None:
        """The answer is going to be streamed, by another task than took the request."""
        _current.set(request_id)

    def breaks(self, error: str) -> None:
        """The answer that this task streams is to end with an error, as JSON."""
        if (open := self._open.get(_current.get(""))) is not None:
            open.attributes["error.type"] = str(json.loads(error)["error"]["type"])

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
        if open is None:
            return
        for in_engine in open.in_engine:
            # Its client has not waited for the engine.
            self._engines.pop(in_engine, None)
            self.silent.pop(in_engine, None)
        omnitrace.action(FINISHED[open.role], request_id, {**open.attributes, **attributes})


def _make_room(requests: dict[str, Any]) -> None:
    requests.pop(next(iter(requests)))


def _id(prefix: str, request: Any, headers: _carrier.Headers) -> str | None:
    """The id that vLLM will give a request: the client's own, else one that it has."""
    base = _carrier.request_id(headers) or getattr(request, "request_id", None)
    return f"{prefix}{base}" if base else None


def _external_id(request: Any) -> str:
    """The id that a request has outside the engine."""
    request_id: str = getattr(request, "external_req_id", None) or request.request_id
    if request_id[0].isdigit() and (choice := _CHOICE_OF.fullmatch(request_id)):
        return choice[1]
    return request_id


def _error(result: Any) -> str | None:
    """The kind of error that an answer tells of."""
    if type(result).__name__ != "ErrorResponse":
        return None
    error = getattr(result, "error", result)
    return str(getattr(error, "type", None) or "ErrorResponse")


def _add_up(before: Mapping[str, Any], said: dict[str, Any]) -> None:
    for name in _SUMS:
        if (value := before.get(name)) is not None:
            said[name] = value + (said.get(name) or 0)
