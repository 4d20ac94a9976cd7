"""OpenTelemetry's tracing API in front of omnitrace's recorder.

    from opentelemetry import trace
    from omnitrace.opentelemetry import TracerProvider

    trace.set_tracer_provider(TracerProvider())

Code and instrumentation written for opentelemetry-python run unchanged on it. From the
import on, OpenTelemetry's context has the one current span: blocks of `omnitrace.span`
and spans of any tracer here are each other's parents and children.
"""

from __future__ import annotations

try:
    import opentelemetry.trace  # noqa: F401
except ImportError:
    raise ImportError(
        "omnitrace.opentelemetry needs the package opentelemetry-api: "
        "pip install 'omnitrace-sdk[opentelemetry]'"
    ) from None

from opentelemetry import trace

from .._omnitrace import _connect_opentelemetry
from .._omnitrace import _OpenTelemetryNonRecordingSpan as NonRecordingSpan
from .._omnitrace import _OpenTelemetrySpan as Span
from .._omnitrace import _OpenTelemetryTracer as Tracer
from ._provider import TracerProvider
from ._view import Event, InstrumentationScope, Resource

__all__ = [
    "Event",
    "InstrumentationScope",
    "NonRecordingSpan",
    "Resource",
    "Span",
    "Tracer",
    "TracerProvider",
]

trace.Span.register(Span)
trace.Tracer.register(Tracer)
trace.NonRecordingSpan.register(NonRecordingSpan)
_connect_opentelemetry(TracerProvider(shutdown_on_exit=False)._own_tracer())
