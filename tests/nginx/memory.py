"""A load on an nginx that runs under valgrind: no invalid access, nothing lost.

    python tests/nginx/memory.py REQUESTS

`make valgrind`. nginx is one process, so that one report has everything; what it is asked goes
through every hook of the module, well-formed and not.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from nginx_peers import Collector, Upstream, hang_up, reply, stream
from nginx_server import MODULE, Nginx, raw

# What each round of wrk asks for; each path is another way through the module.
PATHS = ("/", "/proxied", "/retried", "/stream", "/subrequests", "/variable", "/missing")
# Blocks that are there for good, however many requests there were; it is some 350.
MOST_KEPT = 1000
CHUNK = b'data: {"choices":[{"delta":{"content":"word"}}]}\n\n'
ODD = [
    b"NONSENSE\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 9000),
    b"GET /\r\n",
    b"GET /proxied HTTP/1.1\r\nHost: x\r\ntraceparent: 00-zz\r\ntraceparent: \xff\r\n"
    b"X-Request-Id: %s\r\nConnection: close\r\n\r\n" % (b"\xff" * 600),
    b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n"
    b"tracestate: a=b,,c\r\n\r\n",
]


def main() -> None:
    wanted = int(sys.argv[1])
    valgrind = shutil.which("valgrind")
    assert valgrind, "valgrind is missing: apt-get install valgrind"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        collector = Collector()
        stack.callback(collector.close)
        arrived = 0

        def count(body: bytes) -> None:
            nonlocal arrived
            arrived += len(body)

        collector.take = count  # type: ignore[method-assign]
        servers = [Upstream(reply()), Upstream(hang_up), Upstream(stream([CHUNK] * 20))]
        for server in servers:
            stack.callback(server.close)
            # wrk leaves in the middle of answers.
            server.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        nginx = Nginx(folder)
        nginx.configure(_site(nginx, collector, *servers), "daemon off; master_process off;")
        report = folder / "valgrind.log"
        command = [
            valgrind, "--leak-check=full", "--show-leak-kinds=definite",
            "--errors-for-leak-kinds=none", "--num-callers=30",
            f"--log-file={report}", *nginx.command(),
        ]  # fmt: skip
        nginx.process = subprocess.Popen(command, env={**os.environ, "RUST_BACKTRACE": "0"})
        nginx.wait_for(nginx.answers, "nginx does not listen")
        done = _load(nginx, servers, wanted)
        _quit(nginx.process)
        text = report.read_text()
        books = nginx.books()
    print(f"{done} requests, {arrived} bytes of spans, books {books}")
    errors = re.findall(r"ERROR SUMMARY: (\d+) errors", text)
    [(kept, blocks)] = re.findall(r"in use at exit: ([\d,]+) bytes in ([\d,]+) blocks", text)
    # nginx forgets a few bytes of its own at its end.
    losses = re.split(r"\n==\d+== \n", text)
    ours = [loss for loss in losses if " lost in loss record " in loss and "omnitrace" in loss]
    print(f"errors: {errors[0]}; lost: {len(ours)} blocks; kept: {kept} bytes in {blocks} blocks")
    if errors != ["0"] or ours or int(blocks.replace(",", "")) > MOST_KEPT:
        print(text)
        raise SystemExit(1)


def _quit(process: subprocess.Popen[bytes]) -> None:
    # A signal that comes just before nginx waits for events is seen with the next one.
    for _ in range(60):
        process.send_signal(signal.SIGQUIT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert process.wait(timeout=10) == 0
            return
    raise TimeoutError("nginx does not end")


def _site(nginx: Nginx, collector: Collector, good: Upstream, bad: Upstream, llm: Upstream) -> str:
    return f"""
        omnitrace on; omnitrace_legacy_log off;
        omnitrace_span_attr app.path $uri;
        omnitrace_exporter {{ endpoint {collector.url}; interval 200ms; }}
        upstream both {{ server {bad.address}; server {good.address}; }}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ return 200 $omnitrace_trace_id; }}
            location /proxied {{ proxy_pass http://{good.address}; }}
            location /retried {{ proxy_pass http://both; }}
            location /stream {{ proxy_buffering off; proxy_pass http://{llm.address}; }}
            location /subrequests {{ mirror /mirror; proxy_pass http://{good.address}; }}
            location /mirror {{ internal; proxy_pass http://{good.address}; }}
            location /variable {{ set $to {good.address}; proxy_pass http://$to; }}
            location /missing {{ root /nonexistent; error_page 404 = /proxied; }}
        }}"""


def _load(nginx: Nginx, servers: list[Upstream], wanted: int) -> int:
    done = 0
    while done < wanted:
        for path in PATHS:
            command = ["wrk", "-t1", "-c8", "-d2s", f"{nginx.url}{path}"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            done += int(re.findall(r"(\d+) requests in", said)[0])
        for request in ODD:
            raw(nginx, request)
        done += len(ODD)
        for server in servers:
            server.received.clear()
        print(f"{done} requests", file=sys.stderr)
    return done


if __name__ == "__main__":
    assert Path(MODULE).exists(), f"{MODULE} is missing: make module"
    main()
