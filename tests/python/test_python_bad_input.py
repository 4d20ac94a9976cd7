"""Bad input gets a clear answer, loses nothing and never reaches the host program."""

from __future__ import annotations

import pytest

from program import Program, command
from sink import Sink, content

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
# The SERVER span of one request.
PREFILL = """
def prefill(request_id):
    action("PD api server get request", request_id)
    action("Finish prefill pickle and start response", request_id)
"""


def test_a_malformed_traceparent_is_no_traceparent(program: Program, sink: Sink) -> None:
    result = program.run(
        f"""
        good = "00-{TRACE}-{CALLER}-01"
        say(extract({{"traceparent": " " + good + "\\t"}}) == extract({{"TraceParent": good}}))
        malformed = [
            "", " ", "00", "x" * 5000, good.upper(), good[:-1], good + "-x", "ff" + good[2:],
            good.replace("-", "_"), good.replace("{TRACE}", "0" * 32),
            good.replace("{CALLER}", "0" * 16), good.replace("4bf9", "4bg9"),
            good.replace("4b", "é"), "\\ud800" + good[1:], good.encode(), None, 5, [good],
        ]
        for n, value in enumerate(malformed):
            assert extract({{"traceparent": value}}, f"r{{n}}") is None, value
            prefill(f"r{{n}}")
        say(len(malformed))
        """,
        before=PREFILL,
        ROLE="prefill",
    )
    same, count = result.said
    assert same is True and result.messages == []
    assert [s.parent_id for s in sink.spans] == [""] * count
    assert len({s.trace_id for s in sink.spans} - {TRACE}) == count


def test_a_carrier_that_is_none_gives_no_context(program: Program, sink: Sink) -> None:
    result = program.run(
        f"""
        class Broken:
            def get(self, key): raise RuntimeError

        class Headers(dict):
            "Such as Starlette's: any case, by its own get."
            def get(self, key, default=None): return super().get(key.lower(), default)

        good = "00-{TRACE}-{CALLER}-01"
        odd = [None, 5, "text", [], [("traceparent", good)], object(), Broken(), {{}}, {{5: good}},
               {{b"traceparent": good}}, {{None: None}}]
        for n, carrier in enumerate(odd):
            assert extract(carrier) is None and extract(carrier, f"r{{n}}") is None
        say(extract(Headers(traceparent=good)).traceparent == good)
        """
    )
    assert (result.said, result.messages) == ([True], [])


def test_what_came_from_another_process_damaged_is_left_out(program: Program, sink: Sink) -> None:
    result = program.run(
        """
        future = time.time_ns() + 10**15
        for n, starts in enumerate([
            "", ",", "=", "7", "7=", "x=1", "7=x", "99999=5", "7=99999999999999999999999",
            "-1=5", "7=-5", "\\ud800", f"7={future}", "8=5",
        ]):
            extract({"omnitrace-starts": starts, "omnitrace-request-id": f"r{n}"}, f"r{n}")
            action("Start process request in prefill engine", f"r{n}")
        flush()
        say([stats()["created"], stats()["contradictory"]])
        """,
        ROLE="prefill",
    )
    # Only the one from the future bounds a phase at all, and it would end before it starts.
    assert result.said == [[0, 1]] and result.messages == []


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("garbage", "is not a URL"),
        ("127.0.0.1:4318", "is not a URL"),
        ("localhost:4318", "does not begin with http:// or https://"),
        ("ftp://127.0.0.1", "does not begin with http:// or https://"),
        ("http://", "is not a URL (empty host)"),
        ("http://127.0.0.1:99999", "is not a URL"),
    ],
)
def test_an_endpoint_that_is_none_is_said_once_and_everything_is_logged(
    program: Program, sink: Sink, endpoint: str, reason: str
) -> None:
    result = program.run(
        """
        for n in range(3):
            record("one")
            say(flush())
        say(stats()["logged"])
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
    )
    assert result.said == [True, True, True, 3]
    [(level, message)] = result.messages
    assert level == "WARNING"
    assert message.startswith(f'OTEL_EXPORTER_OTLP_ENDPOINT="{endpoint}" {reason}')
    assert message.endswith(": nothing is exported, spans go to the legacy log")
    assert len(result.lines) == 3


@pytest.mark.parametrize("scheme", ["https", "grpc"])
def test_an_endpoint_that_speaks_another_protocol_is_said_once_and_everything_is_logged(
    program: Program, sink: Sink, scheme: str
) -> None:
    url = sink.url.replace("http", scheme) if scheme == "https" else sink.url
    result = program.run(
        """
        for n in range(3):
            record("one")
            say(flush())
        say(stats()["logged"])
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=url,
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc" if scheme == "grpc" else None,
    )
    assert result.said == [True, True, True, 3]
    [(level, message)] = result.messages
    assert level == "WARNING" and str(result.directory) in message
    assert len(result.lines) == 3


