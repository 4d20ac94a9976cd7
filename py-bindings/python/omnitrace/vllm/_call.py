"""The call of this process's HTTP server that a task of the event loop works for: what the
engine is asked for is in no argument of a hook connected with it."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

from ._carrier import Headers

Scope = MutableMapping[str, Any]
"""Of ASGI."""


class Call:
    """A call: most are no requests to the engine, some need it several times."""

    __slots__ = ("headers", "is_programs", "path", "received", "request", "scope")

    def __init__(self, request: Any = None, scope: Scope | None = None) -> None:
        self.request = request
        """The request that it is, as soon as that is known."""
        self.scope = scope
        """None: it is over, or it is not known to be one."""
        self.received = time.time_ns()
        self.headers: Headers = []
        self.path: str | None = None
        if scope is not None:
            # ASGI allows what can be iterated.
            headers = scope["headers"]
            self.headers = headers if isinstance(headers, list) else list(headers)
            self.path = scope.get("path")
        self.is_programs = False
        """A program's, not the server's: it has said whose its request is."""

    @property
    def is_new(self) -> bool:
        """It has not been over yet, and is not known to be a request."""
        return self.scope is not None and self.request is None


_current: ContextVar[Call | None] = ContextVar("omnitrace_call", default=None)

current = _current.get
"""The call that this task, or the one that has started it, works for."""


def begins(scope: Scope) -> None:
    """A call comes in."""
    if scope["type"] != "http":
        return
    outer = current()
    # An application inside of another is called once more.
    if outer is None or outer.headers is not scope["headers"]:
        _current.set(Call(scope=scope))


def ends(scope: Scope) -> Call | None:
    """A call is over; None if it is only a part of one."""
    call = current()
    if call is None or call.scope is not scope:
        return None
    # What it has left behind may go on for long.
    call.scope = None
    return call


def enters(request: Any) -> None:
    """This task works for a request."""
    call = current()
    if call is None or call.request not in (None, request):
        _current.set(Call(request))
    else:
        call.request = request


def carries(headers: Mapping[str, str] | None) -> None:
    """A request is about to be given to the engine, with what vLLM drops unless it traces."""
    call = current()
    if call is not None and not call.is_programs:
        return
    if headers:
        call = Call()
        call.headers = headers
        call.is_programs = True
        _current.set(call)
    elif call is not None:
        _current.set(None)
