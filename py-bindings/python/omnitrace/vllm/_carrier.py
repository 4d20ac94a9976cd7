"""How a trace travels with what vLLM's processes send each other: in `trace_headers`,
which requests and outputs have for vLLM's own tracing. It finds there what it would find
without us."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import _omnitrace as omnitrace

_OURS = "omnitrace"
"""We have added to these headers."""
_OWN = "omnitrace-own"
"""The names of those that were there without us; absent if there was no mapping at all."""
_OF_CALL = frozenset(
    [
        b"x-request-id",
        b"traceparent",
        b"tracestate",
        b"baggage",
        b"b3",
        b"x-b3-traceid",
        b"x-b3-spanid",
        b"x-b3-sampled",
        b"x-b3-flags",
    ]
)
"""All headers in which a caller's request id and trace may be."""


def of_call(raw_request: Any) -> Mapping[str, str]:
    """What an HTTP request says of its id and its trace."""
    headers = getattr(raw_request, "headers", None)
    # Starlette goes through all of its headers to find one.
    raw: list[tuple[bytes, bytes]] | None = getattr(headers, "raw", None)
    if raw is None:
        return headers or {}
    # Of several with one name the first counts.
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in reversed(raw)
        if name in _OF_CALL
    }


def put(message: Any, request_id: str) -> None:
    """Puts what another process of this node needs into a message."""
    own: Mapping[str, str] | None = message.trace_headers
    carrier: dict[str, str] = {_OURS: "1"}
    if own is not None:
        if _OURS in own:
            # A client that is made of another passes the message on.
            return
        carrier.update(own)
        carrier[_OWN] = ",".join(own)
    omnitrace.inject(carrier, request_id)
    message.trace_headers = carrier


def take(message: Any, request_id: str) -> None:
    """Takes it out of the message."""
    headers: Mapping[str, str] | None = message.trace_headers
    if not headers or _OURS not in headers:
        return
    omnitrace.extract(headers, request_id)
    own = headers.get(_OWN)
    message.trace_headers = (
        None if own is None else {name: headers[name] for name in own.split(",") if name}
    )