@pytest.mark.parametrize("where", ["below a file", "below /proc", "is a file"])
@pytest.mark.parametrize("mode", ["fallback", "always"])
def test_a_log_that_cannot_be_written_is_said_once_and_what_is_lost_is_counted(
    program: Program, sink: Sink, where: str, mode: str
) -> None:
    file = program.workplace / "file"
    file.touch()
    paths = {"below a file": file / "log", "below /proc": "/proc/omnitrace", "is a file": file}
    sink.script = ["ok", "503"]
    result = program.run(
        """
        record("taken")
        say(flush())
        for n in range(3):
            record("lost")
            action("PD api server get request", "r")
            say(flush(30))
        books = stats()
        say([books["exported"], books["logged"], books["dropped"], books["created"]])
        """,
        TRACE_OUTPUT_DIRECTORY=str(paths[where]),
        OMNITRACE_LEGACY_LOG=mode,
    )
    assert result.said == [True, False, False, False, [1, 0, {"legacy_log_failed": 3}, 4]]
    log, *collector = result.messages
    assert log[0] == "ERROR" and str(paths[where]) in log[1]
    assert log[1].endswith("set TRACE_OUTPUT_DIRECTORY to a writable directory")
    [(level, message)] = collector
    assert level == "WARNING" and "503" in message and "are lost" in message


@pytest.mark.parametrize("mode", ["fallback", "always"])
def test_a_log_that_can_be_written_again_keeps_what_is_still_waiting(
    program: Program, sink: Sink, archive: Sink, mode: str
) -> None:
    program.directory.touch()
    sink.script = ["503"]
    result = program.run(
        """
        init(schedule_delay=0.01, export_timeout=60)
        extract({}, "r")
        prefill("r")
        record("one")
        while not stats()["last_error"]:
            time.sleep(0.01)
        os.unlink(os.environ["TRACE_OUTPUT_DIRECTORY"])
        record("two")
        flush()
        say([stats()["logged"], stats()["dropped"]])
        """,
        before=PREFILL,
        OMNITRACE_LEGACY_LOG=mode,
        ROLE="prefill",
    )
    assert result.said == [[3, {}]]
    command("replay", result.directory, "--endpoint", archive.url)
    assert sorted(s.name for s in archive.spans) == ["Prefill", "one", "two"]


ODD_IDS = """
class Broken:
    def __str__(self): raise RuntimeError

odd = [
    "with blanks", " at the ends ", 'say "hi"', "it's", "new\\nline", "cr\\rlf\\n", "tab\\t", "nul\\0",
    "a; Role:decode_1.2.3.4", "<<<Action: x; Timestamp:1; RequestID:y", "ends {\\"a\\":1}", "{}",
    "x while sending to client, client: 1", "ünï\\u2028cødé", "lone \\ud800 surrogate", "\\ufeff",
    "38a4f1c0-5b1e-4c52-9c0d-0123456789ab-1", "chatcmpl-", "chatcmpl-chatcmpl-x", "cmpl-y-0", "1_chatcmpl-z", "UPPER_case.|", "", "  ", "-",
    "x" * 5000, "chatcmpl-" + "y" * 5000, "€" * 5000, 5, 5.5, b"bytes", ("a", 1), Broken(),
]
"""


