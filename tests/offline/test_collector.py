"""`convert --format otlp` and `otlp-protobuf`, posted to the OpenTelemetry Collector as they
are."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from converted import Recorded, convert, spans
from third_party import OTELCOL, Collector

NOTHING_REFUSED = {
    "application/json": b'{"partialSuccess":{}}',
    "application/x-protobuf": b"\n\0",
}
"""The Collector's answer: an empty `partial_success`."""


class Keeper(Collector):
    """A Collector that keeps in a file what it takes."""

    def __init__(self, folder: Path) -> None:
        if not OTELCOL.exists():
            pytest.skip("no OpenTelemetry Collector: install Go, then make collector")
        super().__init__(folder, "")
        self.taken = folder / "taken.jsonl"

    def exporter(self) -> tuple[str, dict[str, Any]]:
        return "file", {"path": str(self.taken)}

    def post(self, content_type: str, body: bytes) -> None:
        """Sends a request, of which the Collector must refuse nothing."""
        request = urllib.request.Request(
            f"{self.endpoint()}/v1/traces", body, {"Content-Type": content_type}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.read() == NOTHING_REFUSED[content_type]


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    collector = Keeper(tmp_path)
    try:
        collector.start()
        yield collector
    finally:
        collector.stop()


def bare(value: Any) -> Any:
    """Without the fields that say nothing, which the Collector leaves out."""
    if isinstance(value, dict):
        fields = {key: bare(each) for key, each in value.items()}
        return {k: v for k, v in fields.items() if v not in (None, "", 0, "0", [], {})}
    return [bare(each) for each in value] if isinstance(value, list) else value


def by_id(recorded: list[Recorded]) -> list[tuple[Any, Any]]:
    everything = [(bare(each.span), bare(each.resource)) for each in recorded]
    return sorted(everything, key=lambda each: str(each[0]["spanId"]))


def test_the_collector_takes_every_line_of_otlp(logs: Path, tmp_path: Path, keeper: Keeper) -> None:
    file = convert(logs, tmp_path / "file", "--format", "otlp")
    lines = file.read_bytes().splitlines()
    assert len(lines) == 12
    for line in lines:
        keeper.post("application/json", line)
    keeper.stop()
    taken = spans(keeper.taken)
    assert len(taken) == 12 * 35
    assert by_id(taken) == by_id(spans(file))


def test_the_collector_takes_the_whole_file_of_otlp_protobuf(
    logs: Path, tmp_path: Path, keeper: Keeper
) -> None:
    file = convert(logs, tmp_path / "file", "--format", "otlp-protobuf")
    keeper.post("application/x-protobuf", file.read_bytes())
    keeper.stop()
    taken = spans(keeper.taken)
    assert len(taken) == 12 * 35
    expected = spans(convert(logs, tmp_path / "lines", "--format", "otlp"))
    assert by_id(taken) == by_id(expected)


def test_the_file_that_the_collector_writes_can_be_converted_again(
    logs: Path, tmp_path: Path, keeper: Keeper
) -> None:
    file = convert(logs, tmp_path / "file", "--format", "otlp")
    for line in file.read_bytes().splitlines():
        keeper.post("application/json", line)
    keeper.stop()
    again = convert(keeper.taken, tmp_path / "again", "--format", "otlp")
    assert by_id(spans(again)) == by_id(spans(file))


def test_numbers_that_json_does_not_have_are_read_from_the_collectors_file(
    tmp_path: Path, keeper: Keeper
) -> None:
    data = TracesData()
    scope = data.resource_spans.add().scope_spans.add()
    for number, value in enumerate([0.5, float("nan"), float("inf")], 1):
        span = scope.spans.add(
            trace_id=bytes([number] * 16),
            span_id=bytes([number] * 8),
            start_time_unix_nano=1_795_334_645_000_000_000,
            end_time_unix_nano=1_795_334_645_000_000_001,
        )
        span.attributes.add(key="v").value.double_value = value
    keeper.post("application/x-protobuf", data.SerializeToString())
    keeper.stop()
    again = spans(convert(keeper.taken, tmp_path / "again", "--format", "otlp"))
    assert [each.span["attributes"][0]["value"] for each in again] == [
        {"doubleValue": 0.5},
        {"stringValue": "NaN"},
        {"stringValue": "Infinity"},
    ]
