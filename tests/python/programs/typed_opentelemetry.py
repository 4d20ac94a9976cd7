"""omnitrace's provider, as a type checker sees it and as it runs."""

from __future__ import annotations

import asyncio

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, sampling

import omnitrace.opentelemetry
from omnitrace.opentelemetry import TracerProvider

provider = TracerProvider(sampler=sampling.ALWAYS_ON, shutdown_on_exit=False)
provider.add_span_processor(SpanProcessor())
trace.set_tracer_provider(provider)
tracer: trace.Tracer = provider.get_tracer("typed", "1", "https://schema", {"a": 1})


@tracer.start_as_current_span("function")
def function(x: int) -> str:
    return str(x)


@tracer.start_as_current_span("coroutine")
async def coroutine(x: int) -> str:
    return str(x)


def main() -> None:
    text: str = function(1) + asyncio.run(coroutine(2))
    span: trace.Span = tracer.start_span("s", kind=trace.SpanKind.CLIENT, attributes={"n": [1]})
    assert isinstance(span, omnitrace.opentelemetry.Span)
    end: int | None = span.end_time
    events: tuple[omnitrace.opentelemetry.Event, ...] = span.events
    assert (text, end, events) == ("12", None, ())
    span.end(end_time=5)
    with tracer.start_as_current_span("block", record_exception=False) as current:
        current.set_attribute("a", 1)
    with trace.use_span(span):
        pass
    flushed: bool = provider.force_flush(1000)
    assert flushed
    provider.shutdown()


main()