def test_any_request_id_is_kept_through_otlp_and_through_the_log(
    program: Program, sink: Sink, archive: Sink
) -> None:
    result = program.run(
        """
        for request_id in odd:
            with span("of the request", request_id) as own:
                prefill(request_id)
                carrier = {}
                inject(carrier, request_id)
                say([str(own.context.trace_id), carrier["omnitrace-request-id"].encode().hex()])
        flush()
        say(stats()["created"])
        """,
        before=PREFILL + ODD_IDS,
        ROLE="prefill",
    )
    count = result.said.pop()
    assert result.messages == [] and count == len(sink.spans)
    told = {(trace, bytes.fromhex(text).decode()) for trace, text in result.said}
    seen = {
        (s.trace_id, str(s.attributes["gen_ai.request.id"]))
        for s in sink.spans
        if s.name == "Prefill"
    }
    # A span's own idea of its trace is the one that it is recorded in, cut ids included.
    own = {s.trace_id for s in sink.spans if s.name == "of the request" and s.parent_id}
    assert seen == told
    assert own <= {trace for trace, _ in seen}
    ids = {text for _, text in seen}
    assert {"with blanks", 'say "hi"', "new\nline", "5", "b'bytes'", "?", "", "  "} <= ids
    assert {"x" * 1024, "y" * 1024, "€" * 341, "lone \ufffd\ufffd\ufffd surrogate"} <= ids

    sink.spans.clear()
    sink.script = ["503"]
    result = program.run(
        """
        for request_id in odd:
            prefill(request_id)
        """,
        before=PREFILL + ODD_IDS,
        ROLE="prefill",
    )
    restored = command("replay", result.directory, "--endpoint", archive.url)
    assert "left out:" not in restored.stderr
    assert content(archive.spans) == content(sink.refused)
    assert {str(s.attributes["gen_ai.request.id"]) for s in archive.spans} == ids


def test_any_name_is_kept_through_otlp_and_through_the_log(
    program: Program, sink: Sink, archive: Sink
) -> None:
    sink.script = ["503"]
    result = program.run(
        """
        action("PD api server get request", "r")
        for name in [*odd, None]:
            action(name, "r", {"was": repr(type(name))})
            record(name)
        action("Finish prefill pickle and start response", "r")
        """,
        before=ODD_IDS,
        ROLE="prefill",
    )
    names = {s.name for s in sink.refused}
    assert {
        "with blanks",
        "new\nline",
        "5",
        "None",
        "?",
        "",
        "x" * 1024,
        "chatcmpl-" + "y" * 1015,
    } < names
    restored = command("replay", result.directory, "--endpoint", archive.url)
    assert "left out:" not in restored.stderr
    assert content(archive.spans) == content(sink.refused)
    [prefill] = [s for s in archive.spans if s.name == "Prefill"]
    assert len(prefill.events) == len(names) - 1


def test_a_time_limit_that_is_no_time_is_survived(program: Program, sink: Sink) -> None:
    result = program.run(
        """
        for timeout in [0, -1, float("nan"), float("-inf"), float("inf"), 1e300, 1e18, 1, True]:
            record("one")
            flush(timeout)
        flush()
        say(stats()["created"] == stats()["exported"] + stats()["logged"] == 9)
        shutdown(float("inf"))
        """
    )
    assert result.said == [True]


def test_a_carrier_that_cannot_be_written_is_the_callers_mistake(program: Program) -> None:
    result = program.run(
        """
        for carrier in [None, (), "text"]:
            inject(carrier)
            with span("open"):
                for arguments in [(carrier,), (carrier, "r")]:
                    try:
                        inject(*arguments)
                    except TypeError as error:
                        say(str(error))
        """
    )
    assert len(result.said) == 6
    assert all("does not support item assignment" in text for text in result.said)
