"""Writes which hooks each version of vLLM has into py-bindings/vllm-versions.md.

    python tests/vllm/versions_table.py

The columns of the versions that prepare.py has installed are made anew, the others stay.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VLLM = ROOT / "target" / "vllm"
DOCUMENT = ROOT / "py-bindings" / "vllm-versions.md"
THERE = {"yes": "✓", "no": "–", "?": "?"}
_LINE = re.compile(r"(yes|no|\?) +(\S+)  (.+)")

Column = dict[str, str]
"""✓, – or ? for each target."""


def installed() -> list[str]:
    """The versions that prepare.py has installed, in their order."""
    found = (done.parent.name for done in VLLM.glob("*/.done"))
    return sorted(found, key=_number)


def find(version: str) -> tuple[Column, dict[str, str]]:
    """What an installed version has, and what is recorded at each target."""
    command = [str(VLLM / version / "bin" / "python"), "-m", "omnitrace.vllm"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [match for line in done.stdout.splitlines() if (match := _LINE.fullmatch(line))]
    return {target: THERE[there] for there, target, _ in map(re.Match.groups, lines)}, {
        target: what for _, target, what in map(re.Match.groups, lines)
    }


def documented() -> dict[str, Column]:
    """The table's columns, by version."""
    rows = [_cells(line) for line in DOCUMENT.read_text().splitlines() if line.startswith("|")]
    if len(rows) < 2:
        return {}
    (_, _, *versions), _, *rest = rows
    return {
        version: {row[0].strip("`"): row[at] for row in rest}
        for at, version in enumerate(versions, 2)
    }


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


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
    versions = sorted(columns, key=_number)
    lines = [["target", "recorded", *versions], ["---"] * (2 + len(versions))]
    for target, what in recorded.items():
        # A hook that is younger than the others' columns.
        found = [columns[version].get(target, "?") for version in versions]
        lines.append([f"`{target}`", what, *found])
    text = DOCUMENT.read_text().partition("\n| ")[0]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    DOCUMENT.write_text(f"{text}\n{table}\n")


if __name__ == "__main__":
    main()
