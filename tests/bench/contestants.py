"""The contestants: omnitrace, and what a Python program would otherwise use, each
set up as its documentation says.

Modules are imported by name when a contestant starts: a run loads only its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# Records in a burst.
BURST = 1_000
NAME = "schedule"

# The actions of a prefill request, in order: about one span for each.
ACTIONS = (
    "PD api server get request",
    "Start process request in prefill engine",
    "Prefill add waiting queue",
    "try to schedule in waiting queue",
    "Prefill get new_blocks",
    "success add to seq groups",
    "Prefill start execute_model",
    "Prefill done execute_model",
    "Start to send output in prefill stage",
    "Finish prefill pickle and start response",
)


@dataclass
class Books:
    """What a contestant says of its own spans."""

    made: int
    """Spans that should arrive."""
    lost: int | None = None
    """How many of them it says are lost, if it counts."""


class Contestant:
    """Something that records spans."""

    def __init__(self) -> None:
        self.requests = request_ids(0, BURST)

    def prepare(self, burst: int) -> None:
        """Makes ready what a caller would have at hand; not measured."""

    def record(self) -> None:
        """Makes `BURST` records."""
        raise NotImplementedError

    def flush(self) -> None:
        """Returns when everything recorded is exported or given up."""

    def books(self, records: int) -> Books:
        """To be asked after a flush, when so many were recorded."""
        return Books(made=records)


def request_ids(first: int, count: int) -> list[str]:
    """Request ids as vLLM makes them."""
    numbers = range(first, first + count)
    return [f"chatcmpl-38a4f1c0-5b1e-4c52-9c0d-{n:012x}" for n in numbers]


class Attributes(Contestant):
    """The attributes alone: what no recorder can save."""

    def record(self) -> None:
        for request in self.requests:
            _ = {
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": "deepseek-r1",
                "gen_ai.request.id": request,
                "gen_ai.usage.input_tokens": 1024,
                "gen_ai.usage.output_tokens": 128,
                "gen_ai.request.temperature": 0.7,
            }

    def books(self, records: int) -> Books:
        return Books(made=0)


def record_blocks(span: Callable[..., Any], requests: list[str]) -> None:
    """Spans around a block."""
    for request in requests:
        with span(
            NAME,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": "deepseek-r1",
                "gen_ai.request.id": request,
                "gen_ai.usage.input_tokens": 1024,
                "gen_ai.usage.output_tokens": 128,
                "gen_ai.request.temperature": 0.7,
            },
        ):
            pass


class Omnitrace(Contestant):
    """omnitrace's life cycle and books."""

    def __init__(self) -> None:
        super().__init__()
        self.omnitrace = importlib.import_module("omnitrace")

    def flush(self) -> None:
        self.omnitrace.flush(60)

    def books(self, records: int) -> Books:
        stats = self.omnitrace.stats()
        lost = sum(stats["dropped"].values()) + stats["events_lost"]
        return Books(made=stats["created"] + stats["events_lost"], lost=lost)


class OmnitraceSpans(Omnitrace):
    """`omnitrace.span`."""

    def record(self) -> None:
        record_blocks(self.omnitrace.span, self.requests)


class OmnitraceActions(Omnitrace):
    """`omnitrace.action`."""

    def prepare(self, burst: int) -> None:
        count = BURST // len(ACTIONS)
        self.requests = request_ids(burst * count, count)

    def record(self) -> None:
        action = self.omnitrace.action
        for request in self.requests:
            for name in ACTIONS:
                action(name, request)


class OpenTelemetry(Contestant):
    """A tracer of opentelemetry-python: `start_span` and `end`, its cheapest way."""

    def __init__(self, tracer: Any, provider: Any = None) -> None:
        super().__init__()
        self.tracer = tracer
        self.provider = provider

    def record(self) -> None:
        start_span = self.tracer.start_span
        for request in self.requests:
            span = start_span(
                NAME,
                attributes={
                    "gen_ai.operation.name": "chat",
                    "gen_ai.request.model": "deepseek-r1",
                    "gen_ai.request.id": request,
                    "gen_ai.usage.input_tokens": 1024,
                    "gen_ai.usage.output_tokens": 128,
                    "gen_ai.request.temperature": 0.7,
                },
            )
            span.end()

    def flush(self) -> None:
        if self.provider:
            self.provider.force_flush(600_000)


