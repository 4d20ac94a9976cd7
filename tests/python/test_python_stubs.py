"""What type checkers are told about omnitrace is what omnitrace is."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from program import Program

SAMPLE = Path(__file__).with_name("programs") / "typed.py"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="mypy is not installed"
)


def check(directory: Path, *arguments: str) -> str:
    """What a checker says, run where it does not find this repository's settings."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=directory, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def test_a_program_that_uses_everything_is_well_typed(tmp_path: Path) -> None:
    assert "no issues found" in check(tmp_path, "mypy", "--strict", str(SAMPLE))


def test_the_same_program_runs(program: Program) -> None:
    result = program.start("typed.py").end()
    assert (result.said, result.messages) == ([], [])


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("omnitrace.action('a')", "Missing positional argument"),
        ("omnitrace.action(5, 'r')", "arg-type"),
        ("omnitrace.init(nonsense=1)", "Unexpected keyword argument"),
        ("omnitrace.span('a').nothing", "has no attribute"),
        ("omnitrace.stats()['nothing']", "has no key"),
        ("omnitrace.span('a', parent='00-')", "arg-type"),
        ("omnitrace.SpanContext().trace_id = 'a'", "read-only"),
        ("class Own(omnitrace.Span): ...", "Cannot inherit from final class"),
        ("@omnitrace.span('a')\ndef f(x: int) -> int: return x\nf('a')", "arg-type"),
    ],
)
def test_a_wrong_use_is_found(tmp_path: Path, code: str, error: str) -> None:
    (tmp_path / "wrong.py").write_text(f"import omnitrace\n{code}\n")
    assert error in check(tmp_path, "mypy", "--strict", "wrong.py")


def test_the_stubs_agree_with_the_module(tmp_path: Path) -> None:
    assert "Success: no issues found" in check(tmp_path, "mypy.stubtest", "omnitrace")
