"""What hangs under what: OpenTelemetry's context, and omnitrace's own blocks in it."""

from __future__ import annotations

from opentelemetry_program import GLOBAL, run
from program import Program
from sink import Sink, forest

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


def test_the_current_span_is_the_parent_unless_a_context_says_otherwise(
    program: Program, sink: Sink
) -> None:
    run(
        program,
        """
        with tracer.start_as_current_span("a") as a:
            with tracer.start_as_current_span("b"):
                tracer.start_span("under b").end()
                tracer.start_span("under a", trace.set_span_in_context(a)).end()
                with tracer.start_as_current_span("root", context=context.Context()):
                    tracer.start_span("under root").end()
                with trace.use_span(a):
                    tracer.start_span("under a by use_span").end()
            with tracer.start_span("not current"):
                tracer.start_span("beside it").end()
            token = context.attach(context.Context())
            tracer.start_span("another root").end()
            context.detach(token)
            tracer.start_span("under a again").end()
        tracer.start_span("last root").end()
        """,
    )
    assert forest(sink.spans) == [
        (
            "a",
            [
                ("b", [("under b", [])]),
                ("under a", []),
                ("under a by use_span", []),
                ("not current", []),
                ("beside it", []),
                ("under a again", []),
            ],
        ),
        ("root", [("under root", [])]),
        ("another root", []),
        ("last root", []),
    ]
    roots = [span for span in sink.spans if not span.parent_id]
    assert len({span.trace_id for span in roots}) == 4


def test_a_remote_parent_is_joined_with_its_flags_and_its_tracestate(
    program: Program, sink: Sink
) -> None:
    result = run(
        program,
        f"""
        carrier = {{"traceparent": "00-{TRACE}-{CALLER}-03", "tracestate": "a=1,b=2"}}
        caller = propagate.extract(carrier)
        with tracer.start_as_current_span("server", caller, SpanKind.SERVER) as server:
            say([server.parent.is_remote, f"{{server.parent.span_id:016x}}",
                 server.parent.trace_state.to_header(), server.parent.trace_flags])
            with tracer.start_as_current_span("inside"):
                onwards = {{}}
                propagate.inject(onwards)
                say(onwards)
        """,
    )
    inside, server = sink.spans
    assert result.said == [
        [True, CALLER, "a=1,b=2", 3],
        {"traceparent": f"00-{TRACE}-{inside.span_id}-03", "tracestate": "a=1,b=2"},
    ]
    assert (server.trace_id, server.parent_id, server.remote) == (TRACE, CALLER, True)
    assert (inside.trace_id, inside.parent_id, inside.remote) == (TRACE, server.span_id, False)
    assert {span.trace_state for span in sink.spans} == {"a=1,b=2"}
    assert {span.flags for span in sink.spans} == {3}


