"""examples/vllm/start_pair.py, used as it says: on a CPU, without a Collector."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from pair import ROOT, START_TIMEOUT, VERSION
from stack import REPOSITORY, TARGET

SCRIPT = REPOSITORY / "examples" / "vllm" / "start_pair.py"


def five_ports() -> int:
    """The first of five ports, a hundred apart, where nobody listens now."""
    for base in range(21_000, 29_000, 11):
        with ExitStack() as probes, suppress(OSError):
            for port in range(base, base + 401, 100):
                probe = probes.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return base
    pytest.fail("no five ports are free")


@contextmanager
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The script in a folder, ended whatever happens."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "OMNITRACE"))}
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [ROOT / VERSION / "bin" / "python", SCRIPT, "--cpu", "--port", str(five_ports())],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=variables | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
        )
    # Its own end ends all that it has started.
    watchdog = threading.Timer(START_TIMEOUT, process.terminate)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.terminate()
        process.wait()


def at_work_in(folder: Path) -> list[str]:
    """The processes there, by what they call themselves: vLLM's and nginx's drop their command
    lines, but nobody leaves the folder that the script was started in."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def test_what_it_says_to_ask_is_answered_and_what_it_says_to_convert_is_one_trace(
    tmp_path: Path,
) -> None:
    with started(tmp_path) as script:
        assert script.stdout is not None
        said = []
        for line in script.stdout:
            said.append(line)
            if line.startswith("and then: "):
                break
        text = "".join(said)
        assert script.poll() is None and "all is up; Ctrl-C ends it" in text, (
            text + (tmp_path / "stderr").read_text()
        )
        ask = ["bash", "-c", text[text.index("curl ") :].partition("\n\n")[0]]
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=120, check=True).stdout
        assert answer.count('"delta"') > 1 and answer.rstrip().endswith("data: [DONE]"), answer

        everybody = at_work_in(tmp_path)
        for name in (
            "start_pair.py",
            "nginx: master",
            "nginx: worker",
            "kv_producer",
            "kv_consumer",
        ):
            assert any(name in each for each in everybody), everybody
        script.send_signal(signal.SIGINT)
        rest = script.stdout.read()
        assert script.wait(90) == 0
        assert rest == "\nending all\n"
    assert at_work_in(tmp_path) == []

    _, *arguments = said[-1].removeprefix("and then: ").split()
    command = [str(TARGET / "release" / "omnitrace"), *arguments]
    subprocess.run(command, cwd=tmp_path, check=True)
    traces = json.loads((tmp_path / "trace.json").read_text())["data"]
    # Four are statistics; whether all is up, the script has asked through nginx too.
    (trace,) = (trace for trace in traces[4:] if '"Pull kv"' in json.dumps(trace["spans"]))
    services = {process["serviceName"] for process in trace["processes"].values()}
    assert services == {"omni-proxy", "vllm-prefill", "vllm-decode"}
    names = {span["operationName"] for span in trace["spans"]}
    assert {"Prefill execute_model", "Pull kv", "Send output in decode stage"} <= names
