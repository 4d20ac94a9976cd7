"""The network between omnitrace and the Collector: a proxy that fails as it is told.

It knows of every request whether the Collector may have got it and whether the whole answer went
back. Where an answer was lost, OTLP lets the same spans come again; nowhere else.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import otlp
from ports import free_ports
from traces import Key, label_of

FAIR = "fair"
STATUS = {"429": 429, "503": 503, "400": 400}
CLOSED = {"refused", "black hole"}
"""No port to connect to."""
KINDS = [*STATUS, *CLOSED, "silent", "reset", "cut", "slow", "late"]
"""`cut`: the Collector takes it, half the answer arrives. `late`: the answer comes when nobody
waits for it any more. `black hole`: no answer even to a connection attempt."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what this is for."""


@dataclass
class Answer:
    """What goes back to a sender."""

    status: int
    body: bytes = b""
    content_type: str | None = None


class Weather:
    """A proxy on 127.0.0.1 to the Collector's port; `patience` is how long clients wait."""

    def __init__(self, collector: int, patience: float) -> None:
        self.collector = collector
        self.patience = patience
        self.kind = FAIR
        self.changed = threading.Condition()
        self.connections: set[socket.socket] = set()
        self.answered: Counter[Key] = Counter()
        self.unanswered: Counter[Key] = Counter()
        self.exported: Counter[int] = Counter()
        """Spans that got a whole answer, by the label of their process."""
        self.requests: Counter[str] = Counter()
        self.server: Server | None = None
        self.hole: list[socket.socket] = []
        (self.port,) = free_ports(1)
        self._open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def become(self, kind: str) -> None:
        with self.changed:
            was, self.kind = self.kind, kind
            self.changed.notify_all()
        if was in CLOSED and kind not in CLOSED:
            self._open()
        if kind in CLOSED and was not in CLOSED:
            self.close()
        if kind == "black hole":
            self._dig()

    def _open(self) -> None:
        for each in self.hole:
            each.close()
        self.hole = []
        weather = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                weather.connections.add(self.connection)

            def finish(self) -> None:
                weather.connections.discard(self.connection)
                super().finish()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                weather.meet(self, body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Closes the port and every connection."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _dig(self) -> None:
        """A listener whose queue is full: further attempts to connect get no answer."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(0)
        self.hole = [listener]
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(("127.0.0.1", self.port))
            self.hole.append(filler)

    def meet(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        """One request meets the weather of the moment."""
        kind = self.kind
        self.requests[kind] += 1
        handler.close_connection = kind != FAIR
        if kind in STATUS:
            return self._answer(handler, Answer(STATUS[kind]))
        if kind == "silent":
            with self.changed:
                self.changed.wait_for(lambda: self.kind != kind, 120)
            return None
        if kind == "reset":
            return self._reset(handler)
        keys = [span.key for span in otlp.spans(body, handler.headers)]
        with self.changed:
            # Until the answer has gone back whole; a connection that breaks is an exception.
            self.unanswered.update(keys)
        answer = self._pass_on(handler, body)
        if kind == "slow":
            time.sleep(self.patience / 4)
        if kind == "late":
            time.sleep(self.patience * 2)
        if answer is None or self._is_gone(handler):
            handler.close_connection = True
            return None
        if kind == "cut":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            return self._reset(handler)
        self._answer(handler, answer)
        if answer.status == 200:
            with self.changed:
                self.unanswered.subtract(keys)
                self.answered.update(keys)
                self.exported.update(label_of(key) for key in keys)
        return None

    def _pass_on(self, handler: BaseHTTPRequestHandler, body: bytes) -> Answer | None:
        """The Collector's answer; none if it breaks off or cannot be reached."""
        kept = ("Content-Type", "Content-Encoding")
        headers = {name: handler.headers[name] for name in kept if handler.headers[name]}
        collector = http.client.HTTPConnection("127.0.0.1", self.collector, timeout=60)
        try:
            collector.request("POST", handler.path, body, headers)
            response = collector.getresponse()
            kind = response.headers["Content-Type"]
            return Answer(response.status, response.read(), kind)
        except (OSError, http.client.HTTPException):
            return None
        finally:
            collector.close()

    def _is_gone(self, handler: BaseHTTPRequestHandler) -> bool:
        """Whether the client has hung up."""
        try:
            return not handler.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _answer(self, handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        handler.send_response(answer.status)
        if answer.status == 429:
            handler.send_header("Retry-After", "1")
        if answer.content_type:
            handler.send_header("Content-Type", answer.content_type)
        handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        handler.wfile.write(answer.body)

    def _reset(self, handler: BaseHTTPRequestHandler) -> None:
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.connection.close()
        handler.close_connection = True
