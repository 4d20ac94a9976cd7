"""A Jaeger trace as a tree of lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

Span = dict[str, Any]
Trace = dict[str, Any]


def parent_of(span: Span) -> str | None:
    """Id of a span's parent."""
    for reference in span["references"]:
        if reference["refType"] == "CHILD_OF":
            return str(reference["spanID"])
    return None


def tag(span: Span, key: str) -> Any:
    """Value of a span's tag; None if it has no such tag."""
    return next((each["value"] for each in span["tags"] if each["key"] == key), None)


def the(trace: Trace, name: str) -> Span:
    """Its only span of that name."""
    spans: list[Span] = trace["spans"]
    (span,) = [span for span in spans if span["operationName"] == name]
    return span


def events(span: Span) -> list[str]:
    """Names of a span's events, in their order."""
    found = sorted(span["logs"], key=lambda log: log["timestamp"])
    return [field["value"] for log in found for field in log["fields"] if field["key"] == "event"]


def service(trace: Trace, span: Span) -> str:
    """Name of the service that made a span."""
    return str(trace["processes"][span["processID"]]["serviceName"])


def walk(trace: Trace) -> list[tuple[int, Span]]:
    """Spans with their depth, each parent before its children, by time."""
    known = {span["spanID"] for span in trace["spans"]}
    children: defaultdict[str | None, list[Span]] = defaultdict(list)
    for span in trace["spans"]:
        parent = parent_of(span)
        children[parent if parent in known else None].append(span)
    rows: list[tuple[int, Span]] = []

    def visit(parent: str | None, depth: int) -> None:
        order: Callable[[Span], Any] = lambda s: (  # noqa: E731
            s["startTime"],
            -s["duration"],
            s["operationName"],
        )
        for span in sorted(children[parent], key=order):
            rows.append((depth, span))
            visit(span["spanID"], depth + 1)

    visit(None, 0)
    return rows


def with_times(trace: Trace) -> str:
    """The tree with start and duration in milliseconds and a bar."""
    rows = walk(trace)
    begin = min(span["startTime"] for _, span in rows)
    whole = max(span["startTime"] + span["duration"] for _, span in rows) - begin or 1
    names = ["  " * depth + span["operationName"] for depth, span in rows]
    width = max(map(len, names))
    lines = [f"trace {trace['traceID']}", f"{'':{width}}  service       start ms  length ms"]
    for name, (_, span) in zip(names, rows, strict=False):
        start, length = span["startTime"] - begin, span["duration"]
        left, right = start * 40 // whole, (start + length) * 40 // whole
        bar = " " * left + "█" * max(right - left, 1)
        lines.append(
            f"{name:{width}}  {service(trace, span):12} {start / 1000:9.3f} {length / 1000:10.3f}  {bar}"
        )
    return "\n".join(lines)


def shape(trace: Trace) -> str:
    """The tree without times: name, service and kind."""
    lines = []
    for depth, span in walk(trace):
        kind = tag(span, "span.kind")
        kind = f" {str(kind).upper()}" if kind in ("server", "client") else ""
        lines.append(f"{'  ' * depth}{span['operationName']} [{service(trace, span)}{kind}]")
    return "\n".join(lines)
