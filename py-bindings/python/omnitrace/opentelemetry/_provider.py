"""`TracerProvider`."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context

from .. import __version__, flush
from .._omnitrace import (
    _OpenTelemetryProvider,
    _OpenTelemetrySpan,
    _OpenTelemetryTracer,
)
from . import _resource
from ._processor import Processors, exports_by_itself
from ._sampler import standard_sampler
from ._view import Resource, finished

logger = logging.getLogger("omnitrace")

# The limits of the SDK's SpanLimits, in the order of the native half.
_LIMITS = (
    "max_span_attributes",
    "max_span_attribute_length",
    "max_events",
    "max_links",
    "max_event_attributes",
    "max_link_attributes",
    "max_attribute_length",
)


class TracerProvider(trace.TracerProvider):
    """Makes tracers whose spans omnitrace records, delivers and accounts for.

    The arguments are those of ``opentelemetry.sdk.trace.TracerProvider``:

    sampler: an object with ``should_sample``, or the name of a standard sampler as in
        OTEL_TRACES_SAMPLER (``always_on``, ``parentbased_always_off``, …). Default:
        what the environment says. The SDK's standard samplers cost what ours cost;
        any other is asked in Python for each span.
    resource: anything with ``attributes``. They describe the process, of which there
        is one: set it up before anything is recorded.
    shutdown_on_exit: shut span processors down when the program ends. What omnitrace
        itself has recorded is delivered then in any case.
    active_span_processor: one span processor in place of those that
        `add_span_processor` adds.
    id_generator: an object with ``generate_trace_id`` and ``generate_span_id``.
    span_limits: an object with the SDK's ``SpanLimits``' attributes. Default: what
        the environment says.

    Spans are exported without a span processor. One that is added sees every span,
    at the price of Python code for each.
    """

    def __init__(
        self,
        sampler: str | Any | None = None,
        resource: Any = None,
        shutdown_on_exit: bool = True,
        active_span_processor: Any = None,
        id_generator: Any = None,
        span_limits: Any = None,
    ) -> None:
        name, ratio = standard_sampler(sampler)
        limits = None
        if span_limits is not None:
            limits = [getattr(span_limits, limit) for limit in _LIMITS]
        self._native = _OpenTelemetryProvider(self, name, ratio, limits, id_generator)
        self._sampler = sampler
        self._id_generator = id_generator
        self._resource = resource
        if resource is not None:
            _resource.describe_process(self, resource)
        self._tracers: dict[tuple[Any, ...], _OpenTelemetryTracer] = {}
        self._lock = threading.Lock()
        self._active_span_processor = active_span_processor or Processors()
        if active_span_processor is not None:
            self._native.show_spans()
        if shutdown_on_exit:
            atexit.register(self._at_exit)

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> trace.Tracer:
        """The tracer of an instrumentation scope; equal scopes have the same one."""
        if not instrumenting_module_name:
            logger.warning("get_tracer without a name: the scope of its spans has none")
        scope = (
            instrumenting_module_name or "",
            instrumenting_library_version or "",
            schema_url or "",
        )
        with self._lock:
            # Attributes may hold what has no hash, and few scopes have any.
            key = (*scope, repr(sorted(attributes.items())) if attributes else None)
            tracer = self._tracers.get(key)
            if tracer is None:
                tracer = _OpenTelemetryTracer(self._native, *scope, attributes)
                self._tracers[key] = tracer
            return tracer

    def add_span_processor(self, span_processor: Any) -> None:
        """Shows every span to a processor: any object with the methods of the SDK's
        ``SpanProcessor``. omnitrace goes on exporting the spans itself."""
        if exports_by_itself(span_processor):
            logger.warning(
                "%s exports by OTLP what omnitrace exports already: every span is sent "
                "twice; leave add_span_processor out",
                type(span_processor).__name__,
            )
        self._active_span_processor.add_span_processor(span_processor)
        self._native.show_spans()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Waits until everything that has ended is delivered, by span processors and
        by omnitrace. False: the time was not enough, or something had to be dropped."""
        deadline = time.monotonic() + timeout_millis / 1000
        processed = self._active_span_processor.force_flush(timeout_millis) is not False
        left = max(deadline - time.monotonic(), 0.0)
        return flush(left) and processed

    def shutdown(self) -> None:
        """Delivers what there is and records no more spans of this provider's
        tracers. omnitrace itself goes on."""
        self._native.shut_down()
        _resource.forget(self)
        atexit.unregister(self._at_exit)
        self._active_span_processor.shutdown()
        flush()

    def _at_exit(self) -> None:
        # omnitrace delivers by itself, within its own time.
        self._active_span_processor.shutdown()

    @property
    def resource(self) -> Any:
        """What was given, else what omnitrace says of the process."""
        if self._resource is None:
            return Resource(_resource.of_process())
        return self._resource

    @property
    def sampler(self) -> Any:
        """What was given, else the name of the one that the process is set up with."""
        return self._sampler or self._native.sampler_name()

    @property
    def id_generator(self) -> Any:
        """What was given; None where omnitrace makes the ids."""
        return self._id_generator

    def _own_tracer(self) -> _OpenTelemetryTracer:
        """Of the spans that `omnitrace.span` blocks show to OpenTelemetry."""
        return _OpenTelemetryTracer(self._native, "omnitrace", __version__, "", None)

    def _on_start(self, span: _OpenTelemetrySpan, context: Context | None) -> None:
        self._active_span_processor.on_start(span, parent_context=context)

    def _on_end(self, span: _OpenTelemetrySpan) -> None:
        processor = self._active_span_processor
        # Younger than the interface, and not part of it yet.
        if hasattr(processor, "_on_ending"):
            processor._on_ending(span)
        processor.on_end(finished(span))
