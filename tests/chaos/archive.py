"""Behind the Collector: keeps the ids of all that it passes on."""

from __future__ import annotations

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import otlp
from traces import Key


class Archive:
    """An OTLP/HTTP endpoint on 127.0.0.1 that takes everything."""

    def __init__(self) -> None:
        archive = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                archive.keep(otlp.spans(body, self.headers))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.lock = threading.Lock()
        self.seen: Counter[Key] = Counter()
        self.span_ids: dict[Key, int] = {}
        self.contradictions: list[Key] = []
        self.total = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def keep(self, spans: list[otlp.Span]) -> None:
        with self.lock:
            self.total += len(spans)
            for span in spans:
                self.seen[span.key] += 1
                if self.span_ids.setdefault(span.key, span.span_id) != span.span_id:
                    self.contradictions.append(span.key)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
