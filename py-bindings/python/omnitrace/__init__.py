"""Distributed tracing for LLM serving: spans by OTLP, or the legacy log."""

from __future__ import annotations

import atexit
import multiprocessing.util
import os

from ._omnitrace import (
    Span,
    SpanContext,
    __version__,
    _after_fork_in_child,
    action,
    extract,
    flush,
    init,
    inject,
    shutdown,
    span,
    stats,
)

__all__ = [
    "Span",
    "SpanContext",
    "__version__",
    "action",
    "extract",
    "flush",
    "init",
    "inject",
    "shutdown",
    "span",
    "stats",
]


def _deliver_at_exit(_: object = None) -> None:
    # multiprocessing ends its children with os._exit, which skips atexit, but
    # runs its own finalizers; a forked child has forgotten its parent's.
    multiprocessing.util.Finalize(None, shutdown, exitpriority=0)


os.register_at_fork(after_in_child=_after_fork_in_child)
multiprocessing.util.register_after_fork(_deliver_at_exit, _deliver_at_exit)
if multiprocessing.parent_process() is not None:
    _deliver_at_exit()
atexit.register(shutdown)
