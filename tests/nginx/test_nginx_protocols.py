"""Upstreams that nginx speaks another protocol with than HTTP/1: their tries are calls too, and
those that are told of a request's headers are told of its trace."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from nginx_peers import Collector
from nginx_server import Nginx, get, tracing
from nginx_trees import call, root, trees

from ports import hold_port, port_of

CGI = b"Status: 200 OK\r\nContent-Type: text/plain\r\n\r\nok"


def record(kind: int, content: bytes) -> bytes:
    """A record of FastCGI for the request 1."""
    head = [1, kind, *(1).to_bytes(2, "big"), *len(content).to_bytes(2, "big"), 0, 0]
    return bytes(head) + content


ANSWERS = {
    "fastcgi": record(6, CGI) + record(6, b"") + record(3, bytes(8)),
    "scgi": CGI,
    "uwsgi": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nok",
    "memcached": b"VALUE /x 0 2\r\nok\r\nEND\r\n",
}
DIRECTIVES = {
    "fastcgi": "fastcgi_pass {};",
    "scgi": "scgi_pass {};",
    "uwsgi": "uwsgi_pass {};",
    "memcached": "set $memcached_key $uri; memcached_pass {};",
}


@contextmanager
def speaks(answer: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A server that gives this answer; where it listens, and what it has been sent."""
    received: list[bytes] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            received.append(self.request.recv(65536))
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1], received
        finally:
            server.shutdown()


@pytest.mark.parametrize("protocol", ANSWERS)
def test_a_try_in_any_protocol_is_a_call(nginx: Nginx, collector: Collector, protocol: str) -> None:
    with speaks(ANSWERS[protocol]) as (port, received):
        nginx.start(
            f"""{tracing(collector)}
            server {{
                listen 127.0.0.1:{nginx.port};
                location / {{ {DIRECTIVES[protocol].format(f"127.0.0.1:{port}")} }}
            }}"""
        )
        assert get(nginx, "/x").text == "ok"
        nginx.stop()
    names = {**nginx.names, port: "<upstream>"}
    assert trees(collector.spans, names) == [root("/x", "/", children=[call()])]
    [client] = collector.named("Upstream request")
    (request,) = received
    told = f"00-{client.trace_id}-{client.span_id}-01".encode()
    # memcached's protocol has no headers.
    assert (told in request) == (protocol != "memcached")
    assert (b"HTTP_TRACEPARENT" in request) == (protocol != "memcached")


def test_a_try_by_grpc_is_a_call(nginx: Nginx, collector: Collector) -> None:
    with hold_port() as held:
        port = port_of(held)
        nginx.start(
            f"""{tracing(collector)}
            server {{
                listen 127.0.0.1:{nginx.port};
                location / {{ grpc_pass grpc://127.0.0.1:{port}; }}
            }}
            server {{
                listen 127.0.0.1:{port} http2;
                omnitrace off;
                location / {{ return 200 $http_traceparent; }}
            }}"""
        )
        told = get(nginx, "/x").text
        nginx.stop()
    names = {**nginx.names, port: "<upstream>"}
    assert trees(collector.spans, names) == [root("/x", "/", children=[call()])]
    [client] = collector.named("Upstream request")
    assert told == f"00-{client.trace_id}-{client.span_id}-01"
