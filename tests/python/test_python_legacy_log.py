"""The legacy log: the old lines, one for each action, and from them the same spans again."""

from __future__ import annotations

import datetime
import json
import re
import stat

import pytest

from program import NODE, Program, Result, command
from sink import Sink, content

# What this version writes.
LINE = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(?P<ms>\d{3}) - "
    r"<<<Action: (?P<action>[^;]+); Timestamp:(?P<time>\d+\.\d{9}); "
    r"RequestID:(?P<id>[^;]*); Role:(?P<role>[^_ ]+)_(?P<node>\S+)(?: (?P<more>\{.*\}))?"
)
EXPORTED = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - <<<Exported: (?P<ids>[0-9a-f]{16}(?:,[0-9a-f]{16})*)"
)
# What the old converter looks for: the shortest name, a number, a lower-case id, a role with an
# IPv4 address.
OLD = re.compile(
    r"<<<Action: (.*?); Timestamp:([0-9.]+); RequestID:([a-z0-9-]+); "
    r"Role:([a-zA-Z0-9]+)_([0-9]+\.[0-9]+\.[0-9]+\.[0-9]+)"
)
ID = "38a4f1c0-5b1e-4c52-9c0d-0123456789ab"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
STEPS = [
    ("api", "PD api server get request"),
    ("engine", "Start process request in prefill engine"),
    ("engine", "Prefill add waiting queue"),
    ("engine", "try to schedule in waiting queue"),
    ("engine", "try to schedule in waiting queue"),
    ("engine", "Prefill get new_blocks"),
    ("engine", "success add to seq groups"),
    ("engine", "Prefill start execute_model"),
    ("engine", "Prefill done execute_model"),
    ("api", "KV cache found"),
    ("engine", "Start to send output in prefill stage"),
    ("api", "Finish prefill pickle and start response"),
    ("engine", "Prefill free kv blocks"),
]


def node(program: Program, mode: str, headers: dict[str, str]) -> Result:
    """One request through the API and the engine process of a prefill node."""
    steps = [
        (process, action, {"of": process, "n": n}) for n, (process, action) in enumerate(STEPS)
    ]
    return program.start(
        "node.py",
        json.dumps(headers),
        json.dumps(steps),
        f"chatcmpl-{ID}",
        f"chatcmpl-{ID}-1a2b3c4d",
        ROLE="prefill",
        OMNITRACE_LEGACY_LOG=mode,
    ).end()


def actions(lines: list[str]) -> list[re.Match[str]]:
    """The action lines, each in our form; anything else must be an `Exported` line."""
    found = []
    for line in lines:
        match = LINE.fullmatch(line)
        assert match or EXPORTED.fullmatch(line), line
        found += [match] if match else []
    return found


def nanoseconds(seconds: str) -> int:
    return int(seconds.replace(".", ""))


@pytest.mark.parametrize("headers", [{}, {"traceparent": f"00-{TRACE}-{CALLER}-01"}])
def test_always_every_action_is_one_old_line_and_every_span_is_said_to_be_exported(
    program: Program, sink: Sink, headers: dict[str, str]
) -> None:
    result = node(program, "always", headers)
    lines = actions(result.lines)
    lines.sort(key=lambda line: nanoseconds(line["time"]))
    assert [line["action"] for line in lines] == [action for _, action in STEPS]
    for line in lines:
        old = OLD.search(line.string)
        assert old is not None
        assert old.groups() == (line["action"], line["time"], f"chatcmpl-{ID}", "prefill", NODE)
        assert line["time"].partition(".")[2].startswith(line["ms"])
        more = {"traceparent": headers["traceparent"]} if headers else {}
        recorded: dict[str, object] = json.loads(line["more"])["attributes"]
        process, n = recorded.values()
        assert isinstance(n, int)
        assert json.loads(line["more"]) == {**more, "attributes": {"of": process, "n": n}}
        assert STEPS[n] == (process, line["action"])

    exported = [m["ids"] for text in result.lines if (m := EXPORTED.fullmatch(text))]
    ids = [span_id for group in exported for span_id in group.split(",")]
    assert sorted(ids) == sorted(span.span_id for span in sink.spans)
    assert len(ids) == 13

    # The very nanoseconds of the spans.
    times = {nanoseconds(line["time"]) for line in lines}
    assert {time for span in sink.spans for time in (span.start, span.end)} <= times


