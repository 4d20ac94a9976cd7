"""What tracing costs a real vLLM: CPU time of its API process per request.

Servers without tracing, with omnitrace and with vLLM's own tracing, all up at once and asked in
turns, so that a change of the machine's speed meets all of them. There are two without tracing:
what they differ by is what this can tell.

Other work on the machine only ever adds to a figure, so the first quartile of many short rounds
is taken for the event loop's thread, where requests are served. For the other threads, exporters
among them, which work when it suits them, it is the mean.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pair import Load, Vllm
from stack import free_ports

OFF, OFF_TOO, OURS, NATIVE = "off", "off-again", "omnitrace", "vllm-native"
TOKENS = 20
AT_ONCE = 1
"""More at once would share wake-ups, now so, now so."""
EXPORT_EVERY = 1.0
"""Seconds. By default it is 5, and much would be exported while it is another's turn."""
SETTLE = 6.0
"""Seconds after the last answer: by then everything has arrived."""
RESAMPLES = 2000


@dataclass
class Cost:
    """What one server's API process has taken."""

    name: str
    loop_ms: list[float]
    """CPU time of the event loop's thread per request, of each round."""
    others_ms: float
    """CPU time of all other threads per request, while it was asked."""

    @property
    def whole_ms(self) -> float:
        """CPU time of the process per request."""
        return _quartile(self.loop_ms) + self.others_ms

    def times(self, off: Cost) -> tuple[float, float, float]:
        """As a multiple of what another has taken: whole, and the bounds of 90 % of what the
        same rounds could have given."""
        chance = random.Random(0)
        rounds = range(len(self.loop_ms))
        found = []
        for _ in range(RESAMPLES):
            drawn = chance.choices(rounds, k=len(rounds))
            ours, theirs = ([each.loop_ms[n] for n in drawn] for each in (self, off))
            found.append((_quartile(ours) + self.others_ms) / (_quartile(theirs) + off.others_ms))
        cuts = statistics.quantiles(found, n=20)
        return self.whole_ms / off.whole_ms, cuts[0], cuts[-1]


def measure(rounds: int, requests: int) -> list[Cost]:
    """Asks each server for so many streamed answers in each round."""
    folder = Path(tempfile.mkdtemp(prefix="omnitrace-bench-"))
    with contextlib.closing(Vllm(folder)) as stack:
        stack.start_receiver()
        ports = _start(stack)
        pids = {name: stack.parts[name].process.pid for name in ports}
        # What is made once: connections, caches.
        for name, port in ports.items():
            _ask(name, port, requests)
        others = dict.fromkeys(ports, 0)
        loops: dict[str, list[float]] = {name: [] for name in ports}
        for number in range(rounds):
            names = list(ports)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                loop, other = _loop_ns(pids[name]), _others_ns(pids[name])
                _ask(name, ports[name], requests)
                others[name] += _others_ns(pids[name]) - other
                loops[name].append((_loop_ns(pids[name]) - loop) / requests / 1e6)
        time.sleep(SETTLE)
        _check(stack, (rounds + 1) * requests)
    return [
        Cost(name, of_loop, others[name] / rounds / requests / 1e6)
        for name, of_loop in loops.items()
    ]


def _start(stack: Vllm) -> dict[str, int]:
    """Starts the servers; returns their ports."""
    native = ["--otlp-traces-endpoint", f"{stack.endpoint}/v1/traces"]
    by_http = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    servers: dict[str, tuple[list[str], dict[str, str]]] = {
        OFF: ([], {"OMNITRACE": "0"}),
        OFF_TOO: ([], {"OMNITRACE": "0"}),
        OURS: ([], {"OMNITRACE": "1"}),
        NATIVE: (native, {"OMNITRACE": "0", **by_http}),
    }
    ports = dict(zip(servers, free_ports(len(servers)), strict=True))
    for name, (options, environment) in servers.items():
        environment["OTEL_SERVICE_NAME"] = name
        environment["OTEL_BSP_SCHEDULE_DELAY"] = f"{EXPORT_EVERY * 1000:.0f}"
        environment["OTEL_METRICS_EXPORTER"] = "none"
        stack.start_node(name, ports[name], options, environment)
    for name, port in ports.items():
        stack.wait_for_node(name, port)
    return ports


def _ask(name: str, port: int, requests: int) -> None:
    answers = Load(port, requests, AT_ONCE, TOKENS).run()
    failed = [said.error or "no end" for said in answers if said.error or not said.is_whole]
    if failed:
        raise SystemExit(f"{name}: {len(failed)} of {requests} requests failed: {failed[0]}")


def _check(stack: Vllm, requests: int) -> None:
    """Each request must be traced, by those who trace."""
    expected_of = {OFF: 0, OFF_TOO: 0, OURS: requests, NATIVE: requests}
    for name, expected in expected_of.items():
        # vLLM's own tracing also shows how it starts.
        names = [[span["operationName"] for span in trace["spans"]] for trace in stack.traces(name)]
        found = sum("Decode" in each or "llm_request" in each for each in names)
        if found != expected:
            raise SystemExit(f"{name}: {found} traces of {requests} requests have arrived")


def _loop_ns(pid: int) -> int:
    """CPU time of the main thread, where the event loop runs."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0])


def _others_ns(pid: int) -> int:
    """CPU time of all other threads, those that have ended too."""
    # The process's clock, as clock_getcpuclockid(3) makes it: /proc/PID/stat in nanoseconds.
    return time.clock_gettime_ns((~pid << 3) | 2) - _loop_ns(pid)


def _quartile(values: list[float]) -> float:
    return statistics.quantiles(values, n=4)[0]
