"""Span processors: what a program runs of its own for each span."""

from __future__ import annotations

import time
from typing import Any

from opentelemetry.context import Context


class Processors:
    """Those of a provider, called one after the other."""

    def __init__(self) -> None:
        # Replaced, not changed: spans start and end on other threads.
        self._all: tuple[Any, ...] = ()

    def add_span_processor(self, span_processor: Any) -> None:
        self._all = (*self._all, span_processor)

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        for processor in self._all:
            processor.on_start(span, parent_context=parent_context)

    def _on_ending(self, span: Any) -> None:
        for processor in self._all:
            if hasattr(processor, "_on_ending"):
                processor._on_ending(span)

    def on_end(self, span: Any) -> None:
        for processor in self._all:
            processor.on_end(span)

    def shutdown(self) -> None:
        for processor in self._all:
            processor.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        deadline = time.monotonic() + timeout_millis / 1000
        flushed = True
        for processor in self._all:
            left = max(deadline - time.monotonic(), 0.0)
            if processor.force_flush(int(left * 1000)) is False:
                flushed = False
        return flushed


def exports_by_itself(span_processor: Any) -> bool:
    """Whether it is one of the SDK's processors in front of an OTLP exporter."""
    exporter = getattr(span_processor, "span_exporter", None)
    return type(exporter).__module__.startswith("opentelemetry.exporter.otlp.")
