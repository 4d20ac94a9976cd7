"""A load on an nginx whose memory is watched: no invalid access, nothing lost.

    python tests/nginx/memory.py valgrind|asan REQUESTS

`make valgrind` and `make asan`. What nginx is asked goes through every hook of the module,
well-formed and not. Under valgrind it is one process, so that one report has everything. With
AddressSanitizer (nginx and module built by asan.sh) it has workers and is reloaded again and
again, until the last third of the requests, which one worker answers: its memory must not grow.
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
from collections.abc import Iterator
from pathlib import Path

from nginx_peers import Collector, Upstream, hang_up, reply, stream
from nginx_server import MODULE, Nginx, raw

# What each round of wrk asks for; each path is another way through the module.
PATHS = ("/", "/proxied", "/retried", "/stream", "/subrequests", "/variable", "/missing")
# Blocks that are there for good, however many requests there were; it is some 350.
MOST_KEPT = 1000
# Bytes that the last worker may grow by: some for each of its requests, for what the sanitizer
# keeps varies. The smallest block lost per request would be more.
MOST_GROWN = 4 << 20
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


class Load:
    """An nginx with the servers behind it, and what it is asked."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.collector = Collector()
        stack.callback(self.collector.close)
        self.bytes_of_spans = 0
        self.done = 0

        def count(body: bytes) -> None:
            self.bytes_of_spans += len(body)

        self.collector.take = count  # type: ignore[method-assign]
        self.servers = [Upstream(reply()), Upstream(hang_up), Upstream(stream([CHUNK] * 20))]
        for server in self.servers:
            stack.callback(server.close)
            # wrk leaves in the middle of answers.
            server.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.nginx = Nginx(self.folder)

    def site(self) -> str:
        good, bad, llm = self.servers
        return f"""
            omnitrace on; omnitrace_legacy_log off;
            omnitrace_span_attr app.path $uri;
            omnitrace_exporter {{ endpoint {self.collector.url}; interval 200ms; }}
            upstream both {{ server {bad.address}; server {good.address}; }}
            server {{
                listen 127.0.0.1:{self.nginx.port};
                location / {{ return 200 $omnitrace_trace_id; }}
                location /proxied {{ proxy_pass http://{good.address}; }}
                location /retried {{ proxy_pass http://both; }}
                location /stream {{ proxy_buffering off; proxy_pass http://{llm.address}; }}
                location /subrequests {{
                    mirror /mirror; mirror /answered; proxy_pass http://{good.address};
                }}
                location /mirror {{ internal; proxy_pass http://{good.address}; }}
                location /answered {{ internal; return 503; }}
                location /variable {{ set $to {good.address}; proxy_pass http://$to; }}
                location /missing {{ root /nonexistent; error_page 404 = /proxied; }}
            }}"""

    def rounds(self, wanted: int) -> Iterator[int]:
        """Asks for everything again and again, and says how many requests there were."""
        while self.done < wanted:
            for path in PATHS:
                command = ["wrk", "-t1", "-c8", "-d2s", f"{self.nginx.url}{path}"]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                self.done += int(re.findall(r"(\d+) requests in", said)[0])
            for request in ODD:
                raw(self.nginx, request)
            self.done += len(ODD)
            for server in self.servers:
                server.received.clear()
            print(f"{self.done} requests", file=sys.stderr)
            yield self.done

    def said(self) -> str:
        return f"{self.done} requests, {self.bytes_of_spans} bytes of spans"


def main() -> None:
    tool, wanted = sys.argv[1], int(sys.argv[2])
    with contextlib.ExitStack() as stack:
        {"valgrind": under_valgrind, "asan": with_asan}[tool](Load(stack), wanted)


