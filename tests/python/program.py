"""Runs a Python program that imports omnitrace, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What every program may use. `say` writes one JSON line for the test; omnitrace's messages go
# to stderr. `fork` runs `child` in a process that ends without any of Python's own clean-up.
PRELUDE = """\
import json, logging, os, sys, threading, time
import omnitrace
from omnitrace import action, extract, flush, init, inject, shutdown, span, stats

def say(what):
    os.write(1, (json.dumps(what) + "\\n").encode())

def record(name):
    with span(name):
        pass

def delivered(who):
    flush()
    books = stats()
    say([who, os.getpid(), books["created"], books["exported"], books["events"]])

def fork(child):
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(0)
    return pid

def join(*pids):
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0

logging.basicConfig(format="LOG %(levelname)s %(name)s: %(message)s")
"""
LOG = re.compile(r"^LOG (\w+) (\S+): (.*)$", re.MULTILINE)
TIMEOUT = 120
REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = Path(os.environ.get("OMNITRACE_COMMAND") or REPOSITORY / "target/release/omnitrace")
PYTHON = os.environ.get("OMNITRACE_PYTHON") or sys.executable
"""The interpreter under test; `make interpreters` names others than the tests' own, and where
omnitrace is for them."""
SITE = os.environ.get("OMNITRACE_SITE")

NODE = "10.0.0.2"


@dataclass
class Result:
    """What a program left."""

    said: list[Any]
    stderr: str
    directory: Path

    @property
    def messages(self) -> list[tuple[str, str]]:
        """What omnitrace said through `logging`, as (level, text)."""
        found = LOG.findall(self.stderr)
        return [(level, text) for level, name, text in found if name == "omnitrace"]

    @property
    def lines(self) -> list[str]:
        """Every line of the legacy log."""
        files = sorted(self.directory.glob("*.log"))
        texts = [file.read_text(encoding="utf-8") for file in files]
        return [line for text in texts for line in text.removesuffix("\n").split("\n")]


@dataclass
class Program:
    """Starts programs whose spans go to `endpoint` and to `directory`."""

    endpoint: str
    directory: Path
    workplace: Path

    def environment(self, **variables: str | None) -> dict[str, str]:
        """Nothing of the caller's OTEL_*; None takes a default of ours away."""
        ours = ("OTEL_", "OMNITRACE", "TRACE_OUTPUT", "ROLE", "PROFILING_")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        settings: dict[str, str | None] = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_RESOURCE_ATTRIBUTES": f"host.ip={NODE}",
            "TRACE_OUTPUT_DIRECTORY": str(self.directory),
            "PYTHONFAULTHANDLER": "1",
            "PYTHONPATH": SITE,
            **variables,
        }
        return clean | {k: v for k, v in settings.items() if v is not None}

    def start(self, code: str, *args: str, before: str = "", **variables: str | None) -> Running:
        """`code` is a program, to come after `before`, or the name of one under programs/."""
        if code.endswith(".py"):
            file = Path(__file__).with_name("programs") / code
        else:
            number = len(list(self.workplace.glob("program*.py")))
            file = self.workplace / f"program{number}.py"
            file.write_text(PRELUDE + before + textwrap.dedent(code))
        process = subprocess.Popen(
            [PYTHON, str(file), *args],
            env=self.environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return Running(process, self.directory)

    def run(self, code: str, *args: str, before: str = "", **variables: str | None) -> Result:
        """Runs to the end; any exit status but 0 fails the test."""
        return self.start(code, *args, before=before, **variables).end()


@dataclass
class Running:
    """A program that goes on when it is told."""

    process: subprocess.Popen[str]
    directory: Path

    def hear(self) -> Any:
        """The next thing that the program says."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.end(None).stderr
        return json.loads(line)

    def tell(self, word: str = "go") -> None:
        """Writes a line to the program's stdin."""
        assert self.process.stdin
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def end(self, status: int | None = 0) -> Result:
        try:
            out, err = self.process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            # Says where each thread is.
            self.process.send_signal(signal.SIGABRT)
            out, err = self.process.communicate()
            raise AssertionError(f"the program hangs\n{out}\n{err}") from None
        said = [json.loads(line) for line in out.splitlines()]
        if status is not None:
            assert self.process.returncode == status, err
        return Result(said, err, self.directory)


def can_import(module: str) -> bool:
    """Whether the programs can."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is None)"
    environment = os.environ | ({"PYTHONPATH": SITE} if SITE else {})
    return subprocess.run([PYTHON, "-c", code], env=environment, check=False).returncode == 0


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the `omnitrace` command."""
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT,
    )
