"""Memory stays within its bound however long no Collector can be had, and nothing is lost.

`make outage` runs this with an hour of 20,000 spans a second, as fast as they go; OUTAGE_SPANS and
OUTAGE_MIB say how many spans and what bound. Waiting is all that an hour would add: the bound is
reached long before a span has waited OTEL_BSP_EXPORT_TIMEOUT, so the spans that are in memory at
20,000 a second for an hour are never more than here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from traces import NAMES

SPANS = int(os.environ.get("OUTAGE_SPANS") or 1_000_000)
MIB = int(os.environ.get("OUTAGE_MIB") or 64)
FAIR_SPANS = 700_000
"""While a Collector takes them, so many that the assembler is full: what the program needs without
an outage."""
FAIR_WAITING = 20_000
"""Spans that wait for it at most."""
LOAD = Path(__file__).with_name("outage_load.py")

# What a span's own line, or a line at which a phase ends, has in it.
PHASES = {name: f'"{name}"'.encode() for name in NAMES[:3]}
WORK = b"<<<Action: work "


class Taker(ThreadingHTTPServer):
    """A Collector that takes everything and keeps nothing."""

    daemon_threads = True

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.connections: list[object] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def process_request(self, request: object, client_address: object) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def go_away(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(2)  # type: ignore[attr-defined]


class Shipper:
    """Reads the log as a log shipper would: whole files, which it takes away."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.found: Counter[bytes] = Counter()
        self.files = self.bytes = 0

    def ship(self, *, last: bool = False) -> None:
        files = sorted(self.directory.glob("*.log"), key=self._number)
        for file in files if last else files[:-1]:
            text = file.read_bytes()
            file.unlink()
            self.files += 1
            self.bytes += len(text)
            for mark in [*PHASES.values(), WORK]:
                self.found[mark] += text.count(mark)

    @staticmethod
    def _number(file: Path) -> int:
        rotated = re.fullmatch(r".*\.(\d+)\.log", file.name)
        return int(rotated[1]) if rotated else 0


def memory(pid: int) -> tuple[float, float]:
    """Resident memory now and at most so far, MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    now, most = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
    assert now and most
    return int(now[1]) / 1024, int(most[1]) / 1024


def watch(load: subprocess.Popen[str], line: str, each: Callable[[float], None]) -> dict[str, Any]:
    """The books that a line is answered with; calls `each` with the seconds now and then."""
    assert load.stdin and load.stdout
    if line:
        load.stdin.write(f"{line}\n")
        load.stdin.flush()
    else:
        load.stdin.close()
    answers: list[str] = []
    reader = threading.Thread(target=lambda: answers.append(load.stdout.readline()))  # type: ignore[union-attr]
    reader.start()
    began = time.monotonic()
    while reader.is_alive():
        reader.join(0.2)
        each(time.monotonic() - began)
    assert answers[0], "the program died"
    books: dict[str, Any] = json.loads(answers[0])
    return books


def test_an_hour_without_a_collector_costs_no_more_memory_than_the_bound(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def say(line: str) -> None:
        with capfd.disabled():
            print(line, flush=True)

    taker = Taker()
    shipper = Shipper(tmp_path / "logs")
    ours = ("OTEL_", "OMNITRACE", "TRACE_OUTPUT", "ROLE", "PROFILING_")
    load = subprocess.Popen(
        [sys.executable, str(LOAD)],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(ours)},
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{taker.server_port}",
            "TRACE_OUTPUT_DIRECTORY": str(shipper.directory),
            "OMNITRACE_LEGACY_LOG_MAX_MIB": "64",
            "OMNITRACE_MEMORY_LIMIT_MIB": str(MIB),
            "ROLE": "prefill",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    pid = load.pid
    try:
        books = watch(load, f"{FAIR_SPANS // len(NAMES)} {FAIR_WAITING}", lambda _: None)
        assert (books["in_flight"], books["logged"], books["dropped"]) == (0, 0, {})
        baseline = memory(pid)[1]
        taker.go_away()

        say(f"\n{SPANS} spans without a Collector; {MIB} MiB for them")
        say("seconds  log files shipped     MiB of log  spans in them   RSS MiB   at most")
        said = -10.0

        def each(seconds: float) -> None:
            nonlocal said
            shipper.ship()
            if seconds < said + 10:
                return
            said = seconds
            now, most = memory(pid)
            spans = sum(shipper.found.values())
            say(
                f"{seconds:7.0f}  {shipper.files:17}  {shipper.bytes >> 20:13}  {spans:13}"
                f"  {now:8.1f}  {most:8.1f}"
            )

        watch(load, f"{SPANS // len(NAMES)} {SPANS}", each)
        most = memory(pid)[1]
        books = watch(load, "", lambda _: shipper.ship())
        assert load.wait(60) == 0
    finally:
        taker.server_close()
        if load.poll() is None:
            load.kill()
            load.wait()
    shipper.ship(last=True)
    limit = baseline + MIB
    say(
        f"{shipper.bytes >> 20} MiB of log; RSS at most {most:.1f} MiB; allowed {limit:.1f}: "
        f"{baseline:.1f} with a Collector, and {MIB}"
    )

    made, exported = FAIR_SPANS + SPANS, books["exported"]
    kept = ("created", "in_flight", "logged", "events_lost", "dropped")
    assert {name: books[name] for name in kept} == {
        "created": made,
        "in_flight": 0,
        "logged": made - exported,
        "events_lost": 0,
        "dropped": {},
    }
    # The phases that are still open when the Collector goes are in the log; it has all else.
    found, (_, still_open, _) = shipper.found, PHASES.values()
    each_once = dict.fromkeys(PHASES.values(), SPANS // len(NAMES))
    each_once |= {WORK: (len(NAMES) - 3) * SPANS // len(NAMES)}
    each_once[still_open] += FAIR_SPANS - exported
    assert found == each_once
    assert most <= limit