def test_an_invalid_parent_is_none(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        for trace_id, span_id in (0, 0), (1, 0), (0, 1):
            invalid = NonRecordingSpan(SpanContext(trace_id, span_id, is_remote=True))
            tracer.start_span("root", trace.set_span_in_context(invalid)).end()
        """,
    )
    assert [(s.parent_id, s.remote) for s in sink.spans] == 3 * [("", False)]
    assert len({span.trace_id for span in sink.spans}) == 3


def test_a_callers_decision_against_a_trace_is_passed_on(program: Program, sink: Sink) -> None:
    result = run(
        program,
        f"""
        caller = propagate.extract({{"traceparent": "00-{TRACE}-{CALLER}-00", "tracestate": "a=1"}})
        with tracer.start_as_current_span("server", caller) as server:
            inner = tracer.start_span("inner")
            with trace.use_span(inner, end_on_exit=True):
                with span("ours"):
                    onwards = {{}}
                    propagate.inject(onwards)
        parts = onwards["traceparent"].split("-")
        say([parts[1], parts[2] != "{CALLER}", parts[3], onwards["tracestate"]])
        say([server.is_recording(), isinstance(server, NonRecordingSpan), isinstance(server, trace.Span),
             server.get_span_context().trace_state.to_header()])
        server.set_attribute("a", 1)
        server.set_attributes({{"a": 1}})
        server.add_event("e", {{}}, 1)
        server.add_link(server.get_span_context(), {{}})
        server.update_name("n")
        server.set_status(StatusCode.ERROR, "d")
        server.record_exception(ValueError())
        server.end(1)
        with server as same:
            assert same is server
        flush()
        say(stats()["unsampled"])
        """,
    )
    assert result.said == [
        [TRACE, True, "00", "a=1"],
        [False, True, True, "a=1"],
        3,
    ]
    assert sink.spans == []


def test_spans_follow_tasks_threads_and_generators_with_their_context(
    program: Program, sink: Sink
) -> None:
    run(
        program,
        """
        import asyncio, contextvars, concurrent.futures

        async def task(n):
            with tracer.start_as_current_span(f"task {n}"):
                await asyncio.sleep(0.001 * (3 - n))
                with tracer.start_as_current_span(f"inside {n}"):
                    await asyncio.sleep(0)

        async def main():
            with tracer.start_as_current_span("main"):
                await asyncio.gather(*(task(n) for n in range(3)))
                await asyncio.to_thread(tracer.start_span("to_thread").end)

        def generator():
            with tracer.start_as_current_span("generator"):
                yield 1
                with tracer.start_as_current_span("in generator"):
                    yield 2

        asyncio.run(main())
        with tracer.start_as_current_span("threads"):
            copy = contextvars.copy_context()
            with concurrent.futures.ThreadPoolExecutor() as pool:
                pool.submit(copy.run, lambda: tracer.start_span("with context").end()).result()
                pool.submit(lambda: tracer.start_span("without").end()).result()
        for _ in generator():
            pass
        """,
    )
    trees = dict(forest(sink.spans))
    assert sorted(trees.pop("main")) == [
        *((f"task {n}", [(f"inside {n}", [])]) for n in range(3)),
        ("to_thread", []),
    ]
    assert trees == {
        "threads": [("with context", [])],
        "without": [],
        "generator": [("in generator", [])],
    }


def test_a_decorated_function_gets_a_span_for_each_call(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        import asyncio, inspect

        @tracer.start_as_current_span("function", attributes={"n": 1})
        def function(x, *, y=1):
            "Its text."
            tracer.start_span("inside").end()
            return x + y

        @tracer.start_as_current_span("coroutine")
        async def coroutine(x):
            await asyncio.sleep(0)
            tracer.start_span("inside").end()
            return x

        @tracer.start_as_current_span("recursive")
        def recursive(n):
            return n and recursive(n - 1)

        say([function(1), function(1, y=2), asyncio.run(coroutine(5)), recursive(2)])
        say([function.__name__, function.__doc__, inspect.iscoroutinefunction(coroutine)])
        """,
    )
    assert result.said == [[2, 3, 5, 0], ["function", "Its text.", True]]
    once: object = [("inside", [])]
    assert forest(sink.spans) == [
        ("function", once),
        ("function", once),
        ("coroutine", once),
        ("recursive", [("recursive", [("recursive", [])])]),
    ]
    assert [s.attributes for s in sink.spans if s.name == "function"] == 2 * [{"n": 1}]


def test_a_span_is_started_when_its_block_is_entered(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        block = tracer.start_as_current_span("inner")
        with tracer.start_as_current_span("outer"):
            with block:
                try:
                    block.__enter__()
                except RuntimeError as error:
                    say(str(error))
        with block:
            pass
        """,
    )
    assert result.said == ["this block is open: call start_as_current_span for another one"]
    assert forest(sink.spans) == [("outer", [("inner", [])]), ("inner", [])]


def test_our_blocks_and_opentelemetrys_are_each_others_parents(
    program: Program, sink: Sink
) -> None:
    result = run(
        program,
        """
        def injected():
            theirs, ours = {}, {}
            propagate.inject(theirs)
            inject(ours)
            return [theirs["traceparent"], ours["traceparent"]]

        with tracer.start_as_current_span("1") as one:
            with span("2") as two:
                with tracer.start_as_current_span("3") as three:
                    with span("4") as four:
                        say(injected() + [four.context.traceparent])
                    three = three.get_span_context()
                    say(injected() + [f"00-{three.trace_id:032x}-{three.span_id:016x}-01"])
                say(injected() + [two.context.traceparent])
                token = context.attach(baggage.set_baggage("k", "v"))
                with span("baggage stays"):
                    say(baggage.get_baggage("k"))
                context.detach(token)
        with span("5"):
            with tracer.start_as_current_span("6"):
                pass
            with span("7", parent=extract({"traceparent": CALLER})):
                pass
        say(injected() if trace.get_current_span() is not trace.INVALID_SPAN else "nothing")
        """,
        before=GLOBAL + f'CALLER = "00-{TRACE}-{CALLER}-01"\n',
    )
    for theirs, ours, expected in result.said[:3]:
        assert (theirs, ours) == (expected, expected)
    assert result.said[3:] == ["v", "nothing"]
    assert forest(sink.spans) == [
        ("1", [("2", [("3", [("4", [])]), ("baggage stays", [])])]),
        ("5", [("6", [])]),
        ("7", []),
    ]
    assert {s.name: s.scope.name for s in sink.spans} == {
        **dict.fromkeys(("2", "4", "5", "7", "baggage stays"), "omnitrace"),
        **dict.fromkeys(("1", "3", "6"), "library"),
    }
    seven = next(s for s in sink.spans if s.name == "7")
    assert (seven.trace_id, seven.parent_id) == (TRACE, CALLER)


def test_opentelemetry_code_may_add_to_our_block(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        with span("first name", attributes={"a": 1, "b": 1, "c": 1}) as ours:
            ours.set_attribute("b", 2)
            current = trace.get_current_span()
            say([current.is_recording(), isinstance(current, trace.Span), current.name,
                 current.instrumentation_scope.name])
            current.set_attribute("c", 3)
            current.set_attributes({"d": 4})
            current.add_event("event", {"x": 1}, 5)
            current.add_link(SpanContext(1, 2, False))
            current.set_status(StatusCode.OK)
            current.update_name("last name")
            current.end()
        say(current.is_recording())
        try:
            with span("failed"):
                trace.get_current_span().add_event("before")
                raise ValueError("no")
        except ValueError:
            pass
        with span("untouched"):
            trace.get_current_span()
        """,
    )
    assert result.said == [[True, True, "first name", "omnitrace"], False]
    first, failed, untouched = sink.spans
    assert (first.name, first.status) == ("last name", "OK")
    assert first.attributes == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert [(e.name, e.time, e.attributes) for e in first.events] == [("event", 5, {"x": 1})]
    assert [(int(ln.trace_id, 16), int(ln.span_id, 16)) for ln in first.links] == [(1, 2)]
    assert (failed.status, failed.message, failed.attributes) == (
        "ERROR",
        "no",
        {"error.type": "ValueError"},
    )
    assert [e.name for e in failed.events] == ["before"]
    assert (untouched.name, untouched.attributes, untouched.events) == ("untouched", {}, [])


