"""Does something with modules once they are loaded: now, or when vLLM loads them.

Nothing is imported for that: a process that never loads a module never has its hooks.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType

Loaded = Callable[[ModuleType], None]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what the others find, for modules that somebody waits for."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Loaded]] = {}
        self._busy = threading.local()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.waiting or getattr(self._busy, "name", None) == fullname:
            return None
        # Whoever finds it next is the one that would have found it without us.
        self._busy.name = fullname
        try:
            spec = _find(fullname, path, target)
        finally:
            self._busy.name = None
        if spec is None or spec.loader is None or not hasattr(spec.loader, "exec_module"):
            return None
        spec.loader = _Loader(spec.loader, self)
        return spec


def _find(
    name: str, path: Sequence[str] | None, target: ModuleType | None
) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is not None and (spec := find(name, path, target)) is not None:
            found: importlib.machinery.ModuleSpec = spec
            return found
    return None


class _Loader(importlib.abc.Loader):
    """Loads by another loader, then calls who has waited."""

    def __init__(self, loader: importlib.abc.Loader, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Whoever asks the module for its loader gets its own.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        for loaded in self._finder.waiting.pop(module.__name__, []):
            loaded(module)


_finder = _Finder()


def when_loaded(name: str, loaded: Loaded) -> None:
    """Calls `loaded` with the module: at once if it is there, else once it is. `loaded`
    must not raise."""
    module = sys.modules.get(name)
    # One that is being loaded is not there yet.
    spec = getattr(module, "__spec__", None)
    if module is not None and not getattr(spec, "_initializing", False):
        loaded(module)
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _finder.waiting.setdefault(name, []).append(loaded)
