"""Puts the hooks in place."""

from __future__ import annotations

import functools
import inspect
import logging
import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import _omnitrace as omnitrace
from . import _legacy_namelist, _native, _paths, _roles, _steps
from ._hooks import ANY_ROLE, Hook, HookError, load
from ._imports import when_loaded
from ._stages import STAGES, WHEN, steps
from ._wrap import Bound, Fire, wrap

logger = logging.getLogger("omnitrace")

_BUILT_IN = Path(__file__).with_name("hooks")
ON_REQUEST = ("steps", "native")
"""Folders of hooks that are in place only where the environment asks for them."""
_MARK = "__omnitrace_hooks__"

found: dict[str, bool] = {}
"""Each target whose module has been loaded, and whether it is there."""


def install() -> None:
    """Puts the built-in hooks and those of PROFILING_NAMELIST in place. Never raises: a
    vLLM starts, traced or not."""
    try:
        asked = []
        if ratio := _steps.ratio():
            steps.record(ratio)
            asked.append("steps")
        if _native.is_asked():
            asked.append("native")
        hooks = built_in(asked)
        hooks += _users_own(hooks)
        put(hooks)
    except Exception:
        logger.exception("vLLM is not traced")


def built_in(asked: Iterable[str] = ON_REQUEST) -> list[Hook]:
    """The hooks that come with omnitrace; of those on request, the ones asked for."""
    folders = [_BUILT_IN, *(_BUILT_IN / name for name in asked)]
    files = [file for folder in folders for file in sorted(folder.glob("*.yaml"))]
    return [hook for file in files for hook in load(file, STAGES)]


def _users_own(built_in: Iterable[Hook]) -> list[Hook]:
    name = os.environ.get("PROFILING_NAMELIST", "").strip()
    if not name:
        return []
    file = Path(name)
    try:
        if (legacy := _legacy_namelist.read(file)) is not None:
            _legacy_namelist.say(file, legacy, built_in)
            return []
        return load(file, STAGES)
    except (HookError, OSError) as error:
        logger.error("PROFILING_NAMELIST: %s; the built-in hooks are in place", error)
        return []


def put(hooks: Iterable[Hook]) -> None:
    """Puts hooks in place, each as soon as its module is loaded."""
    by_module: dict[str, dict[str, list[Hook]]] = defaultdict(lambda: defaultdict(list))
    for hook in hooks:
        for target in hook.targets:
            module, _, name = target.partition(":")
            by_module[module][name].append(hook)
    for module, by_name in by_module.items():
        when_loaded(module, functools.partial(_patch, by_name))
        # Of what no process will ever load, the first one tells.
        package = module.partition(".")[0]
        absent = package in sys.modules and not _is_installed(module)
        if absent and multiprocessing.parent_process() is None:
            for name, of_name in by_name.items():
                _say_missing(f"{module}:{name}", of_name)


def _patch(by_name: dict[str, list[Hook]], module: ModuleType) -> None:
    for name, hooks in by_name.items():
        try:
            _patch_one(module, name, hooks)
        except Exception:
            logger.exception("%s:%s cannot be hooked", module.__name__, name)


def _patch_one(module: ModuleType, name: str, hooks: list[Hook]) -> None:
    target = f"{module.__name__}:{name}"
    owner: Any = module
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part, None)
    there = inspect.getattr_static(owner, last, None) if owner is not None else None
    found[target] = there is not None
    if there is None:
        _say_missing(target, hooks)
        return
    _replace(owner, last, there, target, hooks)


def _say_missing(target: str, hooks: Iterable[Hook]) -> None:
    for hook in hooks:
        # Another of its targets may be the one that this version has.
        others = (other for other in hook.targets if other != target)
        if not hook.optional and not any(map(_may_be_there, others)):
            logger.warning(
                "%s is not in this vLLM: %s is not recorded (%s)",
                target,
                f'"{hook.action}"' if hook.action else f'"{hook.do}"',
                hook.origin,
            )


def _may_be_there(target: str) -> bool:
    module = target.partition(":")[0]
    return found[target] if target in found else module in sys.modules or _is_installed(module)


