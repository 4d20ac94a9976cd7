"""The table of hooks: what is recorded at which of vLLM's methods. Data, no code.

A file of it is YAML::

    hooks:
      - target: vllm.v1.core.sched.scheduler:Scheduler.add_request
        action: Prefill add waiting queue
        role: prefill
        request: request

``target``      module:Class.method, or module:function; a list: all of them that there are
``at``          ``entry`` (as a rule), ``exit``, ``error``, or ``yield 2``: the second item
                of an async generator
``action``      what is recorded
``request``     path to vLLM's request: its ``request_id`` is the id, its role counts
``request_id``  path to the id itself, or to several (``result.items[].id``)
``attributes``  path for each attribute's name
``role``        record only of requests in this role: ``prefill``, ``decode`` or ``serve``,
                or a list
``do``          in place of ``action``: one of omnitrace's own stages; its arguments are the
                paths in ``with``
``on_result``   method of the object that the target returns: that one is hooked
``optional``    ``true``: nothing is said where there is no such target
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

from . import _paths

_KEYS = frozenset(
    [
        "target",
        "at",
        "action",
        "request",
        "request_id",
        "attributes",
        "role",
        "do",
        "with",
        "on_result",
        "optional",
    ]
)
ANY_ROLE = frozenset({"prefill", "decode", "serve"})


class HookError(ValueError):
    """An entry that cannot be used: file, entry and cure."""


@dataclass(frozen=True)
class Hook:
    """One entry of the table."""

    targets: tuple[str, ...]
    at: str
    """entry, exit, error or yield."""
    nth: int
    """Of the yield, from 1."""
    origin: str
    """File and entry, for messages."""
    action: str = ""
    do: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)
    request: str = ""
    request_id: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    roles: frozenset[str] = ANY_ROLE
    on_result: str = ""
    optional: bool = False


def load(file: Path, stages: Mapping[str, Any]) -> list[Hook]:
    """The hooks of a file.

    Raises HookError for an entry that cannot be used, OSError for a file that cannot be
    read.
    """
    # It comes with vLLM.
    import yaml

    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise HookError(f"{file}: not YAML: {error}") from error
    entries = content.get("hooks") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise HookError(f"{file}: there is no list `hooks`")
    return [_hook(f"{file}, hook {n}", entry, stages) for n, entry in enumerate(entries, 1)]


def _hook(origin: str, entry: Any, stages: Mapping[str, Any]) -> Hook:
    def wrong(what: str) -> HookError:
        return HookError(f"{origin}: {what}")

    if not isinstance(entry, dict):
        raise wrong("not a mapping")
    if unknown := sorted(set(map(str, entry)) - _KEYS):
        raise wrong(f"unknown key {unknown[0]}; there are {', '.join(sorted(_KEYS))}")
    targets = entry.get("target")
    targets = (targets,) if isinstance(targets, str) else tuple(targets or ())
    for target in targets or ("",):
        module, colon, rest = str(target).partition(":")
        if not (module and colon and rest and rest.count(".") <= 1):
            raise wrong(f'target "{target}" is not module:Class.method or module:function')
    at, _, nth = str(entry.get("at", "entry")).partition(" ")
    if at not in {"entry", "exit", "error", "yield"} or (at == "yield") != nth.isdigit():
        raise wrong("at is not entry, exit, error or `yield N`")
    action, do = entry.get("action", ""), entry.get("do", "")
    if bool(action) == bool(do):
        raise wrong("needs an action, or one of omnitrace's own stages in do")
    if do and do not in stages:
        raise wrong(f"there is no stage {do}; there are {', '.join(sorted(stages))}")
    if do and (missing := set(signature(stages[do]).parameters) ^ set(entry.get("with") or {})):
        raise wrong(f"{do} takes {', '.join(signature(stages[do]).parameters)}, see {min(missing)}")
    if action and not (entry.get("request") or entry.get("request_id")):
        raise wrong("needs the path of the request or of its request_id")
    roles = entry.get("role", ANY_ROLE)
    roles = frozenset([roles] if isinstance(roles, str) else roles)
    if not roles <= ANY_ROLE:
        raise wrong(f"role is not {', '.join(sorted(ANY_ROLE))}")
    attributes, arguments = entry.get("attributes") or {}, entry.get("with") or {}
    try:
        for path in (*attributes.values(), *arguments.values()):
            _paths.check(str(path))
        for key in ("request", "request_id"):
            if entry.get(key):
                _paths.check(str(entry[key]))
    except (_paths.PathError, AttributeError) as error:
        raise wrong(str(error)) from error
    return Hook(
        targets=targets,
        at=at,
        nth=int(nth or 0),
        origin=origin,
        action=action,
        do=do,
        arguments=arguments,
        request=entry.get("request", ""),
        request_id=entry.get("request_id", ""),
        attributes=attributes,
        roles=roles,
        on_result=entry.get("on_result", ""),
        optional=bool(entry.get("optional", False)),
    )
