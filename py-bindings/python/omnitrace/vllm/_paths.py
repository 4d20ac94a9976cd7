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
Get = Callable[[Any], Any]
"""Reads something of a value."""

_PATH = re.compile(r"[A-Za-z_]\w*(?:\|[A-Za-z_]\w*)*(?:\.[A-Za-z_]\w*|\[[\w-]*\])*")
_STEP = re.compile(r"\.(?P<attribute>\w+)|\[(?P<key>[\w-]+)\]")


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
    root = _root(name[0], parameters)
    get = _onwards(path[name.end() :])
    if get is None:
        return root
    return lambda args, kwargs, result: get(root(args, kwargs, result))


def _root(name: str, parameters: Sequence[str]) -> Getter:
    if name == "result":
        return lambda args, kwargs, result: result
    there = [each for each in name.split("|") if each in parameters]
    if not there:
        raise PathError(f'"{name}" is none of its parameters: {", ".join(parameters)}')
    name = there[0]
    at = parameters.index(name)
    return lambda args, kwargs, result: args[at] if at < len(args) else kwargs.get(name)


def _onwards(steps: str) -> Get | None:
    """Goes on from a value, or from None; None if there is nowhere to go."""
    before, each, after = steps.partition("[]")
    get: Get | None = None
    for step in _STEP.finditer(before):
        next_one = _key(step["key"]) if step["key"] else _attribute(step["attribute"])
        get = next_one if get is None else _then(get, next_one)
    return _each(get, _onwards(after)) if each else get


def _attribute(name: str) -> Get:
    return lambda value: getattr(value, name, None)


def _key(key: str) -> Get:
    return lambda value: None if value is None else value.get(key)


def _then(first: Get, second: Get) -> Get:
    return lambda value: second(first(value))


def _each(items: Get | None, get: Get | None) -> Get:
    def read(value: Any) -> list[Any]:
        found = (value if items is None else items(value)) or ()
        if get is not None:
            found = [get(item) for item in found]
        return [item for item in found if item is not None]

    return read
