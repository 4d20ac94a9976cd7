"""Wrappers around vLLM's own functions.

What a hook does may fail, the request may not: a hook that raises says so once and is
not called again. A wrapper is as much of a function as what it wraps: a coroutine
function stays one, an async generator function too.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

logger = logging.getLogger("omnitrace")

Fire = Callable[[tuple[Any, ...], dict[str, Any], Any], object]
"""What a hook does: with the arguments by position and by name, and the result, the error
or the item."""


class Bound:
    """A hook at one function."""

    __slots__ = ("at", "fire", "label", "nth")

    def __init__(self, at: str, nth: int, label: str, fire: Fire) -> None:
        self.at = at
        self.nth = nth
        self.label = label
        self.fire = fire

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        try:
            self.fire(args, kwargs, result)
        except Exception:
            logger.exception("%s failed and is not called again; vLLM is not affected", self.label)
            self.fire = _nothing


def _nothing(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    pass


def wrap(function: Callable[..., Any], hooks: Sequence[Bound]) -> Callable[..., Any]:
    """The function with its hooks."""
    entry = [hook for hook in hooks if hook.at == "entry"]
    leave = [hook for hook in hooks if hook.at == "exit"]
    error = [hook for hook in hooks if hook.at == "error"]
    yields = [hook for hook in hooks if hook.at == "yield"]
    if inspect.isasyncgenfunction(function):
        return _async_generator(function, entry, leave, error, yields)
    if inspect.iscoroutinefunction(function):
        return _coroutine(function, entry, leave, error)
    return _plain(function, entry, leave, error)


def _plain(
    function: Callable[..., Any],
    entry: Sequence[Bound],
    leave: Sequence[Bound],
    error: Sequence[Bound],
) -> Callable[..., Any]:
    if not error and not leave:
        (first, *more) = entry

        # The most usual one, and called most often.
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            first(args, kwargs, None)
            for hook in more:
                hook(args, kwargs, None)
            return function(*args, **kwargs)

        return wrapped

    @functools.wraps(function)
    def wrapped_whole(*args: Any, **kwargs: Any) -> Any:
        for hook in entry:
            hook(args, kwargs, None)
        try:
            result = function(*args, **kwargs)
        except BaseException as reason:
            for hook in error:
                hook(args, kwargs, reason)
            raise
        for hook in leave:
            hook(args, kwargs, result)
        return result

    return wrapped_whole


def _coroutine(
    function: Callable[..., Any],
    entry: Sequence[Bound],
    leave: Sequence[Bound],
    error: Sequence[Bound],
) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        for hook in entry:
            hook(args, kwargs, None)
        try:
            result = await function(*args, **kwargs)
        except BaseException as reason:
            for hook in error:
                hook(args, kwargs, reason)
            raise
        for hook in leave:
            hook(args, kwargs, result)
        return result

    return wrapped


def _async_generator(
    function: Callable[..., Any],
    entry: Sequence[Bound],
    leave: Sequence[Bound],
    error: Sequence[Bound],
    yields: Sequence[Bound],
) -> Callable[..., Any]:
    last = max((hook.nth for hook in yields), default=0)

    @functools.wraps(function)
    async def wrapped(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        for hook in entry:
            hook(args, kwargs, None)
        items = function(*args, **kwargs)
        count = 0
        try:
            async for item in items:
                if count < last:
                    count += 1
                    for hook in yields:
                        if hook.nth == count:
                            hook(args, kwargs, item)
                yield item
        except BaseException as reason:
            # Also GeneratorExit: nobody wants the rest. What it holds is let go now, as
            # without us.
            await items.aclose()
            for hook in error:
                hook(args, kwargs, reason)
            raise
        for hook in leave:
            hook(args, kwargs, None)

    return wrapped
