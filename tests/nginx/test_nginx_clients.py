"""What clients may do with a connection, and what nginx answers by itself."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler

import pytest
from nginx_peers import Collector, Received, StartUpstream
from nginx_server import Nginx, get, raw, tracing
from nginx_trees import call, root, trees

BARE = {"server.address": "x", "user_agent.original": None}


def curl(*arguments: str) -> str:
    program = shutil.which("curl")
    assert program, "curl is missing: apt-get install curl"
    command = [program, "--silent", "--max-time", "10", "--user-agent", "test", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_requests_over_http2_are_traced_like_others(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    server = upstream()
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port} http2;
            location / {{ return 200 own; }}
            location /proxied {{ proxy_pass http://{server.address}; }}
        }}"""
    )
    said = [curl("--http2-prior-knowledge", f"{nginx.url}/{path}") for path in ("", "proxied")]
    assert said == ["own", "ok"]
    nginx.stop()
    names = {**nginx.names, server.port: "<upstream>"}
    two = {"network.protocol.version": "2"}
    assert trees(collector.spans, names) == [
        root("/", "/", more=two),
        root("/proxied", "/proxied", children=[call()], more=two),
    ]


def test_requests_that_come_at_once_are_told_apart(nginx: Nginx, collector: Collector) -> None:
    nginx.start(
        f"""{tracing(collector)}
        server {{ listen 127.0.0.1:{nginx.port}; location / {{ return 200; }} }}"""
    )
    one = b"GET /%d HTTP/1.1\r\nHost: x\r\nX-Request-Id: r%d\r\n\r\n"
    last = b"GET /3 HTTP/1.1\r\nHost: x\r\nX-Request-Id: r3\r\nConnection: close\r\n\r\n"
    answer = raw(nginx, one % (1, 1) + one % (2, 2) + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    nginx.stop()
    expected = [root(f"/{n}", "/", id=f"r{n}", more=BARE) for n in (1, 2, 3)]
    assert trees(collector.spans, nginx.names) == expected


def test_an_upgraded_connection_is_one_call_until_it_ends(
    nginx: Nginx, collector: Collector
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def echo() -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
        )
        connection.sendall(connection.recv(100))
        connection.close()

    threading.Thread(target=echo, daemon=True).start()
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{
                proxy_pass http://127.0.0.1:{port}; proxy_http_version 1.1;
                proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;
            }}
        }}"""
    )
    with socket.create_connection(("127.0.0.1", nginx.port), timeout=10) as connection:
        connection.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(65536)
        connection.sendall(b"hello")
        while piece := connection.recv(65536):
            answer += piece
    assert answer.endswith(b"hello")
    listener.close()
    nginx.stop()
    names = {**nginx.names, port: "<upstream>"}
    assert trees(collector.spans, names) == [root("/", "/", 101, children=[call(101)], more=BARE)]


def test_a_client_that_leaves_before_its_answer_is_a_499(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    asked, left = threading.Event(), threading.Event()

    def say_nothing(_: BaseHTTPRequestHandler, __: Received) -> None:
        asked.set()
        left.wait(10)

    server = upstream(say_nothing)
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ proxy_pass http://{server.address}; }}
        }}"""
    )
    with socket.create_connection(("127.0.0.1", nginx.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert asked.wait(10)
    nginx.wait_for(lambda: len(collector.spans) == 2, "no spans")
    left.set()
    nginx.stop()
    names = {**nginx.names, server.port: "<upstream>"}
    gone = {**BARE, "omnitrace.client_closed": True}
    client = call(None, error="client_closed")
    assert trees(collector.spans, names) == [root("/", "/", 499, children=[client], more=gone)]


@pytest.mark.parametrize("what", ["limit", "page"])
def test_what_nginx_answers_in_a_later_phase_is_a_root_alone(
    what: str, nginx: Nginx, collector: Collector
) -> None:
    limited = "limit_req zone=z;" if what == "limit" else "deny all; error_page 403 =503 /sorry;"
    nginx.start(
        f"""{tracing(collector)} limit_req_zone $remote_addr zone=z:1m rate=1r/m;
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ {limited} alias /nonexistent; }}
            location /sorry {{ return 200 sorry; }}
        }}"""
    )
    statuses = [get(nginx, "/a").status, get(nginx, "/b").status]
    assert statuses == ([404, 503] if what == "limit" else [503, 503])
    nginx.stop()
    expected = [root(p, "/", s) for p, s in zip(("/a", "/b"), statuses, strict=True)]
    assert trees(collector.spans, nginx.names) == expected


def test_a_pool_without_a_living_server_is_a_call_that_says_so(
    nginx: Nginx, collector: Collector
) -> None:
    nginx.start(
        f"""{tracing(collector)}
        upstream pool {{ server 127.0.0.1:1 down; server 127.0.0.1:2 down; }}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ proxy_pass http://pool; }}
        }}"""
    )
    assert get(nginx).status == 502
    nginx.stop()
    none = call(None, error="no_live_upstreams", to="<none>", more={"server.address": "pool"})
    none[3].pop("server.port")
    assert trees(collector.spans, nginx.names) == [root("/", "/", 502, children=[none])]
