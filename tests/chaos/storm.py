"""Drives programs that record through one outage of the Collector after another."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archive import Archive
from third_party import Collector
from traces import NAMES
from weather import CLOSED, FAIR, KINDS, Weather

# What the process itself suffers; the rest is between it and omnitrace.
DEATHS = ["killed", "terminated", "stopped"]
OUTAGES = [*DEATHS, *KINDS]
VISIBLE = {*KINDS} - CLOSED
"""Those in which requests are met."""

PATIENCE = 1.0
"""Seconds for one request, OTEL_EXPORTER_OTLP_TIMEOUT."""
WAIT = 3.0
"""Seconds that a span waits for a Collector, OTEL_BSP_EXPORT_TIMEOUT."""
LONGEST = 6.0
"""Seconds of the longest outage: some are waited out in memory, some are not."""

# One way of delivering for each program.
WAYS = [
    {},
    {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"},
    {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
    {"OMNITRACE_LEGACY_LOG": "always"},
]
LOAD = Path(__file__).with_name("load.py")


@dataclass
class Report:
    """What a process said at its end."""

    pid: int
    label: int
    traces: int
    books: dict[str, Any]

    @property
    def balance(self) -> int:
        """created minus everything that became of it; 0."""
        books = self.books
        became = ("exported", "in_flight", "logged")
        lost = sum(books["dropped"].values())
        return int(books["created"] - sum(books[name] for name in became) - lost)


class Program:
    """One load.py."""

    def __init__(self, environment: dict[str, str], reports: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(LOAD), str(reports)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> None:
        assert self.process.stdout
        word = self.process.stdout.readline()
        assert word == "done\n", f"a program under chaos said {word!r}"

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        assert self.process.stdout
        self.process.stdout.close()


class Storm:
    """A Collector, bad weather before it, an archive behind it, and programs."""

    def __init__(self, folder: Path, seed: int, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.say = say
        self.logs = folder / "logs"
        self.reports_folder = folder / "reports"
        self.reports_folder.mkdir()
        self.archive = Archive()
        self.collector = Collector(folder, self.archive.url)
        self.weather = Weather(self.collector.http, PATIENCE)
        self.programs: list[Program] = []

    def start(self) -> None:
        self.collector.start()
        self.programs += [self._program(way) for way in WAYS]

    def _program(self, way: dict[str, str]) -> Program:
        ours = ("OTEL_", "OMNITRACE", "TRACE_OUTPUT", "ROLE", "PROFILING_")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        environment = clean | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.weather.url,
            "OTEL_EXPORTER_OTLP_TIMEOUT": f"{PATIENCE * 1000:.0f}",
            "OTEL_BSP_EXPORT_TIMEOUT": f"{WAIT * 1000:.0f}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "TRACE_OUTPUT_DIRECTORY": str(self.logs),
            "OMNITRACE_LEGACY_LOG_MAX_MIB": "8",
            "ROLE": "prefill",
        }
        return Program(environment | way, self.reports_folder)

    def order(self, outages: int) -> list[str]:
        """Every kind as often as the others, in the seed's order."""
        kinds: list[str] = []
        while len(kinds) < outages:
            kinds += self.random.sample(OUTAGES, len(OUTAGES))
        return kinds[:outages]

    def blow(self, spans: int, outages: int) -> None:
        """So many spans, half of each share during an outage and half after it."""
        traces = spans // len(NAMES)
        self.say("    outage      seconds  requests   arrived")
        for number, kind in enumerate(self.order(outages)):
            share = traces * (number + 1) // outages - traces * number // outages
            arrived, met = self.archive.total, self.weather.requests[kind]
            began = time.monotonic()
            self._begin(kind)
            self._work(share // 2)
            if number % 3 == 2:
                # One ends in the middle of it; the next begins with no Collector.
                at = number // 3 % len(WAYS)
                self.programs[at].end()
                self.programs[at] = self._program(WAYS[at])
            time.sleep(self.random.uniform(0.5, LONGEST))
            while kind in VISIBLE and self.weather.requests[kind] == met:
                time.sleep(0.05)
            self._end(kind)
            seconds = time.monotonic() - began
            self._all("return")
            self._work(share - share // 2)
            self._all("settle")
            self.say(
                f"{number + 1:3} {kind:<11}{seconds:8.1f}"
                f"{self.weather.requests[kind] - met if kind in VISIBLE else '-':>10}"
                f"{self.archive.total - arrived:>10}"
            )
        for program in self.programs:
            program.end()

    def _work(self, traces: int) -> None:
        """Each program its part, a quarter of it in forked children."""
        count = len(self.programs)
        for number, program in enumerate(self.programs):
            part = traces * (number + 1) // count - traces * number // count
            program.tell(f"round {part - part // 4} {part // 4}")
        for program in self.programs:
            program.hear()

    def _all(self, line: str) -> None:
        for program in self.programs:
            program.tell(line)
        for program in self.programs:
            program.hear()

    def _begin(self, kind: str) -> None:
        if kind == "killed":
            self.collector.stop(signal.SIGKILL)
        elif kind == "terminated":
            self.collector.stop()
        elif kind == "stopped":
            assert self.collector.process
            self.collector.process.send_signal(signal.SIGSTOP)
        else:
            self.weather.become(kind)

    def _end(self, kind: str) -> None:
        if kind == "stopped":
            assert self.collector.process
            self.collector.process.send_signal(signal.SIGCONT)
        elif kind in DEATHS:
            self.collector.start()
        else:
            self.weather.become(FAIR)

    def reports(self) -> list[Report]:
        """Of every process there has been."""
        files = self.reports_folder.glob("*.json")
        return [Report(**json.loads(file.read_text())) for file in files]

    def close(self) -> None:
        for program in self.programs:
            if program.process.poll() is None:
                program.process.kill()
                program.process.wait()
        if self.collector.process:
            self.collector.process.send_signal(signal.SIGCONT)
        self.collector.stop()
        self.weather.close()
        self.archive.close()
