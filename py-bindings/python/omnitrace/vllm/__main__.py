"""Which of the built-in hooks this vLLM has: ``python -m omnitrace.vllm``.

One line for each target, in the order of the files: whether it is there (``?``: its module
needs what is not installed), its name, and what is recorded. Exit status 1 where a hook has
no target that is there, and is not optional.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable

from . import _plugin
from ._hooks import Hook


def main() -> int:
    """Loads whatever is to be hooked, then tells what was there."""
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed for this Python", file=sys.stderr)
        return 1
    # What is missing is in the list.
    logging.getLogger("omnitrace").setLevel(logging.ERROR)
    hooks = [hook for hook in _plugin.built_in() if _has_package(hook)]
    _plugin.put(hooks)
    # vLLM logs to standard output, which is for the list.
    with contextlib.redirect_stdout(sys.stderr):
        modules = dict.fromkeys(module for hook in hooks for module, _ in _split(hook))
        unknown = {module for module in modules if not _is_known(module)}
    recorded: dict[str, list[str]] = defaultdict(list)
    for hook in hooks:
        for target in hook.targets:
            recorded[target].append(hook.action or hook.do)
    for target, what in recorded.items():
        there = "yes" if _plugin.found.get(target) else "no"
        there = "?" if target.partition(":")[0] in unknown else there
        print(f"{there:3} {target}  {', '.join(dict.fromkeys(what))}")
    missing = [hook for hook in hooks if not hook.optional and not _is_found(hook.targets)]
    for hook in missing:
        print(f'"{hook.action or hook.do}" is not recorded here', file=sys.stderr)
    return 1 if missing else 0


def _is_known(module: str) -> bool:
    """Loads a module; whether it is loaded, or this version has none of that name."""
    try:
        importlib.import_module(module)
    except Exception as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent and f"{module}.".startswith(f"{absent}."):
            return True
        print(f"{module} cannot be loaded: {error}", file=sys.stderr)
        return False
    return True


def _has_package(hook: Hook) -> bool:
    packages = {module.partition(".")[0] for module, _ in _split(hook)}
    return any(importlib.util.find_spec(package) for package in packages)


def _split(hook: Hook) -> list[tuple[str, str]]:
    pairs = (target.partition(":") for target in hook.targets)
    return [(module, name) for module, _, name in pairs]


def _is_found(targets: Iterable[str]) -> bool:
    return any(_plugin.found.get(target) for target in targets)


if __name__ == "__main__":
    sys.exit(main())
