"""Whatever the Collector does, no span is lost, none comes twice, and nobody waits long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from program import Program, command
from sink import Sink, Span, content

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"

# Phases, incomplete ones, events and free spans, with all that they can say.
MIXED = f"""
def mixed():
    extract({{"traceparent": "00-{TRACE}-{CALLER}-01"}}, "r")
    action("PD api server get request", "r", {{"model": "m", "n": 1, "x": 0.1, "yes": True}})
    action("Start process request in prefill engine", "r")
    action("KV cache found", "r", {{"blocks": 3, "text": 'a "b"; Role:x_1.2.3.4 {{'}})
    action("Prefill add waiting queue", "r", {{"waiting": 2}})
    with span("work", "r", {{"of": "the request", "odd \\n": "ü; <<<Action: "}}):
        with span("deeper"):
            pass
    action("Finish prefill pickle and start response", "r")
    action("PD api server get request", "breaks off")
    try:
        with span("fails; or <<<Action: does it?"):
            raise ValueError("why\\nnot")
    except ValueError:
        pass
"""
# Its spans: those that are finished at once, and one more at shutdown.
FLUSHED, BROKEN = 6, 2
WAYS = ["503", "503 retry-after 1", "429", "502", "504", "302", "400", "404", "reset", "silent"]


def books(**counts: object) -> dict[str, object]:
    kept = ["created", "exported", "in_flight", "logged", "events_lost", "open_requests"]
    return {**dict.fromkeys(kept, 0), "dropped": {}, **counts}


def kept(said: dict[str, Any]) -> dict[str, Any]:
    return {key: said[key] for key in books()}


def replay(log: Path, archive: Sink) -> list[Span]:
    command("replay", log, "--endpoint", archive.url)
    return archive.spans


@pytest.mark.parametrize("way", WAYS)
def test_what_the_collector_does_not_take_is_in_the_log_whole(
    program: Program, sink: Sink, archive: Sink, way: str
) -> None:
    sink.script = [way]
    result = program.run(
        """
        limit = float(sys.argv[1])
        mixed()
        say(flush(limit))
        say(stats())
        shutdown(limit)
        say(stats())
        """,
        "0.5" if way == "silent" else "30",
        before=MIXED,
        ROLE="prefill",
    )
    safe, flushed, ended = result.said
    assert safe is True
    assert kept(flushed) == books(created=FLUSHED, logged=FLUSHED, open_requests=2)
    assert kept(ended) == books(created=FLUSHED + BROKEN, logged=FLUSHED + BROKEN)
    # The Collector has seen every span and taken none; the log gives back the same.
    assert len(sink.refused) == FLUSHED + BROKEN and sink.spans == []
    assert content(replay(result.directory, archive)) == content(sink.refused)
    # It is said once, with the reason and where the spans are.
    [(level, message)] = result.messages
    assert level == "WARNING" and str(result.directory) in message
    reason = {"reset": "Connection reset", "silent": "no answer"}.get(way, f"status {way[:3]}")
    assert reason in message
    assert reason in ended["last_error"]


def test_a_closed_port_is_no_loss_either(program: Program, sink: Sink, archive: Sink) -> None:
    sink.stop()
    result = program.run("mixed()\nflush(30)\nsay(stats())", before=MIXED, ROLE="prefill")
    assert kept(result.said[0]) == books(created=FLUSHED, logged=FLUSHED, open_requests=2)
    [(_, message)] = result.messages
    assert "Connection refused" in message and str(result.directory) in message
    restored = {(s.name, s.trace_id, s.parent_id) for s in replay(result.directory, archive)}
    assert len(archive.spans) == FLUSHED + BROKEN

    # The ids of a request's spans follow from the request: a second run has the same.
    sink.start()
    program.run("mixed()", before=MIXED, ROLE="prefill")
    free = {"work", "deeper", "fails; or <<<Action: does it?"}
    ids = {s.name: s.span_id for s in sink.spans if s.trace_id == TRACE and s.name not in free}
    again = {s.name: s.span_id for s in archive.spans if s.trace_id == TRACE}
    assert len(ids) == 4 and ids.items() <= again.items()
    prefill = ids["Prefill"]
    assert {(n, t, p) for n, t, p in restored if t == TRACE} == {
        ("Prefill", TRACE, CALLER),
        ("Add to running for prefill", TRACE, prefill),
        ("Start process request in prefill engine", TRACE, ids["Add to running for prefill"]),
        ("Prefill add waiting queue", TRACE, ids["Add to running for prefill"]),
        ("work", TRACE, prefill),
        ("deeper", TRACE, again["work"]),
    }


def test_the_converter_shows_the_same_spans_as_the_collector_saw(
    program: Program, sink: Sink, tmp_path: Path
) -> None:
    sink.script = ["503"]
    result = program.run("mixed()", before=MIXED, ROLE="prefill")
    output = tmp_path / "trace.json"
    command("convert", result.directory, output, "--quiet")
    seen = {
        (
            s.name,
            s.trace_id,
            s.span_id,
            s.parent_id,
            s.start // 1000,
            s.end // 1000 - s.start // 1000,
        )
        for s in sink.refused
    }
    converted = [
        (
            span["operationName"],
            span["traceID"],
            span["spanID"],
            next((r["spanID"] for r in span["references"] if r["refType"] == "CHILD_OF"), ""),
            span["startTime"],
            span["duration"],
        )
        for trace in json.loads(output.read_text())["data"]
        for span in trace["spans"]
    ]
    assert len(converted) == FLUSHED + BROKEN and set(converted) == seen


@pytest.mark.parametrize("way", ["503", "503 retry-after 1", "429", "reset"])
def test_a_short_outage_is_waited_out_in_memory(program: Program, sink: Sink, way: str) -> None:
    sink.script = [way, way, "slow", "ok"]
    running = program.start(
        """
        mixed()
        sys.stdin.readline()
        """,
        before=MIXED,
        ROLE="prefill",
        OTEL_BSP_SCHEDULE_DELAY="10",
    )
    sink.wait(lambda sink: len(sink.spans) >= FLUSHED)
    running.tell()
    result = running.end()
    assert len(sink.spans) == FLUSHED + BROKEN == len({s.span_id for s in sink.spans})
    assert result.lines == []
    assert [level for level, _ in result.messages] == ["WARNING", "WARNING"]
    assert "cannot be reached" in result.messages[0][1]
    assert "takes spans again" in result.messages[1][1]


@pytest.mark.parametrize("way", ["closed", "silent", "503 retry-after 1", "reset"])
def test_spans_that_waited_too_long_go_to_the_log_and_later_ones_come_live(
    program: Program, sink: Sink, archive: Sink, way: str
) -> None:
    running = program.start(
        """
        def recorded(name, done):
            record(name)
            while not done(stats()):
                time.sleep(0.01)
            say(name)

        init(schedule_delay=0.01, export_timeout=0.3)
        recorded("before", lambda books: books["exported"] == 1)
        sys.stdin.readline()
        recorded("during", lambda books: books["logged"] == 1)
        sys.stdin.readline()
        recorded("after", lambda books: books["exported"] == 2)
        say(stats())
        """,
        # Only what is silent takes as long.
        OTEL_EXPORTER_OTLP_TIMEOUT="300" if way == "silent" else None,
    )
    assert running.hear() == "before"
    if way == "closed":
        sink.stop()
    sink.script = [way]
    running.tell()
    assert running.hear() == "during"
    sink.script = ["ok"]
    if way == "closed":
        sink.start()
    running.tell()
    result = running.end()
    name, ended = result.said
    assert name == "after"
    assert kept(ended) == books(created=3, exported=2, logged=1)
    assert [s.name for s in sink.spans] == ["before", "after"]
    assert [s.name for s in replay(result.directory, archive)] == ["during"]
    assert [level for level, _ in result.messages] == ["WARNING", "WARNING"]
    assert "takes spans again" in result.messages[1][1]


@pytest.mark.parametrize("mode", ["fallback", "always"])
def test_through_many_outages_live_and_replayed_make_every_span_once(
    program: Program, sink: Sink, archive: Sink, mode: str
) -> None:
    words = ["ok", "503", "ok", "reset", "400", "ok", "429 retry-after 1", "ok"]
    sink.script = words * 20 + ["ok"]
    result = program.run(
        """
        def load(thread):
            for n in range(40):
                with span(f"{thread}.{n}"):
                    action("PD api server get request", f"r{thread}.{n}")
                    action("Start process request in prefill engine", f"r{thread}.{n}")
                    action("Finish prefill pickle and start response", f"r{thread}.{n}")
                if n % 4 == thread:
                    flush(30)

        threads = [threading.Thread(target=load, args=(n,)) for n in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        shutdown()
        say(stats())
        """,
        ROLE="prefill",
        OMNITRACE_LEGACY_LOG=mode,
        OTEL_BSP_SCHEDULE_DELAY="1",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="16",
    )
    [ended] = result.said
    exported, logged = len(sink.spans), ended["logged"]
    assert kept(ended) == books(created=640, exported=exported, logged=logged)
    assert exported + logged == 640 and exported > 0 and logged > 0
    replay(result.directory, archive)
    assert len(archive.spans) == logged
    ids = [s.span_id for s in sink.spans + archive.spans]
    assert len(ids) == 640 == len(set(ids))
    names = sorted(s.name for s in sink.spans + archive.spans)
    each = ["Add to running for prefill", "Prefill", "Start process request in prefill engine"]
    free = [f"{thread}.{n}" for thread in range(4) for n in range(40)]
    assert names == sorted(each * 160 + free)


def test_with_neither_collector_nor_log_what_is_lost_is_counted_and_said(
    program: Program, sink: Sink
) -> None:
    sink.script = ["503"]
    result = program.run(
        "mixed()\nsay(flush(30))\nsay(stats())",
        before=MIXED,
        ROLE="prefill",
        OMNITRACE_LEGACY_LOG="off",
    )
    safe, flushed = result.said
    assert safe is False
    lost = books(created=FLUSHED, dropped={"not_delivered": FLUSHED}, open_requests=2)
    assert kept(flushed) == lost
    assert not result.directory.exists()
    [(level, message)] = result.messages
    assert level == "WARNING" and "503" in message and "dropped" in message


def test_events_without_a_span_are_in_the_log_when_nothing_else_follows(
    program: Program, sink: Sink
) -> None:
    sink.script = ["503"]
    result = program.run(
        """
        record("first")
        flush(30)
        action("Prefill free kv blocks", "r", {"blocks": 3})
        flush(30)
        say(stats())
        """,
        ROLE="prefill",
    )
    actions = [line.partition("<<<Action: ")[2].partition(";")[0] for line in result.lines]
    assert actions == ["first", "Prefill free kv blocks"]
    assert kept(result.said[0]) == books(created=1, logged=1, open_requests=1)
