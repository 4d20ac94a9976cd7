"""What the nginx module costs a worker: requests/s and CPU time, on, off and not loaded.

    python tests/bench/nginx.py [--quick]

`make bench-nginx`. One worker, every request recorded, wrk with 32 connections. The states
take turns, and a ratio is the median over the rounds of the ratio within a round. CPU time is
the kernel's count for the worker's threads: the main thread, and the whole process with the
exporter's, until that has sent what the run recorded.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from nginx_server import MODULE, Nginx, get
from nginx_upstreams import StreamingServer
from span_sink import REPOSITORY, Sink

TITLE = "The nginx module: 1 worker, every request recorded, wrk with 32 connections"
STATES = {
    "on": "omnitrace on;",
    # Another server is traced, so the module's hooks are in place.
    "off": "omnitrace off;",
    "not loaded": None,
}
GOALS = {"return 200": 1.15, "proxy_pass": 1.05, "SSE, 200 tokens": 1.05}
SPANS = {"return 200": 1, "proxy_pass": 2, "SSE, 200 tokens": 2}
# CPU time in 0.3 s of an exporter that only looks whether there is something.
IDLE_NS = 1_000_000
HEAD = (
    "", "requests/s", "main thread", "worker",
    "requests/s ×", "main thread ×", "worker ×", "lost",
)  # fmt: skip


@dataclass
class Run:
    """One run of one state."""

    rate: float
    """Requests per second."""
    main_us: float
    """CPU time of the worker's main thread for one request."""
    worker_us: float
    """CPU time of the whole worker for one request."""
    lost: int
    """Spans that should have arrived and did not."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--only", help="one of the cases")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 1
    with ExitStack() as stack:
        stream = StreamingServer().start()
        stack.callback(stream.close)
        sink = Sink()
        stack.callback(sink.close)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plain = _plain_server(folder)
        stack.callback(plain.stop)
        locations = {
            "return 200": "return 200;",
            "proxy_pass": "proxy_pass http://plain;",
            "SSE, 200 tokens": f"proxy_pass http://127.0.0.1:{stream.port}; proxy_buffering off;",
        }
        results: dict[str, dict[str, list[Run]]] = {}
        for case, location in locations.items():
            if arguments.only not in (None, case):
                continue
            runs: dict[str, list[Run]] = {state: [] for state in STATES}
            for number in range(1, arguments.rounds + 1):
                print(f"{case}: round {number} of {arguments.rounds}", file=sys.stderr)
                # Each state is the first, the second and the last in turn.
                turn = number % len(STATES)
                for state in [*STATES, *STATES][turn : turn + len(STATES)]:
                    site = _site(location, plain.port, sink.endpoint, STATES[state])
                    runs[state].append(
                        _run(folder / f"{len(list(folder.iterdir()))}", site, state, case, sink,
                             arguments.seconds)
                    )  # fmt: skip
            results[case] = runs
    _publish(results)


def _plain_server(folder: Path) -> Nginx:
    directory = folder / "plain"
    directory.mkdir()
    nginx = Nginx(directory)
    return nginx.start(
        "keepalive_requests 1000000000;"
        f"server {{ listen 127.0.0.1:{nginx.port}; location / {{ return 200 ok; }} }}",
        modules=(),
    )


def _site(location: str, plain: int, endpoint: str, state: str | None) -> Callable[[Nginx], str]:
    def site(nginx: Nginx) -> str:
        ours = state is not None
        exporter = f"omnitrace_legacy_log off; omnitrace_exporter {{ endpoint {endpoint}; }}"
        traced = f"server {{ listen unix:{nginx.directory}/traced; omnitrace on; }}"
        return f"""
            {exporter + traced if ours else ""}
            keepalive_requests 1000000000;
            upstream plain {{ server 127.0.0.1:{plain}; keepalive 64; }}
            server {{
                listen 127.0.0.1:{nginx.port};
                location / {{
                    {state or ""}
                    proxy_http_version 1.1; proxy_set_header Connection "";
                    {location}
                }}
                location = /count {{ {"omnitrace off;" if ours else ""} stub_status; }}
            }}"""

    return site


def _run(
    directory: Path, site: Callable[[Nginx], str], state: str, case: str, sink: Sink, seconds: int
) -> Run:
    directory.mkdir()
    nginx = Nginx(directory)
    modules = () if state == "not loaded" else (MODULE,)
    nginx.start(site(nginx), modules=modules)
    [worker] = nginx.workers()
    arrived = sink.spans()
    try:
        _wrk(nginx, 1)
        main, whole = _cpu(worker)
        asked = _requests(nginx)
        rate = _wrk(nginx, seconds)
        asked = _requests(nginx) - asked - 1
        _settled(worker)
        main, whole = (now - then for now, then in zip(_cpu(worker), (main, whole), strict=True))
        total = _requests(nginx) - 3
    finally:
        nginx.stop()
    nginx.assert_healthy()
    expected = total * SPANS[case] if state == "on" else 0
    lost = expected - (sink.spans() - arrived)
    return Run(rate, main / asked / 1000, whole / asked / 1000, lost)


def _wrk(nginx: Nginx, seconds: int) -> float:
    command = ["wrk", "-t1", "-c32", f"-d{seconds}s", f"{nginx.url}/"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in output, output
    return float(re.findall(r"Requests/sec: +([\d.]+)", output)[0])


def _requests(nginx: Nginx) -> int:
    """Requests that nginx has counted, this one included."""
    return int(get(nginx, "/count").text.split("\n")[2].split()[2])


def _cpu(worker: int) -> tuple[int, int]:
    """Nanoseconds of its main thread and of all its threads."""
    tasks = Path(f"/proc/{worker}/task").iterdir()
    times = {task.name: int((task / "schedstat").read_text().split()[0]) for task in tasks}
    return times[str(worker)], sum(times.values())


def _settled(worker: int) -> None:
    """Waits until the exporter has nothing more to do at once."""
    before = 0
    while (now := sum(_cpu(worker))) > before + IDLE_NS:
        before = now
        time.sleep(0.3)


def _ratio(runs: list[Run], base: list[Run], value: Callable[[Run], float]) -> float:
    pairs = zip(runs, base, strict=True)
    return statistics.median([value(run) / value(other) for run, other in pairs])


def _publish(results: dict[str, dict[str, list[Run]]]) -> None:
    rows = []
    for case, runs in results.items():
        for state, done in runs.items():
            base = runs["not loaded"]
            values: list[Callable[[Run], float]] = [
                lambda r: r.rate, lambda r: r.main_us, lambda r: r.worker_us,
            ]  # fmt: skip
            medians = [statistics.median([value(run) for run in done]) for value in values]
            ratios = [f"{_ratio(done, base, value):.3f}" for value in values]
            cells = [f"{medians[0]:,.0f}", f"{medians[1]:.2f}", f"{medians[2]:.2f}"]
            cells += ["–"] * 3 if state == "not loaded" else ratios
            cells += [str(sum(run.lost for run in done)) if state == "on" else "–"]
            rows.append((f"{case}: {state}", *cells))
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    goals = ", ".join(f"{case} {goal} ×" for case, goal in GOALS.items())
    notes = (
        "CPU time per request in µs. The ratios are to a worker without the module.\n"
        f"Goals for on: requests/s 0.95 ×, worker: {goals}; 0 lost.\n"
        f"{cpu[1] if cpu else 'unknown processor'}"
    )
    directory = REPOSITORY / "target" / "bench"
    directory.mkdir(parents=True, exist_ok=True)
    table = [f"| {' | '.join(row)} |" for row in (HEAD, ("---", *["---:"] * 7), *rows)]
    (directory / "nginx.md").write_text("\n".join([f"{TITLE}.", notes, "", *table, ""]))
    raw = {
        case: {s: [asdict(r) for r in rs] for s, rs in runs.items()}
        for case, runs in results.items()
    }
    (directory / "nginx.json").write_text(json.dumps(raw, indent=2))
    width = max(len(row[0]) for row in rows)
    print(f"{TITLE}\n{notes}\n")
    for name, *cells in (HEAD, *rows):
        print(f"{name:{width}}" + "".join(f"{cell:>15}" for cell in cells))


if __name__ == "__main__":
    main()
