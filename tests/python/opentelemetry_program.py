"""What programs in these tests begin with that use omnitrace by OpenTelemetry's API."""

from __future__ import annotations

from program import Program, Result

# What a caller sends.
SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = SAMPLED.removesuffix("1") + "0"

SET_UP = """\
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.trace import (
    Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState,
)
from omnitrace.opentelemetry import TracerProvider
"""
GLOBAL = (
    SET_UP
    + """\
trace.set_tracer_provider(TracerProvider())
tracer = trace.get_tracer("library", "1.2")
"""
)


def run(program: Program, code: str, before: str = GLOBAL, **variables: str | None) -> Result:
    """Runs a program whose tracer is omnitrace's; it says nothing through `logging`."""
    result = program.run(code, before=before, **variables)
    assert messages(result) == []
    return result


def messages(result: Result) -> list[tuple[str, str]]:
    """What omnitrace said, but for settings that only OpenTelemetry's API honours."""
    return [said for said in result.messages if not said[1].endswith("does not honour it")]
