"""What tracing costs a real vLLM: CPU time of its API process per request.

Two servers of the same kind differ by more than tracing costs: by where their memory lies, by
which core they were on. So each server is its own measure: its tracing is switched off and on
(switch.py) from request to request, and what counts is how much the event loop's thread, where
requests are served, takes more for a request with it than for its neighbour without. What the
exporter's threads take comes on top, all of it, also while they wait. The servers, omnitrace's,
one with vLLM's own tracing and one where the switch does nothing, take turns.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import tree
from pair import Load, Vllm
from ports import free_ports

NOTHING, OURS, NATIVE = "nothing", "omnitrace", "native"
TOKENS = 200
TURN = 10
"""Pairs of requests, one with tracing and one without, that a server gets at a time."""
WARM_UP = 10
"""Pairs before the clock is read: connections, caches."""
TAIL = 0.01
"""Seconds that a request's last work may take after its answer."""
SETTLE = 6.0
"""Seconds after the last answer: by then everything has arrived."""
RESAMPLES = 2000


@dataclass
class Cost:
    """What one server's API process has taken."""

    name: str
    off_us: list[float] = field(default_factory=list)
    """CPU time of the event loop's thread for each request with its tracing off."""
    on_us: list[float] = field(default_factory=list)
    """The same for its neighbour, with its tracing on."""
    exporter_us: float = 0.0
    """CPU time of the exporter's threads per request with tracing on."""

    @property
    def loop_us(self) -> float:
        """What the event loop takes for a request without tracing."""
        return statistics.median(self.off_us)

    @property
    def added_us(self) -> float:
        """What tracing adds to the event loop's: the median over the pairs."""
        return statistics.median(self._differences())

    @property
    def times(self) -> float:
        """With tracing, exporter and all, as a multiple of without."""
        return 1 + (self.added_us + self.exporter_us) / self.loop_us

    def bounds(self) -> tuple[float, float]:
        """Between which `times` lies in 90 % of what the same pairs could have given."""
        chance = random.Random(0)
        differences = self._differences()
        drawn = (
            1
            + (
                statistics.median(chance.choices(differences, k=len(differences)))
                + self.exporter_us
            )
            / self.loop_us
            for _ in range(RESAMPLES)
        )
        cuts = statistics.quantiles(drawn, n=20)
        return cuts[0], cuts[-1]

    def _differences(self) -> list[float]:
        return [on - off for off, on in zip(self.off_us, self.on_us, strict=True)]


@dataclass
class Server:
    """A server whose tracing is switched."""

    name: str
    port: int
    pid: int
    exporters: list[int] = field(default_factory=list)
    """Its exporter's threads, by their numbers in the system."""

    def switch(self, state: str) -> None:
        """`on` or `off`."""
        address = f"http://127.0.0.1:{self.port}/switch/{state}"
        asked = urllib.request.Request(address, method="POST")
        with urllib.request.urlopen(asked, timeout=60) as answer:
            self.exporters = json.load(answer)

    def ask(self) -> float:
        """One streamed answer; the event loop's microseconds of CPU time for it."""
        before = _thread_ns(self.pid, self.pid)
        (said,) = Load(self.port, 1, 1, TOKENS).run()
        if said.error or not said.is_whole:
            raise SystemExit(f"{self.name}: a request failed: {said.error or 'no end'}")
        time.sleep(TAIL)
        return (_thread_ns(self.pid, self.pid) - before) / 1000

    def exporters_us(self) -> float:
        """CPU time of the exporter's threads so far, in microseconds."""
        return sum(_thread_ns(self.pid, thread) for thread in self.exporters) / 1000


def measure(pairs: int) -> list[Cost]:
    """Asks each server for so many answers with tracing, and as many without."""
    folder = Path(tempfile.mkdtemp(prefix="omnitrace-bench-"))
    with contextlib.closing(Vllm(folder)) as stack:
        stack.start_receiver()
        servers = _start(stack)
        for server in servers:
            _pairs(server, Cost(server.name), WARM_UP)
        costs = [Cost(server.name) for server in servers]
        for first in range(0, pairs, TURN):
            for server, cost in zip(servers, costs, strict=True):
                before = server.exporters_us()
                _pairs(server, cost, min(TURN, pairs - first))
                cost.exporter_us += (server.exporters_us() - before) / pairs
        time.sleep(SETTLE)
        _check(stack, WARM_UP + pairs)
    return costs


def _pairs(server: Server, cost: Cost, count: int) -> None:
    for number in range(count):
        turns = [("off", cost.off_us), ("on", cost.on_us)]
        # Whatever drifts meets both alike.
        for state, found in turns if number % 2 else reversed(turns):
            server.switch(state)
            found.append(server.ask())


def _start(stack: Vllm) -> list[Server]:
    native = ["--otlp-traces-endpoint", f"{stack.endpoint}/v1/traces"]
    by_http = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    servers: dict[str, tuple[list[str], dict[str, str]]] = {
        NOTHING: ([], {"OMNITRACE": "0"}),
        OURS: ([], {"OMNITRACE": "1"}),
        NATIVE: (native, {"OMNITRACE": "0", **by_http}),
    }
    ports = dict(zip(servers, free_ports(len(servers)), strict=True))
    for name, (options, environment) in servers.items():
        environment["OTEL_SERVICE_NAME"] = name
        # As by default, and not as the tests of this stack have it.
        environment["OTEL_BSP_SCHEDULE_DELAY"] = "5000"
        environment["OTEL_METRICS_EXPORTER"] = "none"
        environment["OMNITRACE_BENCH_SWITCH"] = name
        environment["PYTHONPATH"] = str(Path(__file__).parent)
        switch = ["--middleware", "switch.Switch"]
        stack.start_node(name, ports[name], [*switch, *options], environment)
    for name, port in ports.items():
        stack.wait_for_node(name, port)
    return [Server(name, port, stack.parts[name].process.pid) for name, port in ports.items()]


def _check(stack: Vllm, requests: int) -> None:
    """Each request with its server's tracing on must be traced, and no other. (Where the API
    process does not trace it the engine still does, which does not know what was asked for.)"""
    says = {OURS: ("Decode", "gen_ai.request.model"), NATIVE: ("llm_request", "gen_ai.request.id")}
    for name in (NOTHING, OURS, NATIVE):
        span_name, key = says.get(name, ("", ""))
        spans = [span for trace in stack.traces(name) for span in trace["spans"]]
        # Any at all, where there should be none.
        spans = [s for s in spans if not key or s["operationName"] == span_name]
        found = sum(not key or tree.tag(span, key) is not None for span in spans)
        if found != (requests if key else 0):
            raise SystemExit(f"{name}: {found} traces of {requests} requests have arrived")


def _thread_ns(pid: int, thread: int) -> int:
    """CPU time of a thread."""
    return int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
