"""The sink of the Rust bench, a process of its own: counts the spans that arrive."""

from __future__ import annotations

import json
import pathlib
import subprocess

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class Sink:
    """Takes OTLP over HTTP at `endpoint`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [_program(), "sink"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.endpoint = self._answer()

    def spans(self) -> int:
        """Spans that have arrived so far."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        return int(self._answer())

    def close(self) -> None:
        """Ends it."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


def _program() -> str:
    command = ["cargo", "bench", "--locked", "--no-run", "-p", "omnitrace"]
    command += ["--bench", "recording", "--message-format=json-render-diagnostics"]
    output = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    for line in output.stdout.splitlines():
        message = json.loads(line)
        if message.get("target", {}).get("name") == "recording":
            return str(message["executable"])
    raise SystemExit("cargo built no sink")
