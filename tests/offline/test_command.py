"""The ``omnitrace`` command that the wheel installs, by its three names: the binary, the script
beside Python, and ``python -m omnitrace``."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from converted import COMMAND

SCRIPT = Path(sysconfig.get_path("scripts")) / "omnitrace"
MODULE = [sys.executable, "-m", "omnitrace"]


def environment() -> dict[str, str]:
    """Without what names another command, and without our scripts' folder on the PATH."""
    left_out = ("OMNITRACE_COMMAND", "PATH")
    return {name: text for name, text in os.environ.items() if name not in left_out}


def run(way: list[str], *arguments: object) -> tuple[int, str, str]:
    call = [*way, *map(str, arguments)]
    done = subprocess.run(call, env=environment(), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--version"], 0),
        ([], 2),
        (["stats", "--frobnicate"], 2),
        (["stats", "LOGS"], 0),
        (["stats", "--csv", "LOGS"], 0),
        (["convert", "LOGS", "-"], 0),
        (["convert", "LOGS/none", "-"], 1),
        (["convert", "LOGS", "-", "--filter-reqids=none"], 1),
    ],
)
def test_the_three_ways_say_and_do_the_same(logs: Path, arguments: list[str], status: int) -> None:
    given = [argument.replace("LOGS", str(logs)) for argument in arguments]
    of_binary = run([str(COMMAND)], *given)
    assert of_binary[0] == status
    assert run([str(SCRIPT)], *given) == of_binary
    assert run(MODULE, *given) == of_binary


@pytest.mark.parametrize("way", [[str(COMMAND)], [str(SCRIPT)], MODULE])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_shows_its_progress_on_a_terminal_until_a_signal_ends_it(
    tmp_path: Path, way: list[str], number: signal.Signals
) -> None:
    terminal, its_end = pty.openpty()
    call = [*way, "convert", "-", str(tmp_path / "out.json")]
    # Nobody writes to its standard input: it waits. The tests may have been told to ignore
    # the signal.
    process = subprocess.Popen(
        call,
        env={**environment(), "TERM": "xterm"},
        stdin=subprocess.PIPE,
        stderr=its_end,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    shown = b""
    while b"reading" not in shown:
        shown += os.read(terminal, 4096)
    process.send_signal(number)
    process.wait(60)
    os.close(its_end)
    os.close(terminal)
    assert (process.returncode, list(tmp_path.iterdir())) == (-number, [])


@pytest.mark.parametrize("way", [[str(COMMAND)], [str(SCRIPT)], MODULE])
def test_a_reader_that_has_seen_enough_is_no_error(logs: Path, way: list[str]) -> None:
    call = [*way, "convert", "--quiet", str(logs), "-"]
    process = subprocess.Popen(
        call, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    assert process.stdout.read(9) == b'{"data":['
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), said) == (0, b"")


def test_messages_that_nobody_reads_do_not_end_it(logs: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    out = tmp_path / "out.json"
    call = [str(COMMAND), "convert", str(logs), str(out)]
    done = subprocess.run(call, env=environment(), stderr=write, check=False)
    os.close(write)
    assert (done.returncode, out.exists()) == (0, True)


def test_a_command_that_is_not_there_is_an_error_that_names_it() -> None:
    named = {**environment(), "OMNITRACE_COMMAND": "/no/such/command"}
    done = subprocess.run(
        [*MODULE, "--version"], env=named, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (
        1,
        "omnitrace: /no/such/command cannot be run: No such file or directory\n",
    )