class OpenTelemetryBlocks(OpenTelemetry):
    """The same tracer's `start_as_current_span`, which is what `omnitrace.span` does."""

    def record(self) -> None:
        record_blocks(self.tracer.start_as_current_span, self.requests)


class OmnitraceOpenTelemetry(Omnitrace):
    """`start_span` and `end` of OpenTelemetry's API on omnitrace's TracerProvider."""

    peer: type[OpenTelemetry] = OpenTelemetry

    def __init__(self) -> None:
        super().__init__()
        face = importlib.import_module("omnitrace.opentelemetry")
        self.contestant = self.peer(face.TracerProvider().get_tracer("bench"))

    def record(self) -> None:
        self.contestant.record()


class OmnitraceOpenTelemetryBlocks(OmnitraceOpenTelemetry):
    """Its `start_as_current_span`."""

    peer = OpenTelemetryBlocks


class Logfire(Contestant):
    """`logfire.span`, which takes attributes as keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.logfire = importlib.import_module("logfire")
        self.logfire.configure(send_to_logfire=False, console=False)

    def record(self) -> None:
        span = self.logfire.span
        for request in self.requests:
            with span(
                NAME,
                operation="chat",
                model="deepseek-r1",
                request=request,
                input_tokens=1024,
                output_tokens=128,
                temperature=0.7,
            ):
                pass

    def flush(self) -> None:
        self.logfire.force_flush(600_000)


def opentelemetry_api(contestant: type[OpenTelemetry]) -> Contestant:
    """The API alone, as in a program that nobody has set up."""
    trace = importlib.import_module("opentelemetry.trace")
    return contestant(trace.get_tracer("bench"))


def opentelemetry_sdk(protocol: str, contestant: type[OpenTelemetry]) -> Contestant:
    """The SDK with a batch processor; the environment says the rest."""
    sdk = importlib.import_module("opentelemetry.sdk.trace")
    export = importlib.import_module("opentelemetry.sdk.trace.export")
    otlp = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{protocol}.trace_exporter")
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    return contestant(provider.get_tracer("bench"), provider)


@dataclass
class Entry:
    """A line of the table."""

    start: Callable[[], Contestant]
    environment: dict[str, str] = field(default_factory=dict)
    exports: bool = True
    beside: str = "omnitrace.span"
    """The line that the ratios are to: ours that is used in the same way."""


START_AND_END = "omnitrace.opentelemetry"
OFF = {"OTEL_SDK_DISABLED": "true"}
SAMPLED_OUT = {"OTEL_TRACES_SAMPLER": "always_off"}

# In the order of the table.
CONTESTANTS = {
    "omnitrace.span": Entry(OmnitraceSpans),
    "omnitrace.action": Entry(OmnitraceActions),
    START_AND_END: Entry(OmnitraceOpenTelemetry),
    "omnitrace.opentelemetry, block": Entry(OmnitraceOpenTelemetryBlocks),
    "omnitrace.opentelemetry, sampled out": Entry(
        OmnitraceOpenTelemetry, SAMPLED_OUT, exports=False
    ),
    "omnitrace.span, off": Entry(OmnitraceSpans, OFF, exports=False),
    "omnitrace.action, off": Entry(OmnitraceActions, OFF, exports=False),
    "a dict of the attributes alone": Entry(Attributes, exports=False),
    "OpenTelemetry API, no-op": Entry(
        lambda: opentelemetry_api(OpenTelemetry), exports=False, beside=START_AND_END
    ),
    "OpenTelemetry API, no-op, block": Entry(
        lambda: opentelemetry_api(OpenTelemetryBlocks), exports=False
    ),
    "OpenTelemetry SDK, sampled out": Entry(
        lambda: opentelemetry_sdk("http", OpenTelemetry),
        SAMPLED_OUT,
        exports=False,
        beside="omnitrace.opentelemetry, sampled out",
    ),
    "OpenTelemetry SDK, HTTP": Entry(
        lambda: opentelemetry_sdk("http", OpenTelemetry), beside=START_AND_END
    ),
    "OpenTelemetry SDK, HTTP, block": Entry(lambda: opentelemetry_sdk("http", OpenTelemetryBlocks)),
    "OpenTelemetry SDK, gRPC": Entry(
        lambda: opentelemetry_sdk("grpc", OpenTelemetry), beside=START_AND_END
    ),
    "logfire": Entry(Logfire),
}
