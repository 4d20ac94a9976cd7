"""How a trace travels with what vLLM's processes send each other: in `trace_headers`,
which requests and outputs have for vLLM's own tracing, or, where a version has no such
member, beside the parameters of KV transfer. vLLM finds there what it would find without
us."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union

from .. import _omnitrace as omnitrace

_OURS = "omnitrace"
"""We have added to these headers; among parameters, what we have added."""
_RANK = "omnitrace-rank"
"""Of which engine the message is, where it is one's."""
_OWN = "omnitrace-own"
"""The names of those that were there without us; absent if there was no mapping at all."""
_REQUEST_ID = "omnitrace-request-id"
"""The id that all processes share; `inject` writes it."""
Headers = Union[Mapping[str, str], list[tuple[bytes, bytes]]]
"""Of a call; as ASGI has them where there is a way to get at them."""


def of_call(raw_request: Any) -> Headers:
    """What an HTTP request says of its id and its trace."""
    # Starlette goes through all of its headers to find one.
    scope = getattr(raw_request, "scope", None)
    if scope is not None and type(raw := scope.get("headers")) is list:
        return raw
    return getattr(raw_request, "headers", None) or {}


def request_id(headers: Headers) -> str | None:
    """The id that a client gives its request."""
    if isinstance(headers, list):
        for name, value in headers:
            # ASGI's names are in lower case.
            if name == b"x-request-id":
                return value.decode("latin-1")
        return None
    return headers.get("x-request-id")


def put(message: Any, request_id: str, rank: int | None = None) -> None:
    """Puts what another process of this node needs into a message; `rank` is the engine's that
    it comes from."""
    carrier = {_OURS: "1"} if rank is None else {_OURS: "1", _RANK: str(rank)}
    try:
        own: Mapping[str, str] | None = message.trace_headers
    except AttributeError:
        _put_beside(message, request_id, carrier)
        return
    if own is not None:
        if _OURS in own:
            # A client that is made of another passes the message on.
            return
        carrier.update(own)
        carrier[_OWN] = ",".join(own)
    omnitrace.inject(carrier, request_id)
    message.trace_headers = carrier


def is_ours(message: Any) -> bool:
    """Whether the process that it comes from has put anything into it, as far as that shows."""
    try:
        headers: Mapping[str, str] | None = message.trace_headers
    except AttributeError:
        # What is beside the parameters of KV transfer needs such parameters.
        return True
    return headers is not None and _OURS in headers


def adopt(request: Any, request_id: str) -> None:
    """Takes over a request of a process without us: what headers it has are its client's."""
    headers: Mapping[str, str] = request.trace_headers or {}
    client_knows = getattr(request, "external_req_id", None) or request_id
    omnitrace.extract({**headers, _REQUEST_ID: client_knows}, request_id)


def take(message: Any, request_id: str) -> int | None:
    """Takes it out of the message; the rank of the engine that has put it there."""
    try:
        headers: Mapping[str, str] | None = message.trace_headers
    except AttributeError:
        return _take_beside(message, request_id)
    if not headers or _OURS not in headers:
        return None
    omnitrace.extract(headers, request_id)
    own = headers.get(_OWN)
    message.trace_headers = (
        None if own is None else {name: headers[name] for name in own.split(",") if name}
    )
    return _rank(headers)


def _put_beside(message: Any, request_id: str, carrier: dict[str, str]) -> None:
    of, member = _parameters(message)
    if of is None:
        # Both sides still agree on the trace of a request that came without one.
        return
    omnitrace.inject(carrier, request_id)
    # Others may have the same parameters.
    setattr(of, member, {**(getattr(of, member) or {}), _OURS: carrier})


def _take_beside(message: Any, request_id: str) -> int | None:
    of, member = _parameters(message)
    parameters = getattr(of, member, None)
    if not parameters or _OURS not in parameters:
        return None
    omnitrace.extract(parameters[_OURS], request_id)
    own = {name: value for name, value in parameters.items() if name != _OURS}
    setattr(of, member, own or None)
    return _rank(parameters[_OURS])


def _rank(carrier: Mapping[str, str]) -> int | None:
    rank = carrier.get(_RANK)
    return None if rank is None else int(rank)


def _parameters(message: Any) -> tuple[Any, str]:
    """Whose member has parameters of any kind, and which: a request's, an output's."""
    if hasattr(message, "kv_transfer_params"):
        return message, "kv_transfer_params"
    return getattr(message, "sampling_params", None), "extra_args"
