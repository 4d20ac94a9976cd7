"""`omnitrace.vllm`'s hooks: from a table to wrappers around somebody else's methods. The package
that is hooked here is made up; `make test-vllm` has the real one."""

from __future__ import annotations

import textwrap

import pytest

from program import Program, Result
from sink import Sink

ENGINE = """\
class Base:
    def inherited(self, request_id):
        return "inherited " + request_id


class Engine(Base):
    def add(self, request, wave=0):
        return f"added {request.request_id} {wave}"

    def schedule(self):
        class Output:
            new = [Request("r1"), Request("r2")]
        return Output()

    def fail(self, request_id):
        raise KeyError(request_id)

    @classmethod
    def create(cls, kind):
        return Connector()

    @staticmethod
    def still(request_id):
        return request_id

    async def ask(self, request_id):
        return request_id * 2

    async def stream(self, request_id, most=4):
        try:
            for n in range(most):
                yield n
        finally:
            self.closed = True


class Request:
    def __init__(self, request_id, **more):
        self.request_id = request_id
        self.__dict__.update(more)


class Connector:
    def alloc(self, request, tokens):
        return tokens


def function(*, request_id):
    return request_id
"""

HOOKS = """\
hooks:
  - {target: "served.engine:Engine.add", action: added, request: request,
     attributes: {wave: wave, tokens: request.tokens, missing: request.nothing.at_all}}
  - {target: "served.engine:Engine.schedule", at: exit, action: scheduled,
     request_id: "result.new[].request_id"}
  - {target: "served.engine:Engine.fail", at: error, action: failed, request_id: request_id}
  - {target: "served.engine:Engine.inherited", action: inherited, request_id: request_id}
  - {target: "served.engine:Engine.still", action: still, request_id: request_id}
  - {target: "served.engine:Engine.ask", at: exit, action: asked, request_id: result}
  - {target: "served.engine:Engine.stream", at: yield 2, action: second, request_id: request_id}
  - {target: "served.engine:Engine.stream", at: exit, action: ended, request_id: request_id}
  - {target: "served.engine:Engine.stream", at: error, action: left, request_id: request_id}
  - {target: "served.engine:Engine.create", on_result: alloc, action: allocated, request: request}
  - {target: ["served.gone:function", "served.engine:function"], action: called,
     request_id: request_id}
"""

# Spans' names do not matter here: what is recorded is in the log, line by line.
BEFORE = """\
import asyncio, inspect
from omnitrace import vllm
"""


def hooked(program: Program, code: str, hooks: str = HOOKS, **variables: str) -> Result:
    """Runs a program beside the package `served`, with these hooks."""
    package = program.workplace / "served"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "engine.py").write_text(ENGINE)
    file = program.workplace / "hooks.yaml"
    file.write_text(hooks)
    return program.run(
        code,
        before=BEFORE,
        **{"PROFILING_NAMELIST": str(file), "OMNITRACE_LEGACY_LOG": "always", **variables},
    )


def actions(result: Result) -> list[tuple[str, str]]:
    """What was recorded: action and request id."""
    lines = (line.partition("<<<Action: ")[2] for line in result.lines)
    found = [line.split("; ") for line in lines if line]
    return [
        (name, request_id.removeprefix("RequestID:chatcmpl-")) for name, _, request_id, *_ in found
    ]


def test_each_kind_of_hook_records_and_changes_nothing(program: Program, sink: Sink) -> None:
    result = hooked(
        program,
        """
        vllm.register()
        from served.engine import Engine, Request, function
        engine = Engine()

        async def streamed(most):
            return [item async for item in engine.stream("s", most=most)]

        async def left():
            items = engine.stream("l")
            await items.__anext__()
            await items.aclose()
            return engine.closed

        say(engine.add(Request("a", tokens=7), wave=3))
        say([request.request_id for request in engine.schedule().new])
        try:
            engine.fail("f")
        except KeyError as error:
            say(str(error))
        say([engine.inherited("i"), Engine.still("t"), function(request_id="c")])
        say([asyncio.run(engine.ask("q")), asyncio.run(streamed(4)), asyncio.run(streamed(1))])
        say([asyncio.run(left()), Engine.create("kind").alloc(Request("k"), 5)])
        say([inspect.iscoroutinefunction(Engine.ask), inspect.isasyncgenfunction(Engine.stream),
             str(inspect.signature(Engine.add)), Engine.add.__name__])
        """,
    )
    assert result.said == [
        "added a 3",
        ["r1", "r2"],
        "'f'",
        ["inherited i", "t", "c"],
        ["qq", [0, 1, 2, 3], [0]],
        [True, 5],
        [True, True, "(self, request, wave=0)", "add"],
    ]
    assert actions(result) == [
        ("added", "a"),
        ("scheduled", "r1"),
        ("scheduled", "r2"),
        ("failed", "f"),
        ("inherited", "i"),
        ("still", "t"),
        ("called", "c"),
        ("asked", "qq"),
        ("second", "s"),
        ("ended", "s"),
        ("ended", "s"),
        ("left", "l"),
        ("allocated", "k"),
    ]
    (added,) = [line for line in result.lines if "<<<Action: added;" in line]
    assert '"wave":3' in added and '"tokens":7' in added and "missing" not in added
    assert result.messages == []


