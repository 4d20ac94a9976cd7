"""Whose endpoint is in the environment.

vLLM's own tracing leaves its endpoint in OpenTelemetry's variable for traces, for the
processes that it starts. Ours is what was there before; it travels in a variable of its own.
"""

from __future__ import annotations

import os

from .. import _omnitrace as omnitrace

_VARIABLE = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_OURS = "OMNITRACE_VLLM_TRACES_ENDPOINT"


def note() -> None:
    """To be called before vLLM does anything."""
    os.environ.setdefault(_OURS, os.environ.get(_VARIABLE, ""))


def settle() -> None:
    """Reads our settings, as they are to be. ROLE is one of them: it must be known."""
    theirs = os.environ.get(_VARIABLE)
    _put(os.environ.get(_OURS) or None)
    try:
        omnitrace._process_description()
    finally:
        _put(theirs)


def _put(endpoint: str | None) -> None:
    if endpoint is None:
        os.environ.pop(_VARIABLE, None)
    else:
        os.environ[_VARIABLE] = endpoint
