"""A Collector that keeps what it is sent, and fails as it is told."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)
from opentelemetry.proto.trace.v1 import trace_pb2

from ports import hold_port, port_of

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Event:
    name: str
    time: int
    attributes: dict[str, Scalar]
    dropped: int = 0


@dataclass(frozen=True)
class Link:
    trace_id: str
    span_id: str
    trace_state: str
    attributes: dict[str, Scalar]
    dropped: int = 0


@dataclass(frozen=True)
class Scope:
    """The library that made a span."""

    name: str
    version: str
    schema_url: str
    attributes: dict[str, Scalar]


@dataclass(frozen=True)
class Span:
    """One span as it came over the wire; ids as hexadecimal digits."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    flags: int
    kind: str
    start: int
    end: int
    status: str
    message: str
    attributes: dict[str, Scalar]
    events: list[Event]
    resource: dict[str, Scalar]
    remote: bool
    """Its parent is in another process."""
    trace_state: str
    links: list[Link]
    dropped: tuple[int, int, int]
    """Attributes, events and links."""
    scope: Scope

    @property
    def pid(self) -> Scalar:
        return self.resource["process.pid"]


def scalars(pairs: Any) -> dict[str, Scalar]:
    return {p.key: scalar(p.value) for p in pairs}


def scalar(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [scalar(item) for item in value.array_value.values]
    return getattr(value, kind)


def decode(body: bytes) -> list[Span]:
    """The spans of an OTLP request."""
    spans = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in resource.scope_spans:
            library = Scope(
                scope.scope.name,
                scope.scope.version,
                scope.schema_url,
                scalars(scope.scope.attributes),
            )
            for s in scope.spans:
                events = [
                    Event(
                        e.name,
                        e.time_unix_nano,
                        scalars(e.attributes),
                        e.dropped_attributes_count,
                    )
                    for e in s.events
                ]
                links = [
                    Link(
                        link.trace_id.hex(),
                        link.span_id.hex(),
                        link.trace_state,
                        scalars(link.attributes),
                        link.dropped_attributes_count,
                    )
                    for link in s.links
                ]
                kind = trace_pb2.Span.SpanKind.Name(s.kind)
                status = trace_pb2.Status.StatusCode.Name(s.status.code)
                spans.append(
                    Span(
                        name=s.name,
                        trace_id=s.trace_id.hex(),
                        span_id=s.span_id.hex(),
                        parent_id=s.parent_span_id.hex(),
                        flags=s.flags & 0xFF,
                        kind=kind.removeprefix("SPAN_KIND_"),
                        start=s.start_time_unix_nano,
                        end=s.end_time_unix_nano,
                        status=status.removeprefix("STATUS_CODE_"),
                        message=s.status.message,
                        attributes=scalars(s.attributes),
                        events=events,
                        resource=scalars(resource.resource.attributes),
                        remote=bool(s.flags & 0x200),
                        trace_state=s.trace_state,
                        links=links,
                        dropped=(
                            s.dropped_attributes_count,
                            s.dropped_events_count,
                            s.dropped_links_count,
                        ),
                        scope=library,
                    )
                )
    return spans


def content(spans: list[Span]) -> list[dict[str, Any]]:
    """All that spans say, in order of time, but not what process said it."""
    said = [{k: v for k, v in vars(span).items() if k != "resource"} for span in spans]
    return sorted(said, key=lambda span: (span["start"], span["span_id"]))


Tree = list[tuple[str, "Tree"]]


def the(spans: list[Span], name: str) -> Span:
    """The only span of that name."""
    (span,) = [span for span in spans if span.name == name]
    return span


def forest(spans: list[Span]) -> Tree:
    """The names of spans, each over its children, in the order of their starts.

    No id is there twice, and a child is of its parent's trace and inside its time.
    """
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    for span in spans:
        if parent := by_id.get(span.parent_id):
            assert parent.trace_id == span.trace_id
            assert parent.start <= span.start <= span.end <= parent.end

    def below(parent: str | None) -> Tree:
        children = [s for s in spans if (s.parent_id if s.parent_id in by_id else None) == parent]
        children.sort(key=lambda s: (s.start, -s.end))
        return [(child.name, below(child.span_id)) for child in children]

    return below(None)


@dataclass
class Request:
    """What came with one export."""

    path: str
    headers: dict[str, str]
    body: bytes
    spans: list[Span]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A program that goes away in the middle is part of the game."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, ssl.SSLError)):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@dataclass
class Sink:
    """An OTLP/HTTP endpoint on 127.0.0.1.

    `script` names what the next exports meet, the last word again and again: `ok`, a
    status such as `503` or `503 retry-after 1`, `silent` (no answer), `reset` (half an
    answer), `slow` (ok, but late), `page` (200, and no Collector's). Only `ok` and `slow`
    take the spans. With `tls` the endpoint is encrypted.
    """

    script: list[str] = field(default_factory=lambda: ["ok"])
    spans: list[Span] = field(default_factory=list)
    refused: list[Span] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self.ending = threading.Event()
        self.connections: set[socket.socket] = set()
        self.server: ThreadingHTTPServer | None = None
        self.held = hold_port()
        self.start()

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        return port_of(self.held)

    def start(self) -> None:
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                if sink.tls:
                    self.request = sink.tls.wrap_socket(self.request, server_side=True)
                super().setup()
                sink.connections.add(self.connection)

            def finish(self) -> None:
                super().finish()
                sink.connections.discard(self.connection)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                sink.answer(self, body)

            def do_GET(self) -> None:
                """A web page: where a redirect of an export ends."""
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Closes the port and every connection."""
        if self.server is None:
            return
        self.server.shutdown()
        self.server.server_close()
        self.server = None
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.ending.set()
        self.stop()
        self.held.close()

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        headers = {key.lower(): value for key, value in handler.headers.items()}
        plain = gzip.decompress(body) if "content-encoding" in headers else body
        spans = decode(plain) if headers["content-type"] != "application/json" else []
        request = Request(handler.path, headers, plain, spans)
        with self.changed:
            word = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            self.requests.append(request)
            if word in ("ok", "slow"):
                self.spans.extend(spans)
            else:
                self.refused.extend(spans)
            self.changed.notify_all()
        if word == "silent":
            self.ending.wait(120)
            handler.close_connection = True
        elif word == "reset":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            handler.wfile.flush()
            linger = struct.pack("ii", 1, 0)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            handler.connection.close()
            handler.close_connection = True
        else:
            if word == "slow":
                time.sleep(0.5)
            status, _, after = word.partition(" retry-after ")
            code = int(status) if status.isdigit() else 200
            handler.send_response(code)
            if after:
                handler.send_header("Retry-After", after)
            if word == "302":
                handler.send_header("Location", "/page")
            page = b"<!doctype html><title>Grafana</title>" if word == "page" else b""
            if page:
                handler.send_header("Content-Type", "text/html")
            handler.send_header("Content-Length", str(len(page)))
            handler.end_headers()
            handler.wfile.write(page)

    def wait(self, holds: Callable[[Sink], object], seconds: float = 30) -> None:
        """Until `holds(self)`; an assertion fails when it takes too long."""
        with self.changed:
            assert self.changed.wait_for(lambda: holds(self), seconds)

    def json(self) -> list[Any]:
        return [json.loads(request.body) for request in self.requests]
