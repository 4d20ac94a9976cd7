"""omnitrace in vLLM: a plugin (entry point ``vllm.general_plugins``) that needs no change
to vLLM and no word on its command line.

It does nothing unless asked for: by an OTLP endpoint, TRACE_OUTPUT_DIRECTORY or
PROFILING_NAMELIST in the environment, or by OMNITRACE=1 (OMNITRACE=0 keeps it quiet in
any case). Then each request is traced in all of vLLM's processes: received, scheduled,
computed, its KV cache moved, answered.

::

     hooks/*.yaml ─► hooks ─┐
     PROFILING_NAMELIST ────┴► patches ─► wrappers around vLLM's own methods
                                             │ entry, exit, error
                               stages of the API process and of the engine ─► omnitrace.action
"""

from __future__ import annotations

import os

__all__ = ["is_wanted", "register"]

_WORDS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "TRACE_OUTPUT_DIRECTORY",
    "PROFILING_NAMELIST",
)
_registered = False


def is_wanted() -> bool:
    """Whether the environment asks for tracing."""
    said = os.environ.get("OMNITRACE", "").strip().lower()
    if said in {"0", "false", "off", "no"}:
        return False
    asked = said in {"1", "true", "on", "yes"}
    return asked or any(os.environ.get(word, "").strip() for word in _WORDS)


def register() -> None:
    """Puts the hooks in place. vLLM calls this in each of its processes, some twice."""
    global _registered
    if _registered:
        return
    if not is_wanted():
        # vLLM's own tracing leaves an endpoint in the environment of the processes that it
        # starts later: they are not to take it for ours.
        os.environ.setdefault("OMNITRACE", "0")
        return
    _registered = True
    # Only now: a vLLM that is not traced does not load any of it.
    from . import _endpoint
    from ._plugin import install

    _endpoint.note()
    # In processes that vLLM starts; else it is learnt.
    if os.environ.get("ROLE", "").strip():
        _endpoint.settle()
    install()
