"""Writes which hooks each version of vLLM has into py-bindings/vllm-versions.md.

    python tests/vllm/versions_table.py

What is said of the versions that prepare.py has installed is made anew, the rest stays.
"""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VLLM = ROOT / "target" / "vllm"
DOCUMENT = ROOT / "py-bindings" / "vllm-versions.md"
THERE = {"yes": "", "?": "?"}
"""What is put before versions; of those where a target is missing nothing is said."""
_LINE = re.compile(r"(yes|no|\?) +(\S+)  (.+)")
_RANGE = re.compile(r"(\??)([\d.]+)(?: to ([\d.]+))?")
_RUN = "Versions that were run: "

Column = dict[str, str]
"""For each target that a version has, or may have, what THERE has for it."""


def installed() -> list[str]:
    """The versions that prepare.py has installed, in their order."""
    found = (done.parent.name for done in VLLM.glob("*/.done"))
    return sorted(found, key=_number)


def find(version: str) -> tuple[Column, dict[str, str]]:
    """What an installed version has, and what is recorded at each target."""
    command = [str(VLLM / version / "bin" / "python"), "-m", "omnitrace.vllm"]
    # It fails where a hook is missed, which the table then shows.
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    matches = map(_LINE.fullmatch, done.stdout.splitlines())
    lines = [match.groups() for match in matches if match]
    found = {target: THERE[there] for there, target, _ in lines if there in THERE}
    return found, {target: what for _, target, what in lines}


def documented() -> dict[str, Column]:
    """What the document says, by version."""
    lines = DOCUMENT.read_text().splitlines()
    (run,) = [line for line in lines if line.startswith(_RUN)]
    columns: dict[str, Column] = {
        version: {} for version in re.findall(r"\d[\d.]*\d", run.removeprefix(_RUN))
    }
    for line in lines:
        if line.startswith("| `"):
            target, _, ranges = [cell.strip() for cell in line.strip("|").split("|")]
            for mark, first, last in _RANGE.findall(ranges):
                for version in columns:
                    if _number(first) <= _number(version) <= _number(last or first):
                        columns[version][target.strip("`")] = mark
    return columns


def _ranges(target: str, columns: dict[str, Column]) -> str:
    """Runs of versions that are alike, in their order."""
    said = []
    for mark, run in itertools.groupby(columns, lambda version: columns[version].get(target)):
        first, *more = run
        if mark is not None:
            said.append(f"{mark}{first} to {more[-1]}" if more else f"{mark}{first}")
    return ", ".join(said)


def _number(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def main() -> None:
    """Rewrites the table, which is the document's end."""
    columns = documented()
    recorded: dict[str, str] = {}
    for version in installed():
        columns[version], recorded = find(version)
    if not recorded:
        raise SystemExit("no vLLM is installed: make test-vllm installs it")
    columns = dict(sorted(columns.items(), key=lambda item: _number(item[0])))
    rows = [("target", "recorded", "in"), ("---", "---", "---")]
    rows += [(f"`{target}`", what, _ranges(target, columns)) for target, what in recorded.items()]
    text = DOCUMENT.read_text().partition(_RUN)[0]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    DOCUMENT.write_text(f"{text}{_RUN}{', '.join(columns)}.\n\n{table}\n")


if __name__ == "__main__":
    main()
