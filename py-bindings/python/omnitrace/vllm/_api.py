"""The stages of a request in the API process."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from typing import Any

from .. import _omnitrace as omnitrace
from . import _call, _carrier, _roles, _usage
from ._actions import FINISHED, RECEIVED, SENT, TOKENIZED, TOKENS

_MOST = 100_000
"""Requests that are kept in mind; one whose end is never seen is forgotten in the end."""

_PROMPT_OF = re.compile(r"(cmpl-.+)-\d+")
"""A completion has several prompts, each a request to the engine."""

_CHOICE_OF = re.compile(r"\d+_((?:chat)?cmpl-.+)")
"""So does each of several choices where versions have no `external_req_id`."""

_CHUNK = 'data: {"id"'
_NO_CHOICE = '"choices":[]'

_OPERATIONS = {"/chat/": "chat", "/responses": "chat", "/embed": "embeddings"}
"""What a path says of its requests."""


class _Open:
    """A request that has not been answered yet."""

    __slots__ = (
        "attributes",
        "ends_with_engine",
        "in_engine",
        "is_answer_seen",
        "is_over",
        "is_tokenized",
        "known_as",
        "prompts",
        "request_id",
        "role",
        "tokens",
    )

    def __init__(self, known_as: str, request_id: str, role: str) -> None:
        self.known_as = known_as
        """Here; others may be known so at the same time, or in other processes."""
        self.request_id = request_id
        self.role = role
        self.is_answer_seen = False
        """By hooks at its answer; else what is known of that is the engine's."""
        self.is_over = False
        self.ends_with_engine = role == _roles.PREFILL
        """The engine's last output for it is its end."""
        self.is_tokenized = False
        self.in_engine: set[str] = set()
        """Requests to the engine that it is made of, one for each prompt and choice."""
        self.prompts: set[str] = set()
        """Those that count already."""
        self.attributes: dict[str, Any] = {}
        """What its end will say."""
        self.tokens = 0
        """Chunks of the answer with tokens; not beyond those that are recorded."""

    def ended_by(self, reason: str) -> None:
        """One of the requests to the engine that it is made of has ended."""
        self.attributes.setdefault("gen_ai.response.finish_reasons", []).append(reason)