def test_modules_that_are_loaded_already_are_hooked_too_and_only_once(program: Program) -> None:
    result = hooked(
        program,
        """
        from served.engine import Engine, Request
        vllm.register()
        vllm.register()
        say(Engine().add(Request("a")))
        """,
    )
    assert (result.said, actions(result)) == (["added a 0"], [("added", "a")])


def test_a_hook_that_raises_says_so_once_and_the_call_goes_on(program: Program) -> None:
    result = hooked(
        program,
        """
        vllm.register()
        from served.engine import Engine, Request

        class Odd:
            @property
            def request_id(self):
                raise RuntimeError("nobody asks for this")

        for n in range(3):
            try:
                Engine().add(Odd())
            except RuntimeError as error:
                say(str(error))
        say(Engine().schedule().new[0].request_id)
        """,
    )
    # The function's own mistake is its own.
    assert result.said == ["nobody asks for this"] * 3 + ["r1"]
    ((level, text),) = result.messages
    assert level == "ERROR" and text.startswith('hook "added" at served.engine:Engine.add (')
    assert text.endswith("failed and is not called again; vLLM is not affected")
    assert actions(result) == [("scheduled", "r1"), ("scheduled", "r2")]


@pytest.mark.parametrize("target", ["Engine.still", "Engine.schedule", "Engine.stream"])
def test_a_stage_that_waits_for_something_is_called_only_while_that_is_there(
    program: Program, target: str
) -> None:
    where, argument = {
        "Engine.still": ("entry", "request_id"),
        "Engine.schedule": ("exit", "result"),
        "Engine.stream": ("yield 1", "result"),
    }[target]
    result = hooked(
        program,
        """
        vllm.register()
        from omnitrace.vllm._stages import WHEN
        from served.engine import Engine

        class Heard(logging.Handler):
            def emit(self, record):
                heard.append(record.getMessage())

        heard = []
        logging.getLogger("omnitrace").addHandler(Heard())

        async def stream():
            return [item async for item in Engine().stream("s")]

        def call():
            Engine.still(7), Engine().schedule(), asyncio.run(stream())
            say(len(heard))

        call()
        WHEN["outputs received"]["a"] = None
        call()
        """,
        hooks=f"""
hooks:
  - target: served.engine:{target}
    at: {where}
    do: outputs received
    with: {{outputs: {argument}}}
""",
    )
    # What it is given are no outputs: it fails, and says so, as soon as it is called.
    assert result.said == [0, 1]
    ((_, text),) = result.messages
    assert text.startswith('hook "outputs received"')


def test_a_target_that_is_not_there_is_named_unless_another_of_its_names_is(
    program: Program,
) -> None:
    result = hooked(
        program,
        """
        import served
        vllm.register()
        import served.engine
        """,
        hooks="""\
hooks:
  - {target: "served.engine:Engine.gone", action: gone, request_id: request_id}
  - {target: ["served.engine:Engine.old", "served.engine:Engine.add"], action: a, request: request}
  - {target: "served.engine:Engine.quiet", action: quiet, request_id: r, optional: true}
  - {target: "served.nowhere:f", action: nowhere, request_id: request_id}
  - {target: "served.engine:Engine.add", action: odd, request_id: nobody}
""",
    )
    file = program.workplace / "hooks.yaml"
    assert sorted(result.messages) == [
        (
            "WARNING",
            f'{file}, hook 5: served.engine:Engine.add has other parameters here: "nobody" is '
            "none of its parameters: self, request, wave",
        ),
        (
            "WARNING",
            "served.engine:Engine.gone is not in this vLLM: "
            f'"gone" is not recorded ({file}, hook 1)',
        ),
        (
            "WARNING",
            f'served.nowhere:f is not in this vLLM: "nowhere" is not recorded ({file}, hook 4)',
        ),
    ]


