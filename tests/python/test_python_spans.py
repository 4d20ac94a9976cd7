"""`omnitrace.span` around blocks, functions and generators, and what fails in them."""

from __future__ import annotations

from program import Program
from sink import Sink, forest


def test_blocks_nest_by_with_and_by_async_with(program: Program, sink: Sink) -> None:
    result = program.run(
        """
        import asyncio

        async def main():
            async with span("outer") as outer:
                with span("first") as first:
                    async with span("inmost"):
                        await asyncio.sleep(0)
                with span("second"):
                    pass
                say([outer.context.traceparent, first.context])

        asyncio.run(main())
        with span("other"):
            pass
        flush()
        say(stats()["created"])
        """
    )
    assert forest(sink.spans) == [
        ("outer", [("first", [("inmost", [])]), ("second", [])]),
        ("other", []),
    ]
    outer, other = (next(s for s in sink.spans if s.name == n) for n in ("outer", "other"))
    assert result.said == [[f"00-{outer.trace_id}-{outer.span_id}-01", None], 5]
    assert outer.trace_id != other.trace_id
    for span in sink.spans:
        assert (span.kind, span.status, span.message) == ("INTERNAL", "UNSET", "")
        assert (span.attributes, span.events, span.flags) == ({}, [], 1)
        assert span.resource["service.name"] == "vllm-serve"


def test_a_decorated_function_of_any_kind_gets_a_span_for_each_call(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        """
        import asyncio, inspect

        def inside():
            with span("inside"):
                pass

        @span("function")
        def function(x, *, y=1):
            "Its text."
            inside()
            return x + y

        class Service:
            @span("method", attributes={"kind": "method"})
            def method(self):
                return type(self).__name__

        @span("coroutine")
        async def coroutine(x):
            await asyncio.sleep(0)
            inside()
            return x

        @span("generator")
        def generator(n):
            for i in range(n):
                inside()
                yield i
            return "end"

        def reader():
            return (yield from generator(2))

        @span("stream")
        async def stream(n):
            for i in range(n):
                inside()
                yield i

        async def main():
            say(await coroutine(1))
            say([i async for i in stream(2)])

        say([function(1), function(1, y=2), Service().method(), list(generator(2))])
        asyncio.run(main())
        steps = reader()
        say([next(steps), next(steps)])
        try:
            next(steps)
        except StopIteration as end:
            say(end.value)
        say([function.__name__, function.__doc__, str(inspect.signature(function))])
        say([inspect.iscoroutinefunction(coroutine), inspect.isgeneratorfunction(generator),
             inspect.isasyncgenfunction(stream)])
        """
    )
    assert result.said == [
        [2, 3, "Service", [0, 1]],
        1,
        [0, 1],
        [0, 1],
        "end",
        ["function", "Its text.", "(x, *, y=1)"],
        [True, True, True],
    ]
    once: list[object] = [("inside", [])]
    twice: list[object] = [("inside", []), ("inside", [])]
    assert forest(sink.spans) == [
        ("function", once),
        ("function", once),
        ("method", []),
        ("generator", twice),
        ("coroutine", once),
        ("stream", twice),
        ("generator", twice),
    ]
    assert {s.name: s.attributes for s in sink.spans if s.attributes} == {
        "method": {"kind": "method"}
    }


def test_a_generator_is_current_only_while_it_runs(program: Program, sink: Sink) -> None:
    program.run(
        """
        import asyncio

        @span("a")
        def a():
            with span("part of a"):
                yield 1
                with span("deep in a"):
                    yield 2

        @span("b")
        def b():
            yield 1
            with span("part of b"):
                yield 2

        @span("stream")
        async def stream():
            yield 1
            with span("part of stream"):
                await asyncio.sleep(0)
            yield 2

        with span("reader"):
            for _ in zip(a(), b()):
                with span("reading"):
                    pass
            with span("after"):
                pass
        with span("nothing is left open"):
            pass

        async def main():
            async for _ in stream():
                with span("reading the stream"):
                    pass

        asyncio.run(main())
        """
    )
    reading: object = ("reading", [])
    assert forest(sink.spans) == [
        (
            "reader",
            [
                ("a", [("part of a", [("deep in a", [])])]),
                ("b", [("part of b", [])]),
                reading,
                reading,
                ("after", []),
            ],
        ),
        ("nothing is left open", []),
        ("stream", [("part of stream", [])]),
        ("reading the stream", []),
        ("reading the stream", []),
    ]


