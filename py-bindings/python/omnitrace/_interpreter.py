"""Refuses to be imported by a sub-interpreter.

The exporter thread, the queue and the current span are the process's, so they are the main
interpreter's. CPython 3.12 and later refuse most of these imports by themselves, but not those of
interpreters made by `Py_NewInterpreter` (mod_wsgi).
"""

from __future__ import annotations

import importlib


def _is_main() -> bool:
    # The second is CPython's before 3.13.
    for name in ("_interpreters", "_xxsubinterpreters"):
        try:
            interpreters = importlib.import_module(name)
        except ImportError:
            continue
        return bool(interpreters.get_current() == interpreters.get_main())
    return True


if not _is_main():
    raise ImportError(
        "omnitrace works in the main interpreter only, and this is a sub-interpreter; "
        "under mod_wsgi set `WSGIApplicationGroup %{GLOBAL}`"
    )
