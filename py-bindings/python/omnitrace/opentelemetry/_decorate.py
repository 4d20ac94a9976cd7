"""`start_as_current_span` as a decorator."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Callable

from .._omnitrace import _OpenTelemetryBlock


def decorate(function: Callable[..., Any], block: _OpenTelemetryBlock) -> Callable[..., Any]:
    """Gives each call of `function` a span as `block` would make it.

    As in the API, a generator's span is that of the call that makes the generator.
    """
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with block._again():
                return await function(*args, **kwargs)

        return call_async

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with block._again():
            return function(*args, **kwargs)

    return call
