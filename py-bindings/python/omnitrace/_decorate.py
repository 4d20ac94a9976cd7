"""`omnitrace.span` as a decorator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, Callable, Optional

from ._omnitrace import SpanContext, span

_Arguments = tuple[
    str, Optional[str], Optional[Mapping[str, object]], Optional[SpanContext]
]


def decorate(function: Callable[..., Any], arguments: _Arguments) -> Callable[..., Any]:
    """Gives each call of `function` a span made with `arguments`."""
    name, request_id, attributes, parent = arguments

    def make() -> span:
        return span(name, request_id, attributes, parent=parent)

    wrapper: Callable[..., Any]
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def stream(*args: Any, **kwargs: Any) -> Any:
            with make():
                async for item in function(*args, **kwargs):
                    yield item

        wrapper = stream
    elif inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with make():
                return await function(*args, **kwargs)

        wrapper = call_async
    elif inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generate(*args: Any, **kwargs: Any) -> Any:
            with make():
                return (yield from function(*args, **kwargs))

        wrapper = generate
    else:

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with make():
                return function(*args, **kwargs)

        wrapper = call
    return wrapper