@pytest.mark.parametrize("headers", [{}, {"traceparent": f"00-{TRACE}-{CALLER}-01"}])
def test_the_always_written_log_gives_the_live_spans_again_and_only_if_asked(
    program: Program, sink: Sink, archive: Sink, headers: dict[str, str]
) -> None:
    result = node(program, "always", headers)
    said = command("replay", result.directory, "--endpoint", archive.url).stderr
    assert archive.spans == [] and "0 spans sent" in said and "13 left out" in said
    command("replay", result.directory, "--endpoint", archive.url, "--all")
    assert content(archive.spans) == content(sink.spans)


def test_a_caller_that_does_not_record_leaves_no_line(program: Program, sink: Sink) -> None:
    result = node(program, "always", {"traceparent": f"00-{TRACE}-{CALLER}-00"})
    assert result.lines == [] and sink.requests == []


def test_as_a_fallback_there_is_no_file_while_the_collector_takes_everything(
    program: Program, sink: Sink
) -> None:
    result = node(program, "fallback", {})
    assert len(sink.spans) == 13 and not result.directory.exists()


def test_as_a_fallback_the_log_gives_all_that_was_not_taken(
    program: Program, sink: Sink, archive: Sink
) -> None:
    sink.script = ["503"]
    result = node(program, "fallback", {})
    lines = actions(result.lines)
    assert all(OLD.search(line.string) for line in lines)
    # Where an action bounds spans of both processes, both have its line.
    named = {line["action"] for line in lines}
    assert named == {action for _, action in STEPS}
    command("replay", result.directory, "--endpoint", archive.url)
    assert content(archive.spans) == content(sink.refused)
    assert len(archive.spans) == 13


def test_a_free_span_is_a_line_that_old_tools_pass_over(program: Program, sink: Sink) -> None:
    result = program.run(
        """
        with span("parent", "r", {"n": 1}):
            with span("child"):
                pass
        """,
        OTEL_TRACES_EXPORTER="none",
    )
    lines = actions(result.lines)
    assert [(line["action"], line["id"]) for line in lines] == [("child", ""), ("parent", "")]
    assert not any(OLD.search(line.string) for line in lines)
    child, parent = (json.loads(line["more"]) for line in lines)
    trace = parent["span"]["trace_id"]
    assert parent == {
        "attributes": {"n": 1},
        "span": {
            "start": parent["span"]["start"],
            "trace_id": trace,
            "span_id": parent["span"]["span_id"],
            "kind": "internal",
            "flags": 1,
        },
    }
    assert child["span"]["parent_span_id"] == parent["span"]["span_id"]
    assert child["span"]["trace_id"] == trace
    starts = parent["span"]["start"], child["span"]["start"]
    ends = [nanoseconds(line["time"]) for line in lines]
    assert [*starts, *ends] == sorted([*starts, *ends])


def test_the_file_is_named_and_guarded_as_the_old_tools_expect(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        "record('one')\nsay(os.getpid())\n", OTEL_TRACES_EXPORTER="none", TZ="Asia/Kolkata"
    )
    [file] = result.directory.iterdir()
    assert re.fullmatch(rf"log_pid_{result.said[0]}_tid_\d+\.log", file.name)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert stat.S_IMODE(result.directory.stat().st_mode) == 0o750
    # The date is local time.
    [line] = actions(result.lines)
    zone = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    local = datetime.datetime.fromtimestamp(nanoseconds(line["time"]) // 10**9, zone)
    assert line["date"] == local.strftime("%Y-%m-%d %H:%M:%S")


def test_a_full_file_is_followed_by_others_and_nothing_is_cut(
    program: Program, sink: Sink, archive: Sink
) -> None:
    result = program.run(
        """
        for n in range(40):
            with span(f"span {n}", attributes={"long": "x" * 16_000 for n in range(8)}):
                pass
            with span(f"short {n}", attributes={f"key {n}": "y" * 16_000 for n in range(8)}):
                pass
            flush()
        """,
        OTEL_TRACES_EXPORTER="none",
        OMNITRACE_LEGACY_LOG_MAX_MIB="1",
    )
    files = sorted(result.directory.iterdir())
    assert len(files) > 3 and all(re.search(r"\d(\.\d+)?\.log$", f.name) for f in files)
    assert all(file.stat().st_size <= 1 << 20 for file in files)
    assert len(actions(result.lines)) == 80
    command("replay", result.directory, "--endpoint", archive.url)
    names = {f"{kind} {n}" for n in range(40) for kind in ("span", "short")}
    assert {span.name for span in archive.spans} == names and len(archive.spans) == 80
