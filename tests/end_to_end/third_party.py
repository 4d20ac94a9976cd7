"""A collector that we did not write."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from stack import TARGET, free_ports

OTELCOL = TARGET / "peers" / "otelcol"

CONFIG = """\
receivers:
  otlp:
    protocols:
      grpc: {{ endpoint: "127.0.0.1:{grpc}" }}
      http: {{ endpoint: "127.0.0.1:{http}" }}
exporters:
  otlp_http:
    endpoint: {onward}
    compression: none
    sending_queue: {{ enabled: false }}
service:
  telemetry:
    metrics: {{ level: none }}
  pipelines:
    traces: {{ receivers: [otlp], exporters: [otlp_http] }}
"""


class Collector:
    """The OpenTelemetry Collector if it has been built, else rotel."""

    def __init__(self, folder: Path, onward: str) -> None:
        self.grpc, self.http = free_ports(2)
        self.folder = folder
        self.onward = onward
        self.process: subprocess.Popen[bytes] | None = None

    def endpoint(self, protocol: str = "http/protobuf") -> str:
        return f"http://127.0.0.1:{self.grpc if protocol == 'grpc' else self.http}"

    def start(self) -> None:
        with (self.folder / "collector.out").open("ab") as output:
            self.process = subprocess.Popen(
                self._arguments(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.endpoint()}/v1/traces", timeout=2)
            except urllib.error.HTTPError:
                return  # it wants a POST: it is there
            except OSError:
                time.sleep(0.1)
        pytest.fail("the collector does not start: " + (self.folder / "collector.out").read_text())

    def _arguments(self) -> list[str]:
        if OTELCOL.exists():
            config = self.folder / "collector.yaml"
            config.write_text(CONFIG.format(grpc=self.grpc, http=self.http, onward=self.onward))
            return [str(OTELCOL), "--config", str(config)]
        rotel = shutil.which("rotel-agent", path=str(Path(sys.executable).parent))
        if rotel is None:
            pytest.fail("no collector: run tests/collector/build.sh, or pip install rotel")
        return [
            rotel,
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