def under_valgrind(load: Load, wanted: int) -> None:
    valgrind = shutil.which("valgrind")
    assert valgrind, "valgrind is missing: apt-get install valgrind"
    nginx = load.nginx
    nginx.configure(load.site(), "daemon off; master_process off;")
    report = load.folder / "valgrind.log"
    command = [
        valgrind, "--leak-check=full", "--show-leak-kinds=definite",
        "--errors-for-leak-kinds=none", "--num-callers=30",
        f"--log-file={report}", *nginx.command(),
    ]  # fmt: skip
    nginx.process = subprocess.Popen(command, env={**os.environ, "RUST_BACKTRACE": "0"})
    nginx.wait_for(nginx.answers, "nginx does not listen")
    for _ in load.rounds(wanted):
        pass
    _quit(nginx.process)
    text = report.read_text()
    print(f"{load.said()}, books {nginx.books()}")
    errors = re.findall(r"ERROR SUMMARY: (\d+) errors", text)
    [(kept, blocks)] = re.findall(r"in use at exit: ([\d,]+) bytes in ([\d,]+) blocks", text)
    # nginx forgets a few bytes of its own at its end.
    losses = re.split(r"\n==\d+== \n", text)
    ours = [loss for loss in losses if " lost in loss record " in loss and "omnitrace" in loss]
    print(f"errors: {errors[0]}; lost: {len(ours)} blocks; kept: {kept} bytes in {blocks} blocks")
    if errors != ["0"] or ours or int(blocks.replace(",", "")) > MOST_KEPT:
        print(text)
        raise SystemExit(1)


def with_asan(load: Load, wanted: int) -> None:
    nginx = load.nginx
    report = load.folder / "asan"
    options = {
        "log_path": report, "detect_leaks": 1, "abort_on_error": 0, "exitcode": 99,
        # What was freed is kept for a while, to be seen if it is used: less than by default, so
        # that memory stands still soon.
        "quarantine_size_mb": 16, "malloc_context_size": 20,
    }  # fmt: skip
    if symbolizer := shutil.which("llvm-symbolizer") or shutil.which("llvm-symbolizer-14"):
        options["external_symbolizer_path"] = symbolizer
    text = ":".join(f"{name}={value}" for name, value in options.items())
    nginx.start(load.site(), environment={"ASAN_OPTIONS": text, "RUST_BACKTRACE": "0"})
    reloads, sizes = 0, []
    for done in load.rounds(wanted):
        if done < wanted * 2 // 3:
            reloads += 1
            nginx.reload()
        else:
            [worker] = nginx.workers()
            sizes.append(_resident(worker))
    nginx.stop()
    nginx.assert_healthy()
    # It goes up and down by some MiB: the later half against the earlier one.
    middle = max(1, len(sizes) // 2)
    later = sizes[middle:] or sizes
    grown = sum(later) // len(later) - sum(sizes[:middle]) // middle
    reports = [path.read_text(errors="replace") for path in load.folder.glob("asan.*")]
    # nginx forgets a few bytes of its own at its end.
    bad = [text for text in reports if "ERROR: AddressSanitizer" in text or "omnitrace" in text]
    books = nginx.books()
    lost = sum(book["dropped"] + book["events lost"] for book in books)
    spans = sum(book["exported"] for book in books)
    print(
        f"{load.said()}, {spans} spans exported, {lost} lost; {reloads} reloads; "
        f"{len(bad)} errors in {len(reports)} reports; the last worker has grown by {grown >> 10} KiB from "
        f"{sizes[0] >> 10} KiB in {len(sizes)} rounds"
    )
    if bad or lost or grown > MOST_GROWN:
        print("\n".join(bad))
        print("sizes in KiB:", [size >> 10 for size in sizes])
        raise SystemExit(1)


def _resident(process: int) -> int:
    """Bytes of memory that a process has."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) << 10


def _quit(process: subprocess.Popen[bytes]) -> None:
    # A signal that comes just before nginx waits for events is seen with the next one.
    for _ in range(60):
        process.send_signal(signal.SIGQUIT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert process.wait(timeout=10) == 0
            return
    raise TimeoutError("nginx does not end")


if __name__ == "__main__":
    assert Path(MODULE).exists(), f"{MODULE} is missing: make module"
    main()
