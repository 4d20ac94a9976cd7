"""What recording a span from Python costs: omnitrace beside its peers.

    python tests/bench/python.py [--quick]

The Python half of `make bench`. Each run is a process of its own and exports to the
sink of `cargo bench -p omnitrace`; the contestants take turns, so that a change of
the machine's speed meets all of them, and the ratios are medians over the rounds of
the ratio within a round.

It needs omnitrace and what requirements.txt beside it names. Everything measured is
imported in the runs alone.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass

from contestants import CONTESTANTS
from measure import Cost, Settings, measure
from span_sink import REPOSITORY, Sink

TITLE = (
    "Recording from Python: µs of CPU time per span with 6 attributes, or per action; "
    "lost: at up to 100,000 records a second with the default queue; ×: of omnitrace's that is "
    "used in the same way, start_span and end or a block"
)
PACKAGES = (
    "omnitrace-sdk",
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-exporter-otlp-proto-grpc",
    "logfire",
)
# Room for waiting spans that no contestant fills in a run.
LOSSLESS = 1 << 20
HEAD = ("", "caller", "process", "lost", "caller ×", "process ×")


@dataclass
class Row:
    """One contestant's runs; the ratios are to `beside`."""

    name: str
    caller_us: float
    process_us: float
    lost: float | None
    beside: str
    caller_ratio: float
    process_ratio: float
    rounds: list[Cost]
    with_default_queue: Cost | None

    def cells(self) -> tuple[str, ...]:
        """What the table shows."""
        return (
            self.name,
            f"{self.caller_us:.2f}",
            f"{self.process_us:.2f}",
            _percent(self.lost),
            f"{self.caller_ratio:.2f}",
            f"{self.process_ratio:.2f}",
        )


def _percent(part: float | None) -> str:
    if part is None:
        return "–"
    if 0 < part < 0.001:
        return "< 0.1 %"
    return f"{part * 100:.1f} %" if part else "0"


def main() -> None:
    """Runs the bench, or with --run one contestant in this process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    parser.add_argument("--run", metavar="SETTINGS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        settings = Settings(**json.loads(arguments.run))
        print(json.dumps(asdict(measure(settings))))
        return
    _check_packages()
    sink = Sink()
    try:
        rows = _bench(sink, quick=arguments.quick)
    finally:
        sink.close()
    _publish(rows)


def _check_packages() -> None:
    exporter = "opentelemetry.exporter.otlp.proto"
    modules = ("omnitrace", "opentelemetry.sdk", f"{exporter}.http", f"{exporter}.grpc", "logfire")
    missing = []
    for module in modules:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if not found:
            missing.append(module)
    if missing:
        requirements = pathlib.Path(__file__).with_name("requirements.txt")
        print(
            f"{', '.join(missing)} cannot be imported: run `make wheel`, then "
            f"{sys.executable} -m pip install target/wheels/*.whl -r "
            f"{os.path.relpath(requirements)}",
            file=sys.stderr,
        )
        raise SystemExit(1)


def _bench(sink: Sink, *, quick: bool) -> list[Row]:
    count, seconds = (1, 0.3) if quick else (5, 2.0)
    rounds: dict[str, list[Cost]] = {name: [] for name in CONTESTANTS}
    for number in range(1, count + 1):
        print(f"round {number} of {count}", file=sys.stderr)
        for name, costs in rounds.items():
            costs.append(_run_apart(sink, name, seconds, LOSSLESS))
    print("with default queues, for what is lost", file=sys.stderr)
    rows = []
    for name, costs in rounds.items():
        default = None
        if CONTESTANTS[name].exports:
            default = _run_apart(sink, name, seconds, None)
            lost = max(cost.lost for cost in costs)
            if lost > 0:
                print(f"{name} lost {lost:.1%} with a large queue too", file=sys.stderr)
        beside = CONTESTANTS[name].beside
        ours = rounds[beside]
        callers, processes = [c.caller_ns for c in costs], [c.process_ns for c in costs]
        row = Row(
            name=name,
            caller_us=statistics.median(callers) / 1000,
            process_us=statistics.median(processes) / 1000,
            lost=default.lost if default else None,
            beside=beside,
            caller_ratio=_ratio(callers, [c.caller_ns for c in ours]),
            process_ratio=_ratio(processes, [c.process_ns for c in ours]),
            rounds=costs,
            with_default_queue=default,
        )
        rows.append(row)
    return rows


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return statistics.median([their / our for their, our in zip(theirs, ours, strict=True)])


def _run_apart(sink: Sink, name: str, seconds: float, room: int | None) -> Cost:
    settings = Settings(name, seconds)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    environment = clean | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
        "OMNITRACE_LEGACY_LOG": "off",
        "ROLE": "prefill",
    }
    if room:
        environment["OTEL_BSP_MAX_QUEUE_SIZE"] = str(room)
    before = sink.spans()
    output = subprocess.run(
        [sys.executable, __file__, "--run", json.dumps(asdict(settings))],
        env=environment | CONTESTANTS[name].environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    cost = Cost(**json.loads(output.stdout.splitlines()[-1]))
    cost.arrived = sink.spans() - before
    if cost.counted_lost is not None and cost.made != cost.arrived + cost.counted_lost:
        print(f"{name}: the books do not hold: {cost}", file=sys.stderr)
    return cost


def _publish(rows: list[Row]) -> None:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    cpus = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(": ")[2] for line in cpus if line.startswith("model name")]
    machine = {
        "date": datetime.date.today().isoformat(),
        "cpu": models[0] if models else "unknown",
        "cores": os.cpu_count(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": versions,
    }
    line = (
        f"{machine['date']}; {machine['cpu']}, {machine['cores']} cores; "
        f"{machine['python']}; {', '.join(f'{n} {v}' for n, v in versions.items())}"
    )
    cells = [row.cells() for row in rows]
    markdown = [f"{TITLE}. {line}.", "", f"| {' | '.join(HEAD)} |"]
    markdown += ["|---|---:|---:|---:|---:|---:|"]
    markdown += [f"| {' | '.join(row)} |" for row in cells]
    directory = REPOSITORY / "target" / "bench"
    directory.mkdir(parents=True, exist_ok=True)
    report = {"title": TITLE, "machine": machine, "rows": [asdict(row) for row in rows]}
    text = json.dumps(report, indent=2, ensure_ascii=False)
    (directory / "python.json").write_text(text, encoding="utf-8")
    (directory / "python.md").write_text("\n".join(markdown) + "\n", encoding="utf-8")
    width = max(len(row[0]) for row in cells)
    print(f"{TITLE}\n{line}\n")
    for name, *numbers in (HEAD, *cells):
        print(f"{name:{width}}" + "".join(f"{number:>11}" for number in numbers))


if __name__ == "__main__":
    main()
