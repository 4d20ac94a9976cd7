"""Where in a call something is to be found: ``request.request_id``,
``raw_request.headers``, ``result.scheduled_new_reqs[].req_id``.

A path begins with the name of a parameter or with ``result``; ``a|b`` is whichever of two
parameters the function has. ``.name`` is an attribute,
``[name]`` an entry of a mapping, ``[]`` each item of what can be iterated. What is not
there is None: hooks are for many versions of vLLM.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

Getter = Callable[[tuple[Any, ...], dict[str, Any], Any], Any]
"""Reads something of a call: its arguments by position and by name, its result."""

_PATH = re.compile(r"[A-Za-z_]\w*(?:\|[A-Za-z_]\w*)*(?:\.[A-Za-z_]\w*|\[[\w-]*\])*")
_STEP = re.compile(r"\.(?P<attribute>\w+)|\[(?P<key>[\w-]+)\]|(?P<each>\[\])")


class PathError(ValueError):
    """A path that cannot be read, or begins with what the function does not have."""


def check(path: str) -> None:
    """Raises PathError unless it is a path."""
    if not _PATH.fullmatch(path):
        raise PathError(f'"{path}" is not a path such as request.request_id or result.items[].id')


def getter(path: str, parameters: Sequence[str]) -> Getter:
    """Makes the reader of a path in calls of a function with these parameters."""
    check(path)
    name = re.match(r"[\w|]+", path)
    assert name
    root, rest = name[0], path[name.end() :]
    read = _root(root, parameters)
    for step in _STEP.finditer(rest):
        read = _step(read, step)
    return read


def _root(name: str, parameters: Sequence[str]) -> Getter:
    if name == "result":
        return lambda args, kwargs, result: result
    there = [each for each in name.split("|") if each in parameters]
    if not there:
        raise PathError(f'"{name}" is none of its parameters: {", ".join(parameters)}')
    name = there[0]
    at = parameters.index(name)

    def read(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        return args[at] if at < len(args) else kwargs.get(name)

    return read


def _step(before: Getter, step: re.Match[str]) -> Getter:
    if step["each"]:

        def each(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
            return before(args, kwargs, result) or ()

        # What follows is asked of each item.
        return _Each(each)
    if (attribute := step["attribute"]) is not None:
        return _then(before, lambda value: getattr(value, attribute, None))
    key = step["key"]
    return _then(before, lambda value: value.get(key))


def _then(before: Getter, get: Callable[[Any], Any]) -> Getter:
    if isinstance(before, _Each):
        items, inner = before.items, before.get
        return _Each(items, lambda item: None if (one := inner(item)) is None else get(one))

    def read(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        value = before(args, kwargs, result)
        return None if value is None else get(value)

    return read


class _Each:
    """Reads a list."""

    def __init__(self, items: Getter, get: Callable[[Any], Any] = lambda item: item) -> None:
        self.items = items
        self.get = get

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[Any]:
        found = (self.get(item) for item in self.items(args, kwargs, result))
        return [value for value in found if value is not None]
