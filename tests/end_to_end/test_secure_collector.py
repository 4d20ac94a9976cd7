"""The OpenTelemetry Collector over encrypted connections, by every protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from authority import Authority
from program import Program
from third_party import OTELCOL, Collector

PROTOCOLS = ["http/protobuf", "http/json", "grpc"]

CONFIG = """\
receivers:
  otlp:
    protocols:
      grpc: {{ endpoint: "127.0.0.1:{grpc}", tls: {tls} }}
      http: {{ endpoint: "127.0.0.1:{http}", tls: {tls} }}
exporters:
  file: {{ path: {taken}, flush_interval: 10ms }}
service:
  telemetry:
    metrics: {{ level: none }}
  pipelines:
    traces: {{ receivers: [otlp], exporters: [file] }}
"""


class SecureCollector(Collector):
    """A Collector that keeps in a file what it is sent by an encrypted connection.

    It talks to clients of the authority alone if it asks them.
    """

    def __init__(self, folder: Path, authority: Authority, asks_clients: bool) -> None:
        if not OTELCOL.exists():
            pytest.skip("no OpenTelemetry Collector: install Go, then make collector")
        super().__init__(folder, "")
        self.tls = {"cert_file": authority.server, "key_file": authority.server_key}
        if asks_clients:
            self.tls["client_ca_file"] = authority.trusted
        self.taken = folder / "taken.jsonl"

    def endpoint(self, protocol: str = "http/protobuf") -> str:
        return super().endpoint(protocol).replace("http:", "https:")

    def config(self) -> str:
        return CONFIG.format(
            grpc=self.grpc, http=self.http, tls=json.dumps(self.tls), taken=self.taken
        )

    def spans(self) -> dict[str, dict[str, Any]]:
        """What it has taken, by name."""
        lines = self.taken.read_text().splitlines()
        return {
            span["name"]: span
            for line in lines
            for resource in json.loads(line)["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        }


@pytest.fixture
def authority(folder: Path) -> Authority:
    return Authority.new(folder)


def variables(collector: Collector, authority: Authority, protocol: str) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint(protocol),
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_CERTIFICATE": authority.trusted,
    }


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("asks_clients", [False, True], ids=["tls", "mutual"])
def test_the_collector_takes_the_same_spans_by_every_protocol(
    folder: Path, authority: Authority, asks_clients: bool, compression: str
) -> None:
    collector = SecureCollector(folder, authority, asks_clients)
    collector.start()
    try:
        for protocol in PROTOCOLS:
            settings = variables(collector, authority, protocol)
            settings["OTEL_EXPORTER_OTLP_COMPRESSION"] = compression
            if asks_clients:
                settings["OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"] = authority.client
                settings["OTEL_EXPORTER_OTLP_CLIENT_KEY"] = authority.client_key
            program = Program("", folder / "log", folder)
            result = program.run(
                f"""
                with span("{protocol}", attributes={{"text": "é", "n": -7, "f": 0.5, "b": True}}):
                    pass
                say([flush(), stats()["exported"]])
                """,
                **settings,
            )
            assert (result.said, result.messages, result.lines) == ([[True, 1]], [], [])
    finally:
        collector.stop()
    spans = collector.spans()
    assert list(spans) == PROTOCOLS
    attributes = [
        {"key": "text", "value": {"stringValue": "é"}},
        {"key": "n", "value": {"intValue": "-7"}},
        {"key": "f", "value": {"doubleValue": 0.5}},
        {"key": "b", "value": {"boolValue": True}},
    ]
    assert [span["attributes"] for span in spans.values()] == [attributes] * len(PROTOCOLS)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_client_that_shows_no_certificate_keeps_its_spans_in_the_log(
    folder: Path, authority: Authority, protocol: str
) -> None:
    collector = SecureCollector(folder, authority, asks_clients=True)
    collector.start()
    try:
        result = Program("", folder / "log", folder).run(
            """
            record("one")
            say([flush(), stats()["exported"], stats()["logged"]])
            """,
            **variables(collector, authority, protocol),
        )
    finally:
        collector.stop()
    assert result.said == [[True, 0, 1]] and len(result.lines) == 1
    [(level, message)] = result.messages
    told = ("CertificateRequired", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")
    assert level == "WARNING" and any(text in message for text in told)
    assert collector.spans() == {}


def test_processes_that_fork_while_they_export_by_grpc_lose_nothing(
    folder: Path, authority: Authority
) -> None:
    collector = SecureCollector(folder, authority, asks_clients=False)
    collector.start()
    try:
        result = Program("", folder / "log", folder).run(
            """
            def child(name):
                for n in range(50):
                    record(f"{name}.{n}")
                delivered(name)

            children = []
            for n in range(8):
                for m in range(50):
                    record(f"parent.{n}.{m}")
                children.append(fork(lambda: child(f"child.{n}")))
            join(*children)
            delivered("parent")
            """,
            OTEL_BSP_SCHEDULE_DELAY="0",
            **variables(collector, authority, "grpc"),
        )
    finally:
        collector.stop()
    books = {name: (created, exported) for name, _, created, exported, _ in result.said}
    assert books == {"parent": (400, 400), **{f"child.{n}": (50, 50) for n in range(8)}}
    assert (result.messages, result.lines) == ([], [])
    assert len(collector.spans()) == 800