WRONG = {
    "- 1": "hook 1: not a mapping",
    "- {target: a, action: x, request_id: r}": 'target "a" is not module:Class.method or module:f',
    "- {target: 'a:b.c.d', action: x, request_id: r}": 'target "a:b.c.d" is not module:Class.m',
    "- {target: 'a:b', request_id: r}": "needs an action, or one of omnitrace's own stages in do",
    "- {target: 'a:b', action: x}": "needs the path of the request or of its request_id",
    "- {target: 'a:b', action: x, request_id: 'os.system()'}": '"os.system()" is not a path such',
    "- {target: 'a:b', action: x, request_id: r, at: dawn}": "at is not entry, exit, error or",
    "- {target: 'a:b', action: x, request_id: r, at: yield}": "at is not entry, exit, error or",
    "- {target: 'a:b', action: x, request_id: r, role: chef}": "role is not decode, prefill, serv",
    "- {target: 'a:b', action: x, request_id: r, code: 1}": "unknown key code; there are action,",
    "- {target: 'a:b', do: harm}": "there is no stage harm; there are answer begins, answer breaks,",
    "- {target: 'a:b', do: request sent}": "request sent takes request, see request",
}


@pytest.mark.parametrize("entry", WRONG)
def test_a_wrong_entry_is_named_with_its_place_and_the_built_in_hooks_stay(
    program: Program, entry: str
) -> None:
    result = hooked(
        program,
        """
        vllm.register()
        from omnitrace.vllm import _imports
        say("vllm.v1.core.sched.scheduler" in _imports._finder.waiting)
        """,
        hooks=f"hooks:\n  {entry}\n",
    )
    assert result.said == [True]
    ((level, text),) = result.messages
    assert (level, WRONG[entry] in text) == ("ERROR", True), text
    assert text.startswith(f"PROFILING_NAMELIST: {program.workplace}/hooks.yaml, hook 1: ")
    assert text.endswith("; the built-in hooks are in place")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hooks: {", "not YAML: "),
        ("[]", "there is no list `hooks`"),
        ("\0", "not YAML: "),
    ],
)
def test_a_file_that_is_none_is_said(program: Program, text: str, said: str) -> None:
    result = hooked(program, "vllm.register()", hooks=text)
    ((level, message),) = result.messages
    assert level == "ERROR" and said in message


LEGACY = """\
type: marker
base_params: {}
targets:
  - module: "vllm.v1.core.sched.scheduler:Scheduler"
    function_name: add_request
    entry_operation: |
      open("executed", "w")
  - module: "omni.accelerators.cache.omni_cache:DecodeOmniCache"
    function_name: build_h2d_ops
    exit_operation: |
      open("executed", "w")
"""


def test_a_legacy_namelist_is_recognised_never_executed_and_what_it_lacks_is_named(
    program: Program,
) -> None:
    result = hooked(
        program,
        """
        vllm.register()
        from omnitrace.vllm import _imports
        say("vllm.v1.core.sched.scheduler" in _imports._finder.waiting)
        say(os.path.exists("executed"))
        """,
        hooks=LEGACY,
    )
    assert result.said == [True, False]
    ((level, text),) = result.messages
    assert level == "WARNING"
    assert "is a namelist of the old tools, whose Python text is not executed" in text
    assert "omni.accelerators.cache.omni_cache:DecodeOmniCache.build_h2d_ops" in text
    assert "Scheduler.add_request" not in text


def test_the_built_in_hooks_are_of_the_documented_shape(program: Program) -> None:
    code = textwrap.dedent("""
        from omnitrace.vllm import _plugin
        from omnitrace.vllm._hooks import load
        from omnitrace.vllm._stages import STAGES
        hooks = [h for f in _plugin._BUILT_IN.rglob("*.yaml") for h in load(f, STAGES)]
        say([sorted({h.do for h in hooks if h.do} ^ set(STAGES)), len(hooks) > 30])
    """)
    assert program.run(code).said == [[[], True]]
