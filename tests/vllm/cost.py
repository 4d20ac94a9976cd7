"""`make bench-vllm`: what omnitrace costs vLLM.

    python tests/vllm/cost.py [--only hooks|servers] [--pairs N]

Each hook in one process, then real servers (which prepare.py installs), whose tracing is switched
off and on: omnitrace's and vLLM's own. Writes target/bench/vllm-hooks.md and vllm-servers.md,
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
from server_cost import TOKENS, measure
from stack import TARGET, Stack

BENCH = TARGET / "bench"


def main() -> None:
    """Measures, prints and keeps the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=["hooks", "servers"], help="one of the two")
    parser.add_argument(
        "--pairs", type=int, default=200, help="of requests, for each of the servers (200)"
    )
    arguments = parser.parse_args()
    if arguments.pairs < 20:
        parser.error("--pairs: at least 20")
    BENCH.mkdir(parents=True, exist_ok=True)
    if arguments.only != "servers":
        hooks()
    if arguments.only != "hooks":
        if not (ROOT / VERSION / ".done").exists():
            raise SystemExit(f"vLLM {VERSION} is missing: python tests/vllm/prepare.py installs it")
        servers(arguments.pairs)


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


def servers(pairs: int) -> None:
    """What tracing adds to a request in a real server's API process."""
    costs = measure(pairs)
    rows = []
    for cost in costs:
        low, high = cost.bounds()
        figures = (cost.loop_us, cost.added_us, cost.exporter_us)
        cells = [f"{figure:.0f}" for figure in figures]
        rows.append((cost.name, *cells, f"{cost.times:.4f}", f"{low:.4f} to {high:.4f}"))
    title = (
        f"vLLM {VERSION}, µs of CPU time of the API process per streamed request of {TOKENS} "
        "tokens, one at a time: the event loop's thread with tracing off, what switching it on "
        f"adds (median of {pairs} pairs of neighbouring requests), and the exporter's threads"
    )
    head = ("switched", "off", "added", "exporter", "×", "× in 90 %")
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