def test_a_generator_is_sent_to_thrown_into_and_closed_as_without_the_decorator(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        """
        import asyncio

        def echo():
            heard = None
            try:
                while True:
                    try:
                        heard = yield heard
                    except KeyError as error:
                        heard = f"caught {error}"
            finally:
                say("cleaned up")

        async def echo_later():
            heard = None
            try:
                while True:
                    try:
                        heard = yield heard
                    except KeyError as error:
                        heard = f"caught {error}"
            finally:
                await asyncio.sleep(0)
                say("cleaned up")

        def talk(steps):
            said = [next(steps), steps.send("a"), steps.throw(KeyError("k")), next(steps)]
            steps.close()
            return said

        async def talk_later(steps):
            said = [await steps.asend(None), await steps.asend("a"),
                    await steps.athrow(KeyError("k")), await steps.asend(None)]
            await steps.aclose()
            return said

        for plain, decorated in [(echo(), span("echo")(echo)())]:
            say([talk(plain), talk(decorated)])
        say([asyncio.run(talk_later(echo_later())),
             asyncio.run(talk_later(span("echo later")(echo_later)()))])
        """
    )
    talk = [None, "a", "caught 'k'", None]
    cleaned = ["cleaned up", "cleaned up"]
    assert result.said == [*cleaned, [talk, talk], *cleaned, [talk, talk]]
    # To stop reading is no failure.
    assert [(s.name, s.status) for s in sink.spans] == [
        ("echo", "UNSET"),
        ("echo later", "UNSET"),
    ]


def test_an_exception_marks_the_span_and_goes_on(program: Program, sink: Sink) -> None:
    result = program.run(
        """
        import asyncio

        class Refused(Exception):
            pass

        class Mute(Exception):
            def __str__(self):
                raise ValueError

        def fail(error):
            raise error

        def function(): fail(Refused("in a function"))
        async def coroutine(): fail(Refused("in a coroutine"))
        def generator():
            yield 1
            fail(Refused("in a generator"))
        async def stream():
            yield 1
            fail(Refused("in a stream"))

        async def read(steps):
            async for _ in steps:
                pass

        async def block():
            async with span("async block"):
                fail(Refused("in an async block"))

        def tried(name, call):
            try:
                call()
            except BaseException as error:
                say([name, type(error).__name__])

        def around(error, **more):
            with span("block", **more):
                fail(error)

        tried("function", span("function")(function))
        tried("coroutine", lambda: asyncio.run(span("coroutine")(coroutine)()))
        tried("generator", lambda: list(span("generator")(generator)()))
        tried("stream", lambda: asyncio.run(read(span("stream")(stream)())))
        tried("async block", lambda: asyncio.run(block()))
        tried("block", lambda: around(Mute()))
        tried("block", lambda: around(KeyboardInterrupt(), attributes={"error.type": "x"}))
        same = span("same")
        tried("same", lambda: same.__enter__() and same.__exit__(KeyError, KeyError("k"), None))
        with same:
            pass
        """
    )
    refused = [(n, "Refused") for n in ("function", "coroutine", "generator", "stream")]
    assert result.said == [
        *map(list, refused),
        ["async block", "Refused"],
        ["block", "Mute"],
        ["block", "KeyboardInterrupt"],
    ]
    assert [(s.name, s.status, s.message, s.attributes) for s in sink.spans] == [
        ("function", "ERROR", "in a function", {"error.type": "Refused"}),
        ("coroutine", "ERROR", "in a coroutine", {"error.type": "Refused"}),
        ("generator", "ERROR", "in a generator", {"error.type": "Refused"}),
        ("stream", "ERROR", "in a stream", {"error.type": "Refused"}),
        ("async block", "ERROR", "in an async block", {"error.type": "Refused"}),
        ("block", "ERROR", "?", {"error.type": "Mute"}),
        ("block", "ERROR", "", {"error.type": "KeyboardInterrupt"}),
        ("same", "ERROR", "'k'", {"error.type": "KeyError"}),
        ("same", "UNSET", "", {}),
    ]


def test_names_of_parameters_may_be_made_at_run_time(program: Program, sink: Sink) -> None:
    result = program.run(
        """
        def made(word):
            return "".join(list(word))

        with span(**{made("name"): "a", made("attributes"): {"k": 1}}):
            pass
        try:
            span(**{made("name"): "b", made("nonsense"): 1})
        except TypeError as error:
            say(str(error))
        """
    )
    assert [(span.name, span.attributes) for span in sink.spans] == [("a", {"k": 1})]
    assert result.said == ["span() got an unexpected keyword argument 'nonsense'"]
