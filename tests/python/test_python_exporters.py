"""`OTEL_TRACES_EXPORTER=console`, and a Collector that is none."""

from __future__ import annotations

import fcntl
import re

import pytest

from program import NODE, Program
from sink import Sink

SPANS = """
init(schedule_delay=60)
action("of no phase and no span", "r")
with span("outer", attributes={"n": 1}) as outer:
    with span("inner"):
        pass
flush()
books = stats()
os.write(2, json.dumps([books["created"], books["exported"], books["logged"]]).encode())
"""


@pytest.mark.parametrize("exporter", ["console", "otlp,console", "console,otlp"])
def test_the_console_gets_one_line_for_each_span(
    program: Program, sink: Sink, exporter: str
) -> None:
    result = program.run(SPANS, OTEL_TRACES_EXPORTER=exporter, OTEL_SERVICE_NAME="mine")
    inner, outer = result.said
    assert result.stderr == "[2, 2, 0]" and result.lines == []
    assert list(outer) == [
        "time", "service", "name", "duration_ms", "kind", "trace_id", "span_id", "attributes",
    ]  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", outer["time"])
    assert (outer["name"], outer["service"], outer["attributes"]) == ("outer", "mine", {"n": 1})
    assert (inner["name"], inner["parent_span_id"]) == ("inner", outer["span_id"])
    sent = {(span.name, span.span_id) for span in sink.spans}
    expected = {(line["name"], line["span_id"]) for line in result.said}
    assert sent == (expected if "otlp" in exporter else set())


def test_each_span_is_on_the_console_once_however_often_it_is_sent(
    program: Program, sink: Sink
) -> None:
    sink.script = ["503", "503", "ok"]
    result = program.run(
        """
        record("one")
        while stats()["exported"] == 0:
            time.sleep(0.01)
        """,
        OTEL_TRACES_EXPORTER="otlp,console",
        OTEL_BSP_SCHEDULE_DELAY="10",
    )
    assert [line["name"] for line in result.said] == ["one"]
    assert [span.name for span in sink.spans] == ["one"]


def test_what_standard_output_does_not_take_is_in_the_legacy_log(
    program: Program, sink: Sink
) -> None:
    full = 'os.dup2(os.open("/dev/full", os.O_WRONLY), 1)'
    result = program.run(full + SPANS, OTEL_TRACES_EXPORTER="console")
    assert result.stderr.endswith("[2, 0, 2]")
    assert len(result.lines) == 3  # the action too
    assert result.messages == [
        (
            "ERROR",
            "spans cannot be written to standard output: No space left on device (os error 28); "
            'take "console" out of OTEL_TRACES_EXPORTER',
        )
    ]


def test_a_fork_while_the_console_is_written_to_leaves_both_able_to_write(
    program: Program, sink: Sink
) -> None:
    running = program.start(
        """
        sys.stdin.readline()

        def child():
            for n in range(200):
                record("child")
            flush()

        children = []
        for n in range(10):
            for m in range(50):
                record("parent")
            children.append(fork(child))
        join(*children)
        flush()
        """,
        OTEL_TRACES_EXPORTER="console",
        OTEL_BSP_SCHEDULE_DELAY="0",
    )
    # A pipe of one page: whoever writes more at once is interrupted by the others.
    assert running.process.stdout
    fcntl.fcntl(running.process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    running.tell()
    names = [line["name"] for line in running.end().said]
    assert (names.count("parent"), names.count("child")) == (500, 2000)


def test_the_console_does_not_stand_in_for_a_collector_that_cannot_be_reached(
    program: Program, sink: Sink
) -> None:
    for endpoint in ("nonsense", "http://127.0.0.1:9"):
        result = program.run(
            """
            record("one")
            flush()
            os.write(2, b"[%d, %d]" % (stats()["exported"], stats()["logged"]))
            """,
            OTEL_TRACES_EXPORTER="otlp,console",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        )
        assert [line["name"] for line in result.said] == ["one"]
        assert result.stderr.endswith("[0, 1]") and len(result.messages) == 1
    assert len(result.lines) == 2


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json"])
def test_a_web_page_in_a_collectors_place_is_named_and_spans_are_logged(
    program: Program, sink: Sink, protocol: str
) -> None:
    sink.script = ["page"]
    result = program.run(
        """
        record("one")
        say([flush(), stats()["exported"], stats()["logged"]])
        """,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
    )
    assert result.said == [[True, 0, 1]]
    assert len(result.lines) == 1 and f"Role:serve_{NODE} " in result.lines[0]
    [(level, message)] = result.messages
    assert level == "WARNING"
    assert re.fullmatch(
        rf"spans do not reach the Collector \({re.escape(sink.url)}/v1/traces is no OTLP endpoint: "
        r"it answered HTTP status 200, text/html, from BaseHTTP/\S+ Python/\S+, that begins with "
        r'"<!doctype html><title>Grafana</title>"\): they go to the legacy log in .*',
        message,
    )
