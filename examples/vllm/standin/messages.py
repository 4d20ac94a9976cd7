"""What the API process and the engine process of one node send each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class AddRequest:
    """A new request, to the engine."""

    request_id: str
    """The internal id."""
    prompt_tokens: int
    max_tokens: int
    finish_reason: str
    """What the answer ends with: ``length``, or ``stop`` if the model ends it."""
    kv_transfer_params: dict[str, Any] | None
    carrier: dict[str, str]
    """Filled by ``omnitrace.inject``: the trace travels with the request."""


@dataclass(frozen=True)
class AbortRequest:
    """The client of a request is gone, to the engine."""

    request_id: str


@dataclass(frozen=True)
class Shutdown:
    """The node stops, to the engine."""


@dataclass(frozen=True)
class Ready:
    """The engine takes requests, to the API process."""


@dataclass
class Output:
    """One token of one request, to the API process."""

    request_id: str
    token: str = ""
    first: bool = False
    finish_reason: str | None = None
    kv_transfer_params: dict[str, Any] | None = None
    error: str | None = None
    """Why the request failed; there is no token then."""
    carrier: dict[str, str] = field(default_factory=dict)
    """Filled in a request's first output: the trace travels back."""
