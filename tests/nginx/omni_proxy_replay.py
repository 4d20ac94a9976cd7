"""Replays what a real Omni Proxy wrote into its log: the lines of one request each.

The captures are from nginx 1.28 with Omni Proxy's modules in front of stand-ins for vLLM.
omni_proxy/ngx_http_replay_module.c logs them again, at the pace at which they were written.
"""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nginx_server import REPOSITORY, Nginx

FOLDER = Path(__file__).parent / "omni_proxy"

LINE = re.compile(r"\S+ \S+ \[info\] (\d+)#\d+: (\*\d+ )?(.*)")
TRAILER = re.compile(r'(.*?)(?: while ([a-z ]+))?, client: .*?(?:, upstream: "([^"]*)")?, host: .*')
ACTION = re.compile(r"<<<Action: ([^;]*); Timestamp:(\d+)\.(\d{6}); RequestID:(.*)")


@dataclass(frozen=True)
class Step:
    """A line as the module is told to write it, in microseconds since boot."""

    worker: str
    of_request: bool
    due: int
    message: str
    doing: str = ""
    upstream: str = ""

    def shifted(self, by: int) -> Step:
        """The same later."""
        due = self.due + by
        stamp = f"Timestamp:{due // 1_000_000}.{due % 1_000_000:06d};"
        return replace(self, due=due, message=re.sub(r"Timestamp:[\d.]+;", stamp, self.message))

    def text(self) -> str:
        kind = "request" if self.of_request else "cycle"
        return f"{kind}\t{self.due}\t{self.doing}\t{self.upstream}\t{self.message}\n"


@dataclass(frozen=True)
class Capture:
    """The lines of one request, from where Omni Proxy gets it."""

    steps: tuple[Step, ...]
    request_id: str
    made_context: str | None

    @classmethod
    def read(cls, name: str) -> Capture:
        steps: list[Step] = []
        made_context = None
        for line in (FOLDER / f"{name}.log").read_text().splitlines():
            found = LINE.fullmatch(line)
            assert found, line
            worker, connection, message = found.groups()
            doing = upstream = None
            if connection:
                trailer = TRAILER.fullmatch(message)
                if not trailer:
                    # Of the connection, when the request is over.
                    continue
                message, doing, upstream = trailer.groups()
            if made := re.match(r"\*{4}Action: Inject Traceparent.*trace_headers:(\S+)", message):
                made_context = made[1]
            action = ACTION.match(message)
            if action and action[1] != "Start to schedule":
                due = int(action[2] + action[3])
            elif steps:
                due = steps[-1].due
            else:
                continue
            step = Step(worker, connection is not None, due, message, doing or "", upstream or "")
            steps.append(step)
        last = ACTION.match(steps[0].message)
        assert last
        return cls(tuple(steps), last[4], made_context)

    def moments(self) -> dict[str, int]:
        """When each action was, in microseconds since boot."""
        found = (ACTION.match(step.message) for step in self.steps)
        return {action[1]: int(action[2] + action[3]) for action in found if action}

    def own_worker(self) -> str:
        return self.steps[0].worker

    def shifted(self, by: int) -> Capture:
        return replace(self, steps=tuple(step.shifted(by) for step in self.steps))


# Where the headers are of the nginx that the tests run: its source, and what was made of it when
# it was configured. Those of another nginx than Debian's must be named.
SOURCE = os.environ.get("OMNITRACE_NGINX_SOURCE", "/usr/share/nginx/src")
CONFIGURED = os.environ.get(
    "OMNITRACE_NGINX_CONFIGURED",
    ""
    if "OMNITRACE_NGINX" in os.environ
    else os.environ.get("NGINX_BUILD_DIR", str(REPOSITORY / "target/nginx-debian")),
)


def build(folder: Path) -> Path:
    """The module that replays, for the nginx that the tests run."""
    folders = ["core", "event", "event/modules", "event/quic", "os/unix"]
    folders += ["http", "http/modules", "http/v2", "http/v3"]
    module = folder / "ngx_http_replay_module.so"
    subprocess.run(
        [
            "cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(module),
            *(f"-I{SOURCE}/src/{folder}" for folder in folders), f"-I{CONFIGURED}",
            str(FOLDER / "ngx_http_replay_module.c"),
        ],
        check=True,
    )  # fmt: skip
    return module


class Workers:
    """A connection to each of nginx's workers."""

    def __init__(self, nginx: Nginx, count: int) -> None:
        self.connections: dict[str, http.client.HTTPConnection] = {}
        spare = []
        while len(self.connections) < count:
            connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=20)
            connection.request("GET", "/pid")
            pid = connection.getresponse().read().decode()
            if pid in self.connections:
                # Kept open: the other worker is more likely to take the next one.
                spare.append(connection)
            self.connections.setdefault(pid, connection)
        for connection in spare:
            connection.close()

    def post(
        self, worker: int, path: str, steps: str, headers: Mapping[str, str] | None = None
    ) -> int:
        """The status of a request to the worker with this number."""
        connection = list(self.connections.values())[worker]
        connection.request("POST", path, steps, {"User-Agent": "test", **(headers or {})})
        response = connection.getresponse()
        response.read()
        return response.status

    def close(self) -> None:
        for connection in self.connections.values():
            connection.close()


def replay(
    nginx: Nginx, capture: Capture, headers: Mapping[str, str] | None = None, answer: str = ""
) -> None:
    """Has the request's own worker write its lines, and another one those of the other.

    `answer` is an event stream with "|" for each line's end.
    """
    begin = time.monotonic_ns() // 1000 + 300_000
    capture = capture.shifted(begin - capture.steps[0].due)
    workers = Workers(nginx, len({step.worker for step in capture.steps}))
    own = "".join(s.text() for s in capture.steps if s.worker == capture.own_worker())
    if answer:
        own += f"answer\t0\t\ttext/event-stream\t{answer}\n"
    other = "".join(s.text() for s in capture.steps if s.worker != capture.own_worker())
    statuses: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: statuses.append(workers.post(0, "/v1/chat/completions", own, headers))
        )
    ]
    if other:
        threads.append(
            threading.Thread(target=lambda: statuses.append(workers.post(1, "/cycle", other)))
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    workers.close()
    assert set(statuses) == {200}
