"""Encrypted ways to a Collector, by the environment and by `init`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from authority import Authority
from program import Program
from sink import Sink

NOTHING = "nothing is exported, spans go to the legacy log"
ONE_SPAN = """
record("one")
say([flush(), stats()["exported"], stats()["logged"]])
"""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.new(tmp_path)


@pytest.fixture
def secure(authority: Authority) -> Iterator[Sink]:
    """A Collector that talks to clients of the authority alone."""
    sink = Sink(tls=authority.context(asks_clients=True))
    yield sink
    sink.close()


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json"])
def test_both_ends_show_their_certificates(
    program: Program, secure: Sink, authority: Authority, protocol: str
) -> None:
    by_variables = program.run(
        ONE_SPAN,
        OTEL_EXPORTER_OTLP_ENDPOINT=secure.url,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_EXPORTER_OTLP_CERTIFICATE=authority.trusted,
        OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=authority.client,
        OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY=authority.client_key,
    )
    by_arguments = program.run(
        f"""
        init(endpoint="{secure.url}", protocol="{protocol}", certificate="{authority.trusted}",
            client_certificate="{authority.client}", client_key="{authority.client_key}")
        """
        + ONE_SPAN.replace("\n", "\n        "),
        OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE="/nowhere",
        OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY="/nowhere",
    )
    for result in (by_variables, by_arguments):
        assert (result.said, result.messages) == ([[True, 1, 0]], [])
    assert len(secure.requests) == 2


def test_a_client_without_a_certificate_has_its_spans_in_the_log(
    program: Program, secure: Sink, authority: Authority
) -> None:
    result = program.run(
        ONE_SPAN,
        OTEL_EXPORTER_OTLP_ENDPOINT=secure.url,
        OTEL_EXPORTER_OTLP_CERTIFICATE=authority.trusted,
    )
    assert result.said == [[True, 0, 1]]
    assert (secure.requests, len(result.lines)) == ([], 1)
    [(level, message)] = result.messages
    assert level == "WARNING" and "CertificateRequired" in message


def test_a_file_that_is_missing_is_said_once_and_everything_is_logged(
    program: Program, secure: Sink
) -> None:
    result = program.run(
        ONE_SPAN,
        OTEL_EXPORTER_OTLP_ENDPOINT=secure.url,
        OTEL_EXPORTER_OTLP_CERTIFICATE="/nowhere/authority.pem",
    )
    assert result.said == [[True, 0, 1]] and len(result.lines) == 1
    assert result.messages == [
        (
            "WARNING",
            'OTEL_EXPORTER_OTLP_CERTIFICATE="/nowhere/authority.pem" cannot be read (No such file '
            "or directory (os error 2)); it must name a PEM file of trusted certificates: "
            f"{NOTHING}",
        )
    ]


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json", "grpc"])
def test_a_machine_that_trusts_nobody_can_export_in_plain_and_is_told_the_cure_otherwise(
    program: Program, sink: Sink, protocol: str
) -> None:
    nobody = {"SSL_CERT_FILE": "/nowhere", "SSL_CERT_DIR": "/nowhere"}
    if protocol != "grpc":
        result = program.run(ONE_SPAN, OTEL_EXPORTER_OTLP_PROTOCOL=protocol, **nobody)
        assert (result.said, result.messages) == ([[True, 1, 0]], [])
    result = program.run(
        ONE_SPAN,
        OTEL_EXPORTER_OTLP_ENDPOINT="https://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        **nobody,
    )
    assert result.said == [[True, 0, 1]] and len(result.lines) == 1
    assert result.messages == [
        (
            "ERROR",
            "this machine has no certificates of authorities that could be trusted; "
            "OTEL_EXPORTER_OTLP_CERTIFICATE can name a file of them; spans go to the legacy log",
        )
    ]
