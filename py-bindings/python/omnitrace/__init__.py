"""Distributed tracing for LLM serving: spans by OTLP, or the legacy log."""

from __future__ import annotations

from . import _interpreter, _lifecycle  # noqa: F401  the first may refuse what follows
from ._omnitrace import (
    Span,
    SpanContext,
    __version__,
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
