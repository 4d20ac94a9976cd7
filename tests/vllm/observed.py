"""A real Collector that keeps the metrics in which our processes give their books."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stack import StackError
from third_party import Collector

METRICS = """\
exporters:
  file:
    path: {metrics}
service:
  pipelines:
    metrics: {{ receivers: [otlp], exporters: [file] }}
"""
"""Added to what the Collector does with spans."""


@dataclass
class Books:
    """One process's last word on its spans."""

    service: str
    created: int = 0
    exported: int = 0
    logged: int = 0
    dropped: int = 0
    in_flight: int = 0

    @property
    def balance(self) -> int:
        """0: every span is accounted for."""
        return self.created - self.exported - self.logged - self.dropped - self.in_flight


class ObservedCollector(Collector):
    """Passes spans on, and keeps metrics in a file."""

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def _arguments(self) -> list[str]:
        if not self.is_synchronous:
            raise StackError("the OpenTelemetry Collector is missing: make collector, with Go")
        config = self.folder / "metrics.yaml"
        config.write_text(METRICS.format(metrics=self.metrics))
        return [*super()._arguments(), "--config", str(config)]

    def books(self) -> dict[int, Books]:
        """Each process's, by its number. The Collector ends: it writes a line bit by bit."""
        self.stop()
        found: dict[int, Books] = {}
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        for line in lines:
            for resource in json.loads(line)["resourceMetrics"]:
                of = attributes(resource["resource"])
                books = Books(of["service.name"])
                for scope in resource["scopeMetrics"]:
                    for metric in scope["metrics"]:
                        enter(books, metric)
                found[int(of["process.pid"])] = books
        return found


def enter(books: Books, metric: dict[str, Any]) -> None:
    """Enters one metric into a process's books."""
    for point in (metric["sum"] if "sum" in metric else metric["gauge"])["dataPoints"]:
        of, value = attributes(point), int(point["asInt"])
        why = of.get("error.type")
        match metric["name"]:
            case "otel.sdk.span.started" if of["otel.span.sampling_result"] != "DROP":
                books.created = value
            case "otel.sdk.exporter.span.exported" if why is None:
                books.exported = value
            case "otel.sdk.exporter.span.exported" if why == "legacy_log":
                books.logged = value
            case "otel.sdk.exporter.span.exported":
                books.dropped += value
            case "otel.sdk.processor.span.processed" if why is not None:
                books.dropped += value
            case "otel.sdk.processor.span.queue.size" | "otel.sdk.exporter.span.inflight":
                books.in_flight += value


def attributes(of: dict[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in of.get("attributes", ())}
