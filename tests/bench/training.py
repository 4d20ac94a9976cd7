"""What a profile-guided build of the wheel is trained with: `make wheel PGO=1`.

    python tests/bench/training.py

Records with each of omnitrace's interfaces what a server records, to a receiver that takes
everything.
"""

from __future__ import annotations

import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from contestants import (
    Omnitrace,
    OmnitraceActions,
    OmnitraceOpenTelemetry,
    OmnitraceOpenTelemetryBlocks,
    OmnitraceSpans,
    request_ids,
)

BURSTS = 100
PAUSE = 0.01
"""Seconds between bursts: what does not come at once is recorded too."""
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Taker(BaseHTTPRequestHandler):
    """Takes every export."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Reads it and says that all is well."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class Contexts(Omnitrace):
    """A request's context on its way through a server's processes."""

    def record(self) -> None:
        """As for a thousand requests."""
        extract, inject = self.omnitrace.extract, self.omnitrace.inject
        headers = [(b"host", b"localhost"), (b"traceparent", TRACEPARENT.encode())]
        for request in request_ids(0, 1_000):
            extract(headers, request)
            carrier: dict[str, str] = {}
            inject(carrier, request)
            extract(carrier, request)


def main() -> None:
    """Trains."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Taker)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "OMNITRACE_LEGACY_LOG": "off",
        "ROLE": "prefill",
    }
    kinds: list[type[Omnitrace]] = [
        OmnitraceSpans,
        OmnitraceActions,
        Contexts,
        # Last: from then on omnitrace's own blocks are seen by OpenTelemetry.
        OmnitraceOpenTelemetry,
        OmnitraceOpenTelemetryBlocks,
    ]
    for kind in kinds:
        contestant = kind()
        for burst in range(BURSTS):
            contestant.prepare(burst)
            contestant.record()
            time.sleep(PAUSE)
        contestant.flush()
    server.shutdown()


if __name__ == "__main__":
    main()
