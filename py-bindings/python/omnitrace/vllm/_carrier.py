"""How a trace travels with what vLLM's processes send each other: in `trace_headers`,
which requests and outputs have for vLLM's own tracing. It finds there what it would find
without us."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import _omnitrace as omnitrace

_OURS = "omnitrace-"
_ALONE = "omnitrace-alone"
"""There were no headers but ours."""


def put(message: Any, request_id: str) -> None:
    """Puts what another process of this node needs into a message."""
    own: Mapping[str, str] | None = message.trace_headers
    carrier: dict[str, str] = dict(own) if own else {_ALONE: "1"}
    omnitrace.inject(carrier, request_id)
    message.trace_headers = carrier


def take(message: Any, request_id: str) -> None:
    """Takes it out of the message."""
    headers: Mapping[str, str] | None = message.trace_headers
    if not headers or not any(name.startswith(_OURS) for name in headers):
        return
    omnitrace.extract(headers, request_id)
    if _ALONE in headers:
        message.trace_headers = None
    else:
        own = {name: value for name, value in headers.items() if not name.startswith(_OURS)}
        message.trace_headers = own
