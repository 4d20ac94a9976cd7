"""`convert --format jaeger` in the Jaeger UI: a file in its "Upload" tab."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from chromium import PATIENCE_MS
from converted import COMMAND, convert

RESULTS = """(items) => items.map((item) => [
    item.querySelector("a").pathname.split("/").pop(),
    item.querySelector(".TraceName").textContent,
    item.querySelector(".ant-tag").textContent,
])"""

ROWS = """(rows) => rows.map((row) => [
    row.closest("[data-item-key]").dataset.itemKey.replace("--bar", ""),
    row.querySelector(".span-svc-name").firstChild.textContent.trim(),
    row.querySelector(".endpoint-name").textContent,
    [...row.querySelectorAll("[data-ancestor-id]")].map((guide) => guide.dataset.ancestorId),
])"""


@pytest.fixture(scope="module")
def jaeger() -> Iterator[str]:
    """The address of a Jaeger UI, which knows no traces."""
    endpoints = ("--otlp-grpc-endpoint", "--otlp-http-endpoint", "--ui-endpoint")
    anywhere = [text for name in endpoints for text in (name, "127.0.0.1:0")]
    with subprocess.Popen(
        [COMMAND, "serve", *anywhere], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        ready = dict(server.stdout.readline().split() for _ in range(3))
        yield ready["jaeger-ui"]
        server.terminate()


def upload(page: Page, jaeger: str, file: Path) -> None:
    page.goto(f"{jaeger}/search")
    page.get_by_role("tab", name="Upload").click()
    page.set_input_files("input[type=file]", file)


def service(trace: dict[str, Any], span: dict[str, Any]) -> str:
    return str(trace["processes"][span["processID"]]["serviceName"])


def parent(span: dict[str, Any]) -> str | None:
    return next((str(each["spanID"]) for each in span["references"]), None)


def roots(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [span for span in trace["spans"] if parent(span) is None]


def listed(trace: dict[str, Any]) -> tuple[str, str, str]:
    """A trace among the results: id, name, number of spans."""
    (root,) = roots(trace)
    name = f"{service(trace, root)}: {root['operationName']}"
    return (trace["traceID"], name, f"{len(trace['spans'])} Spans")


def drawn(trace: dict[str, Any]) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """The spans of a trace: id, service, name, ancestors from the outermost inwards."""
    parents = {span["spanID"]: parent(span) for span in trace["spans"]}

    def ancestors(span_id: str) -> tuple[str, ...]:
        above = parents[span_id]
        return ("root",) if above is None else (*ancestors(above), above)

    return [
        (span["spanID"], service(trace, span), span["operationName"], ancestors(span["spanID"]))
        for span in trace["spans"]
    ]


@pytest.mark.parametrize("layout", ["tree", "legacy"])
def test_the_jaeger_ui_shows_every_trace_and_every_span_of_an_uploaded_file(
    logs: Path, tmp_path: Path, page: Page, jaeger: str, layout: str
) -> None:
    file = convert(logs, tmp_path / "traces.json", "--layout", layout)
    traces = json.loads(file.read_text())["data"]
    assert [len(roots(trace)) for trace in traces] == [1] * (4 + 12)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))

    upload(page, jaeger, file)
    results = page.locator(".ResultItem")
    expect(results).to_have_count(len(traces), timeout=PATIENCE_MS)
    shown = Counter(tuple(each) for each in results.evaluate_all(RESULTS))
    assert shown == Counter(listed(trace) for trace in traces)

    # One with statistics and one of a request.
    for trace in (traces[0], traces[-1]):
        upload(page, jaeger, file)
        page.locator(f"a.ResultItemTitle--item[href$='{trace['traceID']}']").click()
        rows = page.locator(".span-row")
        expect(rows).to_have_count(len(trace["spans"]), timeout=PATIENCE_MS)
        seen = [(*row[:3], tuple(row[3])) for row in rows.evaluate_all(ROWS)]
        assert sorted(seen) == sorted(drawn(trace))
    assert complaints == []
