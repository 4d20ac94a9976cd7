"""A program that becomes a daemon closes what it has open; omnitrace's descriptors are among it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from program import Program
from sink import Sink

# `close_all` does as daemons do; then every number is a file of the program's, for as long as the
# program lives, and `victims` says what is in them that is not its own.
CLOSING = """
OWN = b"the program's own"

def close_all(first):
    os.closerange(first, 256)
    for number in range(first, 3):
        assert os.open(os.devnull, os.O_RDWR) == number
    for number in range(64):
        descriptor = os.open(f"{sys.argv[1]}/file{number}", os.O_RDWR | os.O_CREAT)
        os.write(descriptor, OWN)
        opened.append(descriptor)

def victims():
    found = []
    for descriptor in opened:
        try:
            if os.pread(descriptor, 1000, 0) != OWN:
                found.append(descriptor)
        except OSError as error:
            found.append(str(error))
    return found

opened = []
"""


def test_a_daemon_and_those_it_comes_from_deliver_each_its_own(
    program: Program, sink: Sink, tmp_path: Path
) -> None:
    result = program.run(
        """
        report = os.path.join(sys.argv[1], "report")
        record("original")
        assert flush(30)
        middle = os.fork()
        if middle == 0:
            os.setsid()
            record("middle")
            daemon = os.fork()
            if daemon:
                shutdown()
                os._exit(0)
            os.chdir("/")
            os.umask(0)
            close_all(0)
            record("daemon")
            shutdown(30)
            with open(report + ".part", "w") as file:
                json.dump([os.getpid(), stats()["exported"], victims()], file)
            os.rename(report + ".part", report)
            os._exit(0)
        join(middle)
        record("original, later")
        while not os.path.exists(report):
            time.sleep(0.01)
        say([os.getpid(), middle])
        """,
        str(tmp_path),
        before=CLOSING,
    )
    [[original, middle]] = result.said
    daemon, exported, victims = json.loads((tmp_path / "report").read_text())
    assert sorted((span.pid, span.name) for span in sink.spans) == sorted(
        [
            (original, "original"),
            (original, "original, later"),
            (middle, "middle"),
            (daemon, "daemon"),
        ]
    )
    assert (exported, victims, result.lines, result.messages) == (1, [], [], [])


@pytest.mark.parametrize("way", ["ok", "silent", "closed"])
def test_a_program_that_closes_our_descriptors_keeps_its_own_and_loses_no_span(
    program: Program, sink: Sink, tmp_path: Path, way: str
) -> None:
    if way == "closed":
        sink.stop()
    sink.script = [way]
    result = program.run(
        """
        for turn in range(3):
            record("before")
            # The second time something is on the wire.
            if turn != 1:
                flush(0.5)
            else:
                time.sleep(0.1)
            for descriptor in opened: os.close(descriptor)
            opened.clear()
            close_all(3)
            for _ in range(100):
                record("after")
            assert flush(1)
        books = stats()
        shutdown()
        say([books["created"], books["exported"] + books["logged"], books["dropped"], victims()])
        """,
        str(tmp_path),
        before=CLOSING,
        OTEL_BSP_SCHEDULE_DELAY="10",
    )
    assert result.said == [[303, 303, {}, []]]
    logged = sum("<<<Action: " in line for line in result.lines)
    if way == "ok":
        assert (len(sink.spans), logged) == (303, 0)
    else:
        assert (len(sink.spans), logged) == (0, 303)
