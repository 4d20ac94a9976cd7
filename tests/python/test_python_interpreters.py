"""omnitrace is the main interpreter's; a sub-interpreter is told so."""

from __future__ import annotations

import pytest

from program import Program
from sink import Sink

# `inside` runs code in a sub-interpreter of CPython's own or of the older kind, and gives back the
# error's text, or nothing.
INTERPRETERS = """
def inside(code, kind):
    try:
        import _interpreters as interpreters
        own = interpreters.create(kind)
    except ImportError:
        import _xxsubinterpreters as interpreters
        own = interpreters.create(isolated=kind == "isolated")
    try:
        failed = interpreters.run_string(own, code)
        return failed and failed.formatted
    except Exception as error:
        return str(error)
"""


@pytest.mark.parametrize("kind", ["isolated", "legacy"])
def test_a_sub_interpreter_is_refused_and_the_main_one_goes_on(
    program: Program, sink: Sink, kind: str
) -> None:
    result = program.run(
        """
        record("before")
        said = inside("import omnitrace", sys.argv[1])
        assert "ImportError" in said, said
        assert "omnitrace works in the main interpreter only" in said, said
        record("after")
        again = inside("import omnitrace", sys.argv[1])
        assert said == again
        assert flush(30)
        say(stats()["exported"])
        """,
        kind,
        before=INTERPRETERS,
    )
    assert result.said == [2]
    assert [span.name for span in sink.spans] == ["before", "after"]
    assert result.messages == []