def test_our_generators_take_opentelemetrys_spans_with_them(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        @span("generator")
        def generator():
            with tracer.start_as_current_span("part"):
                yield 1
                with span("deep"):
                    yield 2

        with tracer.start_as_current_span("reader"):
            for _ in generator():
                tracer.start_span("reading").end()
        tracer.start_span("nothing is left open").end()
        """,
    )
    reading: object = ("reading", [])
    assert forest(sink.spans) == [
        ("reader", [("generator", [("part", [("deep", [])])]), reading, reading]),
        ("nothing is left open", []),
    ]


def test_a_block_that_is_open_when_the_face_is_imported_stays_the_parent(
    program: Program, sink: Sink
) -> None:
    run(
        program,
        """
        with span("before"):
            from omnitrace.opentelemetry import TracerProvider
            tracer = TracerProvider().get_tracer("library")
            with tracer.start_as_current_span("theirs"):
                with span("ours"):
                    pass
            tracer.start_span("also theirs").end()
        tracer.start_span("after").end()
        """,
        before="",
    )
    assert forest(sink.spans) == [
        ("before", [("theirs", [("ours", [])]), ("also theirs", [])]),
        ("after", []),
    ]


def test_a_runtime_context_of_the_programs_own_is_used(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        import opentelemetry.context
        from opentelemetry.context.context import Context, _RuntimeContext

        class Plain(_RuntimeContext):
            stack = [Context()]
            def attach(self, context):
                self.stack.append(context)
                return len(self.stack)
            def get_current(self):
                return self.stack[-1]
            def detach(self, token):
                del self.stack[token - 1:]

        opentelemetry.context._RUNTIME_CONTEXT = Plain()
        from omnitrace.opentelemetry import TracerProvider
        tracer = TracerProvider().get_tracer("library")
        with tracer.start_as_current_span("1"):
            with span("2"):
                with tracer.start_as_current_span("3"):
                    pass
        assert len(Plain.stack) == 1
        tracer.start_span("4").end()
        """,
        before="",
    )
    assert forest(sink.spans) == [("1", [("2", [("3", [])])]), ("4", [])]


def test_a_request_is_the_parent_of_what_opentelemetry_does_for_it(
    program: Program, sink: Sink
) -> None:
    run(
        program,
        f"""
        extract({{"traceparent": "00-{TRACE}-{CALLER}-01"}}, "chatcmpl-1")
        action("PD api server get request", "chatcmpl-1")
        with span("work", request_id="chatcmpl-1"):
            with tracer.start_as_current_span("call"):
                pass
        action("Finish prefill pickle and start response", "chatcmpl-1")
        """,
        before=GLOBAL,
        ROLE="prefill",
    )
    by_name = {span.name: span for span in sink.spans}
    assert {span.trace_id for span in sink.spans} == {TRACE}
    assert by_name["call"].parent_id == by_name["work"].span_id
    assert by_name["work"].parent_id == by_name["Prefill"].span_id
