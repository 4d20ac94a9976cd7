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

    __slots__ = ("at", "fire", "label", "nth", "when")

    def __init__(self, at: str, nth: int, label: str, fire: Fire, when: object = True) -> None:
        self.at = at
        self.nth = nth
        self.label = label
        self.fire = fire
        self.when = when
        """It is only called while this is true: in most of an engine's steps there is nothing
        to do, and one look must tell."""

    def fails(self) -> None:
        """To be called while its exception is handled."""
        logger.exception("%s failed and is not called again; vLLM is not affected", self.label)
        self.fire = _nothing


def _nothing(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    pass


def _fire(hooks: Sequence[Bound], args: tuple[Any, ...], kwargs: dict[str, Any], of: Any) -> None:
    for hook in hooks:
        if hook.when:
            try:
                hook.fire(args, kwargs, of)
            except Exception:
                hook.fails()


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
    # The usual one hook is called without a detour.
    if len(entry) == 1 and not leave and not error:
        (first,) = entry
        when = first.when

        @functools.wraps(function)
        def entered(*args: Any, **kwargs: Any) -> Any:
            if when:
                try:
                    first.fire(args, kwargs, None)
                except Exception:
                    first.fails()
            return function(*args, **kwargs)

        return entered
    if len(leave) == 1 and not entry and not error:
        (last,) = leave
        when_left = last.when

        @functools.wraps(function)
        def left(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if when_left:
                try:
                    last.fire(args, kwargs, result)
                except Exception:
                    last.fails()
            return result

        return left

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        _fire(entry, args, kwargs, None)
        try:
            result = function(*args, **kwargs)
        except BaseException as reason:
            _fire(error, args, kwargs, reason)
            raise
        _fire(leave, args, kwargs, result)
        return result

    return wrapped


def _coroutine(
    function: Callable[..., Any],
    entry: Sequence[Bound],
    leave: Sequence[Bound],
    error: Sequence[Bound],
) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        _fire(entry, args, kwargs, None)
        try:
            result = await function(*args, **kwargs)
        except BaseException as reason:
            _fire(error, args, kwargs, reason)
            raise
        _fire(leave, args, kwargs, result)
        return result

    return wrapped


def _async_generator(
    function: Callable[..., Any],
    entry: Sequence[Bound],
    leave: Sequence[Bound],
    error: Sequence[Bound],
    yields: Sequence[Bound],
) -> Callable[..., Any]:
    by_number = {hook.nth: [h for h in yields if h.nth == hook.nth] for hook in yields}
    last = max(by_number, default=0)

    @functools.wraps(function)
    async def wrapped(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        _fire(entry, args, kwargs, None)
        items = function(*args, **kwargs)
        count = 0
        try:
            if last:
                async for item in items:
                    count += 1
                    _fire(by_number.get(count, ()), args, kwargs, item)
                    yield item
                    if count == last:
                        break
            # All that follow are only passed on.
            async for item in items:
                yield item
        except BaseException as reason:
            # Also GeneratorExit: nobody wants the rest. What it holds is let go now, as
            # without us.
            await items.aclose()
            _fire(error, args, kwargs, reason)
            raise
        _fire(leave, args, kwargs, None)

    return wrapped
