"""`make bench-offline`: how fast `omnitrace convert` and `stats` are, on logs that
`generate.py` makes, and on a file that is none: a gigabyte of random bytes, of which they must
say so. The table goes to stdout and to target/bench/offline.md.

Speed is measured by CPU time, which says the same on a busy machine, once on one core and
once on all.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import generate

RUNS = 3
"""Of which the median counts."""


class Cost:
    """CPU seconds, seconds on the clock and peak memory of a program's run."""

    def __init__(self, command: list[str], cores: set[int], status: int, says: str) -> None:
        before = os.times()
        # A process of its own: only so is the peak the program's.
        program = subprocess.run(
            [sys.executable, "-c", PEAK, *command],
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),  # noqa: PLW1509 (one thread here)
            check=False,
        )
        if program.returncode != status or says not in program.stderr:
            sys.exit(f"{' '.join(command)}: status {program.returncode}\n{program.stderr}")
        after = os.times()
        cpu, peak = program.stdout.split()[-2:]
        self.cpu = float(cpu)
        self.wall = after.elapsed - before.elapsed
        self.peak_mb = int(peak) / 1024


PEAK = """
import resource, subprocess, sys
program = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(program.returncode)
"""


def measure(command: list[str], cores: set[int], status: int = 0, says: str = "") -> Cost:
    """The median run, which must end with this exit status, and say this."""
    runs = [Cost(command, cores, status, says) for _ in range(RUNS)]
    return sorted(runs, key=lambda cost: cost.cpu)[RUNS // 2]


def rows(program: str, requests: int, folder: Path) -> list[str]:
    logs = folder / f"logs-{requests}"
    size = generate.write(logs, requests) / 1e6
    out = folder / "out.json"
    every = sorted(os.sched_getaffinity(0))
    lines = []
    commands = {
        "convert": [program, "convert", "--quiet", str(logs), str(out)],
        "stats": [program, "stats", "--quiet", str(logs)],
    }
    known = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    for name, command in commands.items():
        if f"  {name} " not in known:
            continue
        for cores in ({every[0]}, set(every)):
            cost = measure(command, cores)
            written = f"{out.stat().st_size / 1e6:.0f} MB" if name == "convert" else "–"
            per_core = size / cost.cpu
            allowed = 64 + requests * 0.5 / 1000
            lines.append(
                f"| {name} | {requests:,} | {size:.0f} MB | {len(cores)} | {per_core:.0f} | "
                f"{size / cost.wall:.0f} | {cost.cpu:.2f} | {cost.peak_mb:.0f} | {allowed:.0f} | "
                f"{written} |"
            )
            print(lines[-1], flush=True)
    shutil.rmtree(logs)
    out.unlink(missing_ok=True)
    return lines


GARBAGE_MB = 1000


def garbage(program: str, folder: Path) -> list[str]:
    source = random.Random(7)
    file = folder / "random"
    with file.open("wb") as out:
        for _ in range(GARBAGE_MB):
            out.write(source.randbytes(1_000_000))
    every = set(os.sched_getaffinity(0))
    lines = []
    for name in ("convert", "stats"):
        command = [program, name, "--quiet", str(file)]
        if name == "convert":
            command.append(str(folder / "out.json"))
        cost = measure(command, every, 1, "no action lines")
        lines.append(
            f"| {name}, random bytes | 0 | {GARBAGE_MB} MB | {len(every)} | "
            f"{GARBAGE_MB / cost.cpu:.0f} | {GARBAGE_MB / cost.wall:.0f} | {cost.cpu:.2f} | "
            f"{cost.peak_mb:.0f} | 64 | – |"
        )
        print(lines[-1], flush=True)
    file.unlink()
    return lines


HEAD = (
    "| command | requests | log | cores | MB/s by CPU time | MB/s by the clock | CPU s "
    "| peak MB | allowed MB | output |\n|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="how fast the offline converter is")
    parser.add_argument("program", help="the omnitrace command, built for release")
    parser.add_argument("output", type=Path, help="where the table goes")
    parser.add_argument("--requests", type=int, nargs="+", default=[10_000, 100_000])
    options = parser.parse_args()
    print(HEAD, flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output.parent) as folder:
        lines = [line for n in options.requests for line in rows(options.program, n, Path(folder))]
        lines += garbage(options.program, Path(folder))
    options.output.write_text("\n".join([HEAD, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
