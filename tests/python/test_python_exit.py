"""However a process ends, what it recorded is delivered, or the bound of what is not is known."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections import Counter
from collections.abc import Iterator

import pytest

from program import Program, command
from sink import Sink, content

NEVER = "100000000"
"""Milliseconds; a program that waits for that hangs."""
PATIENT = {"OTEL_EXPORTER_OTLP_TIMEOUT": NEVER, "OTEL_BSP_EXPORT_TIMEOUT": NEVER}

ENDINGS = {
    "return": ("pass", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "exception": ("raise RuntimeError", 1),
    "exit in a thread's wake": ("threading.Thread(target=sys.exit).start()", 0),
    # A shell may have had it ignored.
    "interrupt": (
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
        -signal.SIGINT,
    ),
    "a handler of the program's": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143));"
        "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)",
        143,
    ),
}


def names(sink: Sink) -> list[str]:
    assert len({span.span_id for span in sink.spans}) == len(sink.spans)
    return sorted(span.name for span in sink.spans)


@pytest.mark.parametrize("ending", ENDINGS)
def test_whatever_ends_a_program_delivers_what_it_recorded(
    program: Program, sink: Sink, ending: str
) -> None:
    code, status = ENDINGS[ending]
    running = program.start(
        f"""
        import signal
        record("free")
        action("PD api server get request", "r")
        action("Finish prefill pickle and start response", "r")
        with span("open"):
            {code}
        """,
        ROLE="prefill",
        OTEL_BSP_SCHEDULE_DELAY=NEVER,
    )
    assert running.end(status).messages == []
    assert names(sink) == ["Prefill", "free", "open"]


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address from which nothing comes back, not even to an attempt to connect."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


WAYS = ["429 retry-after 100", "503", "400", "reset", "silent", "closed", "black hole"]


@pytest.mark.parametrize("way", WAYS)
def test_an_exit_waits_for_no_collector(
    program: Program, sink: Sink, archive: Sink, black_hole: str, way: str
) -> None:
    if way == "closed":
        sink.stop()
    elif way != "black hole":
        sink.script = [way]
    result = program.run(
        """
        for n in range(1000):
            record(f"{n}")
        """,
        OTEL_BSP_SCHEDULE_DELAY=NEVER,
        OTEL_EXPORTER_OTLP_ENDPOINT=black_hole if way == "black hole" else sink.url,
        **PATIENT,
    )
    assert sink.spans == []
    command("replay", result.directory, "--endpoint", archive.url)
    assert [span.name for span in archive.spans] == [str(n) for n in range(1000)]
    replayed = {span["span_id"]: span for span in content(archive.spans)}
    assert [replayed[span["span_id"]] for span in content(sink.refused)] == content(sink.refused)
    [(level, message)] = result.messages
    assert level == "WARNING" and str(result.directory) in message


def test_signals_stay_as_the_program_has_them_and_only_what_was_not_flushed_dies(
    program: Program, sink: Sink
) -> None:
    running = program.start(
        """
        import signal
        def dispositions():
            known = signal.valid_signals()
            return {int(s): str(signal.getsignal(s)) for s in known}
        record("safe")
        assert flush(30)
        record("dies")
        action("PD api server get request", "dies too")
        say(dispositions())
        time.sleep(60)
        """,
        OTEL_BSP_SCHEDULE_DELAY=NEVER,
    )
    dispositions = running.hear()
    as_python_has_them = program.run(
        """
        import signal
        say({int(s): str(signal.getsignal(s)) for s in signal.valid_signals()})
        """
    ).said[0]
    assert dispositions == as_python_has_them
    running.process.terminate()
    result = running.end(-signal.SIGTERM)
    assert names(sink) == ["safe"] and result.lines == []


def test_os_exit_loses_at_most_what_has_waited_less_than_the_schedule_delay(
    program: Program, sink: Sink
) -> None:
    running = program.start(
        """
        init(schedule_delay=0.01)
        record("waited")
        sys.stdin.readline()
        init(schedule_delay=1e5)
        record("flushed")
        assert flush(30)
        record("lost")
        os._exit(7)
        """
    )
    sink.wait(lambda sink: sink.spans)
    running.tell()
    running.end(7)
    assert names(sink) == ["flushed", "waited"]


def test_daemon_threads_may_go_on_recording_while_the_interpreter_ends(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        """
        counts = [0, 0, 0]
        def busy(number):
            while True:
                record("busy")
                action("PD api server get request", f"{number}.{counts[number]}")
                counts[number] += 1
                if counts[number] % 20 == 0:
                    time.sleep(0.001)

        for number in range(3):
            threading.Thread(target=busy, args=(number,), daemon=True).start()
        while min(counts) < 2000:
            time.sleep(0.01)
        say(sum(counts))
        """,
        OTEL_BSP_SCHEDULE_DELAY="10",
    )
    # "Prefill" is what is known of each request at the end.
    assert set(names(sink)) == {"Prefill", "busy"}
    assert names(sink).count("busy") >= result.said[0]
    # What they record after the end is told, and nothing else.
    assert {message for _, message in result.messages} <= {
        "spans that end after shutdown() are dropped; stats() counts them",
        "actions after shutdown() are lost; stats() counts them",
    }
    assert "panicked" not in result.stderr and "Traceback" not in result.stderr


def test_exit_handlers_record_unless_they_were_there_before_omnitrace(
    program: Program, sink: Sink
) -> None:
    result = program.start("early_exit.py").end()
    assert names(sink) == ["in time", "late"]
    assert result.said == [[4, 2, 0, {"after_shutdown": 2}]]
    assert result.messages == [
        ("WARNING", "spans that end after shutdown() are dropped; stats() counts them")
    ]


def test_spans_of_threads_that_outlive_shutdown_are_in_the_books(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        """
        over = threading.Event()
        counts = [0, 0, 0, 0]
        def busy(number):
            while not over.is_set():
                record("busy")
                counts[number] += 1
                if counts[number] % 20 == 0:
                    time.sleep(0.001)

        threads = [threading.Thread(target=busy, args=(n,)) for n in range(4)]
        for thread in threads: thread.start()
        while min(counts) < 500: time.sleep(0.001)
        shutdown(30)
        middle = list(counts)
        while min(c - m for c, m in zip(counts, middle)) < 50: time.sleep(0.001)
        over.set()
        for thread in threads: thread.join()
        books = stats()
        say([sum(counts), books["created"], books["exported"], books["dropped"]])
        """
    )
    [[recorded, created, exported, dropped]] = result.said
    assert recorded == created == exported + dropped["after_shutdown"]
    assert names(sink) == ["busy"] * exported
    assert dropped["after_shutdown"] >= 200


def test_threads_may_start_flush_stop_and_fork_while_others_record(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        """
        over = threading.Event()
        def busy(number):
            n = 0
            while not over.is_set():
                n += 1
                with span("busy", f"{number}.{n}"):
                    action("PD api server get request", f"{number}.{n}")
                time.sleep(0.0002)
        def stop_and_go():
            for _ in range(25):
                init()
                record("between")
                flush()
                stats()
                shutdown()
        def child():
            # Its parent may have ended recording just then.
            init()
            record("child")
            flush(30)
        def forker():
            for _ in range(10):
                join(fork(child))

        jobs = [threading.Thread(target=job) for job in (stop_and_go, stop_and_go, forker)]
        background = [threading.Thread(target=busy, args=(n,)) for n in range(3)]
        for thread in jobs + background: thread.start()
        for thread in jobs: thread.join()
        over.set()
        for thread in background: thread.join()
        init()
        record("last")
        say([flush(30), stats()["exported"], stats()["in_flight"]])
        """,
        OTEL_BSP_SCHEDULE_DELAY="1",
    )
    assert result.said == [[True, 1, 0]]
    found = Counter(names(sink))
    assert found.keys() <= {"Prefill", "between", "busy", "child", "last"}
    assert (found["child"], found["last"]) == (10, 1)


def test_what_was_flushed_survives_an_exec_and_no_descriptor_does(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        """
        if sys.argv[1:] == ["again"]:
            # The one that lists them is the next free number.
            say(sorted(map(int, os.listdir("/proc/self/fd"))))
            record("after")
            sys.exit()
        record("before")
        assert flush(30)
        books = stats()
        say([books["created"], books["exported"], books["in_flight"]])
        record("lost with the old program")
        os.execv(sys.executable, [sys.executable, __file__, "again"])
        """,
        OTEL_BSP_SCHEDULE_DELAY=NEVER,
    )
    assert result.said == [[1, 1, 0], [0, 1, 2, 3]]
    assert names(sink) == ["after", "before"]
    assert len({span.pid for span in sink.spans}) == 1
