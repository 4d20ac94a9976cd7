"""`make bench-vllm`: what omnitrace costs vLLM.

    python tests/vllm/cost.py [--only hooks|servers] [--rounds N] [--requests N]

Each hook in one process, then real servers (which prepare.py installs): without tracing, with
omnitrace and with vLLM's own tracing. Writes target/bench/vllm-hooks.md and vllm-servers.md,
and .json of both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hook_cost import Cost as HookCost
from pair import ROOT, VERSION
from server_cost import AT_ONCE, TOKENS, measure
from stack import TARGET, Stack

BENCH = TARGET / "bench"


def main() -> None:
    """Measures, prints and keeps the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=["hooks", "servers"], help="one of the two")
    parser.add_argument("--rounds", type=int, default=40, help="of the servers (40)")
    parser.add_argument("--requests", type=int, default=8, help="in each round (8)")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.requests) < 2:
        parser.error("--rounds and --requests are at least 2")
    BENCH.mkdir(parents=True, exist_ok=True)
    if arguments.only != "servers":
        hooks()
    if arguments.only != "hooks":
        if not (ROOT / VERSION / ".done").exists():
            raise SystemExit(f"vLLM {VERSION} is missing: python tests/vllm/prepare.py installs it")
        servers(arguments.rounds, arguments.requests)


def hooks() -> None:
    """What each hook adds, with a receiver that takes the spans."""
    with Stack(Path(tempfile.mkdtemp(prefix="omnitrace-bench-"))) as stack:
        stack.start_receiver()
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "OMNITRACE"))}
        environment = {
            **clean,
            "OTEL_EXPORTER_OTLP_ENDPOINT": stack.endpoint,
            "OMNITRACE_LEGACY_LOG": "off",
        }
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("hook_cost.py"))],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    costs = [HookCost(**each) for each in json.loads(done.stdout)]
    rows = [
        (
            cost.name,
            str(cost.hooks),
            f"{cost.added_us:.2f} ± {cost.spread_us / 2:.2f}",
            f"{cost.added_us / cost.hooks:.2f}",
        )
        for cost in costs
    ]
    title = "What the hooks add to a call, µs of CPU time: median and half the quartiles' distance"
    _publish("vllm-hooks", title, ("at", "hooks", "all", "each"), rows, [asdict(c) for c in costs])


def servers(rounds: int, requests: int) -> None:
    """What tracing adds to a request in a real server's API process."""
    costs = measure(rounds, requests)
    off = costs[0]
    rows = []
    for cost in costs:
        times, low, high = cost.times(off)
        each = (
            f"{cost.whole_ms - cost.others_ms:.2f}",
            f"{cost.others_ms:.2f}",
            f"{cost.whole_ms:.2f}",
        )
        rows.append((cost.name, *each, f"{times:.3f}", f"{low:.3f} to {high:.3f}"))
    title = (
        f"vLLM {VERSION}, ms of CPU time of the API process per streamed request of {TOKENS} "
        f"tokens, {AT_ONCE} at a time, {rounds} rounds of {requests} requests in turns: first "
        "quartile of the event loop's thread, and the other threads"
    )
    head = ("", "event loop", "others", "whole", "×", "× in 90 %")
    _publish("vllm-servers", title, head, rows, [asdict(c) for c in costs])


def _publish(
    name: str, title: str, head: Sequence[str], rows: Sequence[Sequence[str]], raw: list[Any]
) -> None:
    lines = [f"{title}.", "", f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    (BENCH / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = json.dumps({"title": title, "rows": raw}, indent=2, ensure_ascii=False)
    (BENCH / f"{name}.json").write_text(report, encoding="utf-8")
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    print(f"{title}\n")
    for first, *others in (head, *rows):
        cells = [f"{text:>{width}}" for text, width in zip(others, widths[1:], strict=True)]
        print("  ".join([f"{first:{widths[0]}}", *cells]))
    print()


if __name__ == "__main__":
    main()
