"""`omnitrace.span` as a decorator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, Callable, Optional

from ._omnitrace import Span, SpanContext, span

_Arguments = tuple[str, Optional[str], Optional[Mapping[str, object]], Optional[SpanContext]]


def decorate(function: Callable[..., Any], arguments: _Arguments) -> Callable[..., Any]:
    """Gives each call of `function` a span made with `arguments`.

    Of a generator the span lasts from its first step to its end, and is the
    current one only while the generator itself runs.
    """
    name, request_id, attributes, parent = arguments

    def make() -> Span:
        return span(name, request_id, attributes, parent=parent)

    wrapper: Callable[..., Any]
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def stream(*args: Any, **kwargs: Any) -> Any:
            with make() as around:
                steps = function(*args, **kwargs)
                step, value = steps.asend, None
                while True:
                    try:
                        item = await step(value)
                    except StopAsyncIteration:
                        return
                    around._leave()
                    try:
                        step, value = steps.asend, (yield item)
                    except GeneratorExit:
                        around._return()
                        await steps.aclose()
                        raise
                    except BaseException as error:
                        step, value = steps.athrow, error
                    around._return()

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
            with make() as around:
                steps = function(*args, **kwargs)
                step, value = steps.send, None
                while True:
                    try:
                        item = step(value)
                    except StopIteration as end:
                        return end.value
                    around._leave()
                    try:
                        step, value = steps.send, (yield item)
                    except GeneratorExit:
                        around._return()
                        steps.close()
                        raise
                    except BaseException as error:
                        step, value = steps.throw, error
                    around._return()

        wrapper = generate
    else:

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with make():
                return function(*args, **kwargs)

        wrapper = call
    return wrapper
