"""What nginx talks to: a Collector that keeps what it gets, and upstreams."""

from __future__ import annotations

import gzip
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass
class Span:
    """A span as the Collector got it."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start: int
    end: int
    error: bool
    attributes: dict[str, Any]
    events: list[str]
    service: str


def decode_value(value: AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")


class Collector:
    """OTLP/HTTP on a port of its own, encrypted if it gets `tls`.

    `status` is what it answers; 200 keeps the spans.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.status = 200
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if collector.status == 200:
                    collector.take(body)
                    collector.headers.append(dict(self.headers))
                    collector.paths.append(self.path)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            described = {a.key: decode_value(a.value) for a in resource.resource.attributes}
            self.resources.append(described)
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        Span(
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            name=span.name,
                            kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                            start=span.start_time_unix_nano,
                            end=span.end_time_unix_nano,
                            error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
                            attributes={a.key: decode_value(a.value) for a in span.attributes},
                            events=[e.name for e in span.events],
                            service=described["service.name"],
                        )
                    )

    def named(self, name: str) -> list[Span]:
        return sorted((s for s in self.spans if s.name == name), key=lambda s: s.start)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@dataclass
class Received:
    """A request as an upstream got it: header names in lower case, all values of each."""

    method: str
    path: str
    headers: dict[str, list[str]]
    body: bytes


Answer = Callable[[BaseHTTPRequestHandler, Received], None]
StartUpstream = Callable[..., "Upstream"]


def reply(status: int = 200, body: bytes = b"ok", headers: dict[str, str] | None = None) -> Answer:
    def answer(handler: BaseHTTPRequestHandler, _: Received) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hang_up(handler: BaseHTTPRequestHandler, _: Received) -> None:
    """Closes the connection without an answer."""
    handler.close_connection = True


def stream(pieces: list[bytes], content_type: str = "text/event-stream") -> Answer:
    """A chunked answer, each piece in a chunk and a write of its own."""

    def answer(handler: BaseHTTPRequestHandler, _: Received) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")

    return answer


class Upstream:
    """An HTTP server that notes what it gets and answers what it is told."""

    def __init__(self, answer: Answer) -> None:
        self.received: list[Received] = []
        self.answer = answer
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(self) -> None:
                names = {name.lower() for name in self.headers}
                request = Received(
                    method=self.command,
                    path=self.path,
                    headers={name: self.headers.get_all(name, []) for name in names},
                    body=self.rfile.read(int(self.headers.get("Content-Length", 0))),
                )
                upstream.received.append(request)
                upstream.answer(self, request)

            do_GET = do_POST = do_HEAD = serve

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.address = f"127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def header(self, name: str, request: int = -1) -> list[str]:
        return self.received[request].headers.get(name, [])

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