class Api:
    """What is known of the requests in this process."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        """By what they are known as; of several at once the first, their tasks know the others."""
        self._in_engine: dict[str, _Open] = {}
        """What the requests to the engine are parts of, by the id that each has there."""
        self.silent: dict[str, None] = {}
        """Those of which the engine has not said anything yet, by the same."""
        self._model: str | None = None

    def configured(self, vllm_config: Any) -> None:
        """It is known what is served."""
        of_model = getattr(vllm_config, "model_config", None)
        self._model = getattr(of_model, "served_model_name", None)

    def call_ends(self, scope: _call.Scope) -> None:
        """A call of the HTTP server is answered."""
        self._call_over(scope, None)

    def call_fails(self, scope: _call.Scope, error: BaseException) -> None:
        """A call of the HTTP server will not be answered."""
        self._call_over(scope, error)

    def _call_over(self, scope: _call.Scope, error: BaseException | None) -> None:
        call = _call.ends(scope)
        open = None if call is None else call.request
        if open is None or open.is_answer_seen:
            return
        if error is not None:
            self._fail(open, error)
        elif open.in_engine:
            # It goes on without a client, or it is about to be given up.
            open.ends_with_engine = True
        else:
            self._finish(open)

    def chat_received(self, request: Any, raw_request: Any) -> None:
        """A chat request, with its headers."""
        self._received("chatcmpl-", "chat", request, raw_request)

    def completion_received(self, request: Any, raw_request: Any) -> None:
        """A completion request, with its headers."""
        self._received("cmpl-", "text_completion", request, raw_request)

    def _received(self, prefix: str, operation: str, request: Any, raw_request: Any) -> None:
        headers = _carrier.of_call(raw_request)
        known_as = _id(prefix, request, headers)
        if known_as is None:
            return
        # pydantic warns whoever asks it for max_tokens, and takes long to say that it has none.
        members = vars(request)
        role = _roles.of_parameters(members.get("kv_transfer_params"))
        open = self._begin(known_as, role, headers)
        open.is_answer_seen = True
        _call.enters(open)
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
        omnitrace.action(RECEIVED[role], open.request_id, attributes)

    def _begin(
        self, known_as: str, role: str, headers: _carrier.Headers, *, is_counted: bool = False
    ) -> _Open:
        # A client may try again before its first try is over.
        is_taken = known_as in self._open
        is_unique = not (is_taken or is_counted)
        request_id = known_as if is_unique else f"{known_as}-{secrets.token_hex(8)}"
        open = _Open(known_as, request_id, role)
        omnitrace.extract(headers, request_id)
        if not is_taken:
            _keep(self._open, known_as, open)
        return open

    def tokenized(self) -> None:
        """The prompt of this task's request has become tokens."""
        open = self._of_task()
        # One method that does it may call another.
        if open is not None and not open.is_tokenized:
            open.is_tokenized = True
            omnitrace.action(TOKENIZED[open.role], open.request_id)

    def _of_task(self) -> _Open | None:
        call = _call.current()
        open = None if call is None else call.request
        return None if open is None or open.is_over else open

    def _named(self, known_as: str | None) -> _Open | None:
        """Of several that are known so, the one that this task works for."""
        open = self._of_task()
        if open is not None and open.known_as == known_as:
            return open
        return self._open.get(known_as or "")

    def chat_answered(self, request: Any, raw_request: Any, result: Any) -> None:
        """The answer to a chat request, or what will stream it."""
        self._answered("chatcmpl-", request, raw_request, result)

    def completion_answered(self, request: Any, raw_request: Any, result: Any) -> None:
        """The answer to a completion request, or what will stream it."""
        self._answered("cmpl-", request, raw_request, result)

    def _answered(self, prefix: str, request: Any, raw_request: Any, result: Any) -> None:
        if hasattr(result, "__anext__"):
            return
        open = self._named(_id(prefix, request, _carrier.of_call(raw_request)))
        if open is None:
            return
        if isinstance(result, BaseException):
            self._fail(open, result)
        else:
            error = _error(result)
            self._finish(open, None if error is None else {"error.type": error})

    def sent(self, request: Any) -> None:
        """A request leaves for the engine, where it has an id of its own."""
        engine_id = request.request_id
        if engine_id in self._in_engine:
            # A client that is made of another passes it on.
            return
        open = self._known(request) or self._of_task() or self._received_otherwise(request)
        # Of several prompts the first.
        if not open.in_engine and not open.prompts:
            omnitrace.action(SENT[open.role], open.request_id)
        open.in_engine.add(engine_id)
        _keep(self._in_engine, engine_id, open)
        _keep(self.silent, engine_id, None)
        _carrier.put(request, open.request_id)

    def _received_otherwise(self, request: Any) -> _Open:
        """A request that no hook has seen before it goes to the engine: the whole of an HTTP call
        to any of the other paths, or one of a program that uses the engine by itself."""
        call = _call.current() or _call.Call()
        is_call = call.is_new
        request_id = _carrier.request_id(call.headers) if is_call else None
        known_as = request_id or _external_id(request)
        # A program's own are, from the start of each process.
        is_counted = known_as.isdigit() and not request_id
        role = _roles.of_request(request)
        open = self._begin(known_as, role, call.headers, is_counted=is_counted)
        if is_call:
            call.request = open
        else:
            open.ends_with_engine = True
        attributes = {
            "url.path": call.path,
            "gen_ai.operation.name": _operation(call.path),
            "gen_ai.request.model": self._model,
            **_usage.ASKED.of(getattr(request, "sampling_params", None)),
        }
        received = call.received if is_call else None
        omnitrace.action(RECEIVED[open.role], open.request_id, attributes, timestamp=received)
        return open

    def outputs(self, outputs: Iterable[Any]) -> None:
        """Outputs of the engine have come; the first of a request has its trace with it."""
        silent = self.silent
        for output in outputs:
            if output.request_id in silent:
                self._speaks(output)

    def _speaks(self, output: Any) -> None:
        engine_id = output.request_id
        del self.silent[engine_id]
        rank = _carrier.take(output, engine_id)
        open = self._in_engine.get(engine_id)
        if open is None:
            return
        if rank is not None:
            open.attributes["omnitrace.engine.rank"] = rank
        if open.is_answer_seen or open.tokens or open.role == _roles.PREFILL:
            return
        if getattr(output, "new_token_ids", None):
            omnitrace.action(TOKENS[0], open.request_id)
            open.tokens = 1

    def finished(self, state: Any, reason: Any, statistics: Any) -> None:
        """The engine is done with a request: what it has taken."""
        open = self._part_of(state)
        self._forget(state.request_id)
        if open is None:
            return
        attributes, said = open.attributes, {}
        if reason is not None:
            open.ended_by(str(reason))
        is_first = not open.prompts
        prompt = _external_id(state)
        if prompt not in open.prompts:
            # All its choices have read it once.
            open.prompts.add(prompt)
            said = _usage.PROMPT.of(state)
        if done := getattr(statistics, "finished_requests", None):
            said.update(_usage.CHOICE.of(done[-1]))
        if not is_first:
            _usage.add_up(attributes, said)
        attributes.update(said)
        self._leaves_engine(open, state.request_id)

    def aborted(self, request_ids: Iterable[str]) -> None:
        """Nobody wants these of the requests to the engine any more."""
        for engine_id in request_ids:
            open = self._in_engine.get(engine_id)
            if open is not None and not open.is_answer_seen:
                self._forget(engine_id)
                open.attributes["omnitrace.aborted"] = True
                open.ended_by("abort")
                self._leaves_engine(open, engine_id)

    def engine_fails(self, error: BaseException) -> None:
        """The engine will not say anything any more."""
        for engine_id, open in list(self._in_engine.items()):
            if not open.is_answer_seen:
                self._forget(engine_id)
                open.attributes["error.type"] = type(error).__qualname__
                self._leaves_engine(open, engine_id)

    def _leaves_engine(self, open: _Open, engine_id: str) -> None:
        open.in_engine.discard(engine_id)
        if open.ends_with_engine and not open.in_engine:
            self._finish(open)

    def _forget(self, engine_id: str) -> None:
        self._in_engine.pop(engine_id, None)
        self.silent.pop(engine_id, None)

    def request_of(self, state: Any) -> tuple[str, str] | None:
        """Id and role of the request that a request to the engine is part of."""
        open = self._part_of(state)
        return None if open is None else (open.request_id, open.role)

    def _part_of(self, state: Any) -> _Open | None:
        return self._in_engine.get(state.request_id) or self._known(state)

    def _known(self, request: Any) -> _Open | None:
        """The request that one to the engine is part of by its id."""
        known_as = _external_id(request)
        open = self._named(known_as)
        if open is None and (prompt := _PROMPT_OF.fullmatch(known_as)):
            return self._named(prompt[1])
        return open

    def begins(self, request_id: str) -> None:
        """The answer is going to be streamed, by another task than took the request."""
        if (open := self._named(request_id)) is not None:
            _call.enters(open)

    def breaks(self, error: str) -> None:
        """The answer that this task streams is to end with an error, as JSON."""
        if (open := self._of_task()) is not None:
            open.attributes["error.type"] = str(json.loads(error)["error"]["type"])

    def streams(self, request_id: str, chunk: str) -> None:
        """A chunk of the answer goes to the client."""
        open = self._named(request_id)
        if open is None or open.role == _roles.PREFILL or open.tokens >= len(TOKENS):
            return
        # Neither an error nor the usage nor the end of the stream.
        if chunk.startswith(_CHUNK) and _NO_CHOICE not in chunk:
            omnitrace.action(TOKENS[open.tokens], open.request_id)
            open.tokens += 1

    def ends(self, request_id: str) -> None:
        """The whole answer is there."""
        if (open := self._named(request_id)) is not None:
            self._finish(open)

    def fails(self, request_id: str, error: BaseException) -> None:
        """There will be no more of the answer."""
        if (open := self._named(request_id)) is not None:
            self._fail(open, error)

    def _fail(self, open: _Open, error: BaseException) -> None:
        kind = type(error)
        if kind.__name__ in {"CancelledError", "GeneratorExit"}:
            # The client has gone.
            said = {"omnitrace.aborted": True, "gen_ai.response.finish_reasons": ["abort"]}
            self._finish(open, said)
        else:
            self._finish(open, {"error.type": kind.__qualname__})

    def _finish(self, open: _Open, attributes: dict[str, Any] | None = None) -> None:
        if open.is_over:
            return
        open.is_over = True
        if self._open.get(open.known_as) is open:
            del self._open[open.known_as]
        for in_engine in open.in_engine:
            # Its client has not waited for the engine.
            self._forget(in_engine)
        omnitrace.action(
            FINISHED[open.role], open.request_id, {**open.attributes, **(attributes or {})}
        )


def _keep(requests: dict[str, Any], request_id: str, what: Any) -> None:
    if len(requests) >= _MOST:
        requests.pop(next(iter(requests)))
    requests[request_id] = what


def _operation(path: str | None) -> str | None:
    known = (operation for part, operation in _OPERATIONS.items() if part in (path or ""))
    return next(known, None)


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
