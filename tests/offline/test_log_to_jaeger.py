"""`python -m omnitrace.log_to_jaeger`, as scripts for the old converter call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from converted import COMMAND


def run(*arguments: object, command: str | None = None) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "omnitrace.log_to_jaeger", *map(str, arguments)]
    environment = {**os.environ, "OMNITRACE_COMMAND": command or str(COMMAND)}
    return subprocess.run(call, env=environment, capture_output=True, text=True, check=False)


def services(trace: dict[str, Any]) -> int:
    return len(trace["processes"])


def test_the_old_arguments_give_the_old_file(logs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = run(logs, out, "--skip-req_num", 2)
    assert (done.returncode, done.stdout) == (0, f"Done. Output to {out}\n")
    traces = json.loads(out.read_text())["data"]
    assert [len(t["spans"]) for t in traces] == [45] * (4 + 12)
    assert [services(t) for t in traces] == [45] * (4 + 12)
    ids = [t["spans"][0]["operationName"] for t in traces[4:]]
    some = run(logs, out, "--skip-req_num", -1, "--select-reqids", f"{ids[3]},{ids[7]}")
    assert some.returncode == 0
    selected = json.loads(out.read_text())["data"][4:]
    assert selected == [traces[4 + 3], traces[4 + 7]]


def test_errors_have_the_old_exit_codes_and_leave_no_file(logs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert run(logs).returncode == 2
    assert run(logs, out, "--unknown").returncode == 2
    assert run(tmp_path / "nothing", out).returncode == 1
    missing = run(logs, out, command="/no/such/command")
    assert (missing.returncode, missing.stderr) == (
        1,
        "log_to_jaeger: /no/such/command cannot be run: No such file or directory\n",
    )
    assert not out.exists()