def _is_installed(module: str) -> bool:
    """Whether there is a file for a module; nothing is imported for that."""
    package, *parts = module.split(".")
    roots = getattr(sys.modules.get(package), "__path__", ())
    files = [Path(root, *parts) for root in roots]
    return any(f.with_suffix(".py").is_file() or (f / "__init__.py").is_file() for f in files)


def _replace(owner: Any, name: str, there: Any, target: str, hooks: list[Hook]) -> None:
    function = there.__func__ if isinstance(there, (staticmethod, classmethod)) else there
    if not callable(function):
        return
    # What a class inherits may be hooked where it is from.
    done: frozenset[str] = getattr(function, _MARK, frozenset())
    hooks = [hook for hook in hooks if hook.origin not in done]
    parameters = list(inspect.signature(function).parameters)
    bound = []
    for hook in hooks:
        try:
            bound.append(_bind(hook, target, parameters))
        except _paths.PathError as error:
            logger.warning("%s: %s has other parameters here: %s", hook.origin, target, error)
    if not bound:
        return
    wrapped: Any = wrap(function, bound)
    setattr(wrapped, _MARK, done | {hook.origin for hook in hooks})
    if isinstance(there, (staticmethod, classmethod)):
        wrapped = type(there)(wrapped)
    setattr(owner, name, wrapped)


def _bind(hook: Hook, target: str, parameters: list[str]) -> Bound:
    label = f'hook "{hook.action or hook.do}" at {target} ({hook.origin})'
    fire = _on_result(hook, target) if hook.on_result else _fire(hook, parameters)
    when = WHEN.get(hook.do, True)
    return Bound("exit" if hook.on_result else hook.at, hook.nth, label, fire, when)


def _fire(hook: Hook, parameters: list[str]) -> Fire:
    if not hook.do:
        return _action(hook, parameters)
    stage = STAGES[hook.do]
    # In the order of the stage's own parameters.
    paths = [hook.arguments[name] for name in inspect.signature(stage).parameters]
    getters = [_paths.getter(path, parameters) for path in paths]
    # Stages are called in each step of the engine: no list is made for their arguments.
    if paths == ["result"]:
        return lambda args, kwargs, result: stage(result)
    if not getters:
        return lambda args, kwargs, result: stage()
    first, *more = getters
    if not more:
        return lambda args, kwargs, result: stage(first(args, kwargs, result))
    if len(more) == 1:
        (second,) = more
        return lambda args, kwargs, result: stage(
            first(args, kwargs, result), second(args, kwargs, result)
        )
    return lambda args, kwargs, result: stage(*[get(args, kwargs, result) for get in getters])


def _action(hook: Hook, parameters: list[str]) -> Fire:
    action, roles = hook.action, hook.roles
    by_path = {name: _paths.getter(path, parameters) for name, path in hook.attributes.items()}
    request = _paths.getter(hook.request, parameters) if hook.request else None
    id_path = hook.request_id or f"{hook.request}.request_id"
    request_id = _paths.getter(id_path, parameters)

    def record(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if roles is not ANY_ROLE:
            of = request(args, kwargs, result) if request else None
            if _roles.of_request(of) not in roles:
                return
        ids = request_id(args, kwargs, result)
        attributes = None
        if by_path:
            read = {name: get(args, kwargs, result) for name, get in by_path.items()}
            attributes = {name: value for name, value in read.items() if value is not None}
        for each in ids if isinstance(ids, (list, tuple, set)) else (ids,):
            if each is not None:
                omnitrace.action(action, each, attributes)

    return record


def _on_result(hook: Hook, target: str) -> Fire:
    """Hooks a method of what the target returns, which may be of any class."""
    inner = Hook(
        targets=hook.targets,
        at=hook.at,
        nth=hook.nth,
        origin=hook.origin,
        action=hook.action,
        do=hook.do,
        arguments=hook.arguments,
        request=hook.request,
        request_id=hook.request_id,
        attributes=hook.attributes,
        roles=hook.roles,
    )

    def hook_class(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        cls = type(result)
        there = inspect.getattr_static(cls, hook.on_result, None)
        if there is not None:
            name = f"{cls.__module__}:{cls.__qualname__}.{hook.on_result}"
            _replace(cls, hook.on_result, there, name, [inner])

    return hook_class
