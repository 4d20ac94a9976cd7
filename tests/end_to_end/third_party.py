"""A collector that we did not write."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ports import free_ports
from stack import TARGET

OTELCOL = TARGET / "peers" / "otelcol"

CONFIG = """\
receivers:
  otlp:
    protocols:
      grpc: {{ endpoint: "127.0.0.1:{grpc}" }}
      http: {{ endpoint: "127.0.0.1:{http}" }}
exporters: {{ {exporter}: {options} }}
service:
  telemetry:
    metrics: {{ level: none }}
  pipelines:
    traces: {{ receivers: [otlp], exporters: [{exporter}] }}
"""


def rotel_agent() -> str:
    """Rotel's program; a machine on which it does not start cannot run the test."""
    package = find_spec("rotel")
    if package is not None and package.origin is not None:
        agent = str(Path(package.origin).with_name("rotel-agent"))
        if subprocess.run([agent, "--version"], capture_output=True, check=False).returncode == 0:
            return agent
    pytest.skip("no third-party collector: install Go, or libpython3.11 for rotel")


class Collector:
    """The OpenTelemetry Collector if it has been built, else rotel."""

    def __init__(self, folder: Path, onward: str) -> None:
        self.grpc, self.http = free_ports(2)
        self.folder = folder
        self.onward = onward
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def is_synchronous(self) -> bool:
        """Whether it says that it has taken spans only when it has passed them on."""
        return OTELCOL.exists()

    def endpoint(self, protocol: str = "http/protobuf") -> str:
        return f"http://127.0.0.1:{self.grpc if protocol == 'grpc' else self.http}"

    def config(self) -> str:
        """What the OpenTelemetry Collector is to do."""
        exporter, options = self.exporter()
        return CONFIG.format(
            grpc=self.grpc, http=self.http, exporter=exporter, options=json.dumps(options)
        )

    def exporter(self) -> tuple[str, dict[str, Any]]:
        """Where it passes spans on to: the exporter's type and its options."""
        queue = {"enabled": False}
        return "otlp_http", {
            "endpoint": self.onward, "compression": "none", "sending_queue": queue
        }  # fmt: skip

    def start(self) -> None:
        with (self.folder / "collector.out").open("ab") as output:
            self.process = subprocess.Popen(
                self._arguments(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.http), timeout=2).close()
                socket.create_connection(("127.0.0.1", self.grpc), timeout=2).close()
                return
            except OSError:
                time.sleep(0.1)
        pytest.fail("the collector does not start: " + (self.folder / "collector.out").read_text())

    def _arguments(self) -> list[str]:
        if OTELCOL.exists():
            config = self.folder / "collector.yaml"
            config.write_text(self.config())
            return [str(OTELCOL), "--config", str(config)]
        return [
            rotel_agent(),
            "start",
            *("--otlp-grpc-endpoint", f"127.0.0.1:{self.grpc}"),
            *("--otlp-http-endpoint", f"127.0.0.1:{self.http}"),
            *("--exporter", "otlp", "--otlp-exporter-protocol", "http"),
            *("--otlp-exporter-endpoint", self.onward),
        ]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(20)
            self.process = None
