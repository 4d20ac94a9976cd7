"""vLLM's own span of each finished request, `llm_request`, recorded by omnitrace and below
the request's span: with OMNITRACE_VLLM_NATIVE=1, else not at all.

vLLM makes these spans for --otlp-traces-endpoint and has an exporter of its own for them. Here
it makes them without that option, and with it no exporter of its own.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from .. import _omnitrace as omnitrace
from ._api import Api

logger = logging.getLogger("omnitrace")

_WORD = "OMNITRACE_VLLM_NATIVE"


class Native:
    """vLLM's own spans in this process."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._is_on = False
        self._finishing: Any = None
        self._headers: dict[str, str] = {}

    def configured(self, vllm_config: Any) -> None:
        """An engine's client is about to be made: it shall have no exporter."""
        config: Any = getattr(vllm_config, "observability_config", None)
        endpoint = getattr(config, "otlp_traces_endpoint", None)
        if endpoint is None or not _has_opentelemetry():
            return
        config.otlp_traces_endpoint = None
        logger.warning(
            "%s: vLLM's own spans go where omnitrace's go, not to --otlp-traces-endpoint=%s",
            _WORD,
            endpoint,
        )

    def prepared(self, processor: Any) -> None:
        """What makes the spans has been made: they are wanted of it."""
        if (reason := _why_not(processor)) is not None:
            logger.warning("%s: no spans of vLLM's own: %s", _WORD, reason)
            return
        from opentelemetry import trace

        from ..opentelemetry import TracerProvider

        provider = trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider):
            provider = TracerProvider()
            trace.set_tracer_provider(provider)
        elif not isinstance(provider, TracerProvider):
            logger.warning(
                "%s: vLLM's own spans go to the TracerProvider that is set already (%s); "
                "OTEL_PYTHON_TRACER_PROVIDER=omnitrace has omnitrace's in its place",
                _WORD,
                f"{type(provider).__module__}.{type(provider).__qualname__}",
            )
        # Older versions ask the tracer itself, younger ones the provider that is set.
        if hasattr(processor, "tracer"):
            processor.tracer = provider.get_tracer("vllm.llm_engine")
        else:
            processor.tracing_enabled = True
        self._is_on = True

    def finishing(self, state: Any) -> None:
        """A request ends: here it is still known what it is."""
        if not self._is_on or (found := self._api.request_of(state)) is None:
            return
        request_id, role = found
        span = omnitrace._request_span(request_id, role)
        if span is not None:
            carrier: dict[str, str] = {}
            omnitrace.inject(carrier, request_id)
            passing = {name: carrier[name] for name in ("tracestate",) if name in carrier}
            self._finishing, self._headers = state, {"traceparent": span.traceparent, **passing}

    def span(self, output: Any, state: Any) -> None:
        """vLLM is about to make its span, below what has come with the output."""
        if state is self._finishing:
            output.trace_headers = self._headers
            self._finishing = None


def is_asked() -> bool:
    """Whether the environment asks for vLLM's own spans."""
    return os.environ.get(_WORD, "").strip().lower() in {"1", "true", "on", "yes"}


def _has_opentelemetry() -> bool:
    try:
        from .. import opentelemetry  # noqa: F401
    except ImportError:
        return False
    return True


def _why_not(processor: Any) -> str | None:
    if not hasattr(processor, "do_tracing"):
        return "this version makes none"
    if not getattr(processor, "log_stats", True):
        return "they need its statistics, which --disable-log-stats turns off"
    tracing = sys.modules.get("vllm.tracing")
    names = ("is_tracing_available", "is_otel_available")
    checks = (getattr(tracing, name, None) for name in names)
    is_available = next((check for check in checks if check is not None), None)
    if is_available is None or not is_available() or not _has_opentelemetry():
        return (
            "they need packages that are not there: "
            "pip install opentelemetry-api opentelemetry-sdk opentelemetry-exporter-otlp"
        )
    return None
