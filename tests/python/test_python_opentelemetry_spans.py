"""Spans made by OpenTelemetry's API: all that they can say arrives."""

from __future__ import annotations

from dataclasses import replace

from opentelemetry_program import GLOBAL, run
from program import NODE, Program
from sink import Event, Link, Scalar, Scope, Sink, Span


def attributes(program: Program, sink: Sink, code: str, **variables: str) -> dict[str, object]:
    """What the one span of a program says, given attributes as `code` makes them."""
    run(program, f"tracer.start_span('s', attributes={code}).end()", **variables)
    (span,) = sink.spans
    return dict(span.attributes)


def test_a_span_arrives_with_all_that_was_said_of_it(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        tracer = trace.get_tracer("library", "1.2", schema_url="https://schema/1",
                                  attributes={"part": "core", "n": 1})
        other = SpanContext(0xabc, 0xdef, is_remote=True, trace_flags=TraceFlags(1),
                            trace_state=TraceState([("vendor", "x")]))
        span = tracer.start_span(
            "first name", context.Context(), SpanKind.CLIENT, {"a": 1, "b": "old"},
            [Link(other, {"why": "batch"})], 1_000_000_000_000_000_000,
        )
        span.set_attribute("b", "new")
        span.set_attributes({"c": True, "d": 0.5})
        span.add_event("event", {"x": 1}, 1_000_000_000_000_000_500)
        span.add_event("later", timestamp=1_000_000_000_000_000_600)
        span.add_link(span.get_span_context())
        span.set_status(StatusCode.ERROR, "it failed")
        span.update_name("last name")
        span.end(1_000_000_000_000_001_000)
        own = span.get_span_context()
        say([f"{own.trace_id:032x}", f"{own.span_id:016x}", own.is_remote, own.trace_flags,
             dict(own.trace_state)])
        """,
    )
    trace_id, span_id, *rest = result.said[0]
    assert rest == [False, 1, {}]
    resource = sink.spans[0].resource
    assert sink.spans == [
        Span(
            name="last name",
            trace_id=trace_id,
            span_id=span_id,
            parent_id="",
            flags=1,
            kind="CLIENT",
            start=1_000_000_000_000_000_000,
            end=1_000_000_000_000_001_000,
            status="ERROR",
            message="it failed",
            attributes={"a": 1, "b": "new", "c": True, "d": 0.5},
            events=[
                Event("event", 1_000_000_000_000_000_500, {"x": 1}),
                Event("later", 1_000_000_000_000_000_600, {}),
            ],
            resource=resource,
            remote=False,
            trace_state="",
            links=[
                Link(f"{0xABC:032x}", f"{0xDEF:016x}", "vendor=x", {"why": "batch"}),
                Link(trace_id, span_id, "", {}),
            ],
            dropped=(0, 0, 0),
            scope=Scope("library", "1.2", "https://schema/1", {"part": "core", "n": 1}),
        )
    ]
    assert (resource["service.name"], resource["host.ip"]) == ("vllm-serve", NODE)


def test_each_kind_is_what_it_is(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        for kind in SpanKind:
            tracer.start_span(kind.name, kind=kind).end()
        tracer.start_span("INTERNAL").end()
        """,
    )
    kinds = ["INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER", "INTERNAL"]
    assert [(span.name, span.kind) for span in sink.spans] == [(kind, kind) for kind in kinds]


def test_attributes_are_copied_when_the_span_starts(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        attributes, items = {"a": 1}, [1, 2]
        attributes["list"] = items
        with tracer.start_as_current_span("s", attributes=attributes) as span:
            attributes["a"] = 2
            attributes["b"] = 3
            items.append(3)
            event = {"e": 1}
            span.add_event("event", event)
            event.clear()
        """,
    )
    (span,) = sink.spans
    assert span.attributes == {"a": 1, "list": [1, 2]}
    assert span.events[0].attributes == {"e": 1}


def test_every_type_of_value_arrives(program: Program, sink: Sink) -> None:
    found = attributes(
        program,
        sink,
        """(lambda collections: {
            "text": "ünï ✓", "yes": True, "int": -7, "largest": 2**63 - 1, "float": 0.1,
            "texts": ["a", "b"], "ints": (1, 2), "floats": [0.5], "truths": [True, False],
            "empty": [], "deque": collections.deque(["a"]), "range": range(3),
            "numbers": [1, 2.5], "with none": ["a", None], "ints with none": [None, 1],
            "floats with none": [None, 0.5], "truths with none": [True, None], "nones": [None],
            "mixed": ["a", 1, True], "none": None, "bytes": b"text", "binary": b"\\xff\\x00",
            "huge": 10**30, "mapping": {"k": [1, None], "t": (1,)}, "nested": [["a"], [1]],
            "mappings": [{"k": 1}], "other": 1j, "lone surrogate": "a\\ud800",
        })(__import__('collections'))""",
    )
    assert found == {
        "text": "ünï ✓",
        "yes": True,
        "int": -7,
        "largest": 2**63 - 1,
        "float": 0.1,
        "texts": ["a", "b"],
        "ints": [1, 2],
        "floats": [0.5],
        "truths": [True, False],
        "empty": [],
        "deque": ["a"],
        "range": [0, 1, 2],
        "numbers": [1.0, 2.5],
        "with none": ["a", ""],
        "ints with none": [0, 1],
        "floats with none": [0.0, 0.5],
        "truths with none": [True, False],
        "nones": [""],
        "mixed": ["a", "1", "True"],
        "bytes": "text",
        "binary": "/wA=",
        "huge": "1" + "0" * 30,
        "mapping": '{"k": [1, null], "t": [1]}',
        "nested": '[["a"], [1]]',
        "mappings": '[{"k": 1}]',
        "other": "1j",
        "lone surrogate": "a\ufffd\ufffd\ufffd",
    }
    assert type(found["yes"]) is bool


def test_attributes_come_from_any_mapping(program: Program, sink: Sink) -> None:
    code = "__import__('types').MappingProxyType({'a': 1, 'b': ['x']})"
    assert attributes(program, sink, code) == {"a": 1, "b": ["x"]}


def test_more_attributes_than_a_few_are_all_there_in_their_order(
    program: Program, sink: Sink
) -> None:
    found = attributes(program, sink, "{f'key {n}': n for n in range(100)}")
    assert list(found.items()) == [(f"key {n}", n) for n in range(100)]


def test_a_status_follows_the_specifications_rules(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        def made(name, *statuses):
            span = tracer.start_span(name)
            for status in statuses:
                span.set_status(*status) if isinstance(status, tuple) else span.set_status(status)
            span.end()

        made("nothing")
        made("ok", StatusCode.OK)
        made("ok stays", StatusCode.OK, (StatusCode.ERROR, "no"))
        made("ok after an error", (StatusCode.ERROR, "at first"), StatusCode.OK)
        made("an error is not unset", (StatusCode.ERROR, "e"), StatusCode.UNSET)
        made("the last error", (StatusCode.ERROR, "1"), Status(StatusCode.ERROR, "2"))
        made("without a word", StatusCode.ERROR)
        made("ok says nothing", (StatusCode.OK, "description"))
        """,
    )
    assert [(s.name, s.status, s.message) for s in sink.spans] == [
        ("nothing", "UNSET", ""),
        ("ok", "OK", ""),
        ("ok stays", "OK", ""),
        ("ok after an error", "OK", ""),
        ("an error is not unset", "ERROR", "e"),
        ("the last error", "ERROR", "2"),
        ("without a word", "ERROR", ""),
        ("ok says nothing", "OK", ""),
    ]


FAIL = """
class Refused(Exception):
    pass

def fail(error=None):
    raise error or Refused("no room")

def tried(block):
    try:
        with block as span:
            fail()
    except Refused:
        return span
"""


def test_an_exception_is_recorded_as_the_conventions_say(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        span = tracer.start_span("s")
        try:
            fail()
        except Refused as error:
            span.record_exception(error)
            span.record_exception(error, {"exception.message": "mine", "more": 1}, 77, True)
        try:
            {}["k"]
        except KeyError as error:
            span.record_exception(error)
        span.end()
        """,
        before=GLOBAL + FAIL,
    )
    (span,) = sink.spans
    assert (span.status, span.message) == ("UNSET", "")
    refused, again, missing = span.events
    stack = refused.attributes["exception.stacktrace"]
    assert isinstance(stack, str) and stack.startswith("Traceback (most recent call last):\n")
    assert 'raise error or Refused("no room")' in stack
    assert stack.endswith("\nRefused: no room\n")
    expected: dict[str, Scalar] = {
        "exception.type": "__main__.Refused",
        "exception.message": "no room",
        "exception.stacktrace": stack,
        "exception.escaped": "False",
    }
    assert span.start <= refused.time <= span.end
    assert refused == Event("exception", refused.time, expected)
    escaped: dict[str, Scalar] = {
        "exception.message": "mine",
        "more": 1,
        "exception.escaped": "True",
    }
    assert again == Event("exception", 77, expected | escaped)
    assert missing.attributes["exception.type"] == "KeyError"
    assert missing.attributes["exception.message"] == "'k'"


def test_an_exception_that_leaves_a_block_is_recorded_unless_told_otherwise(
    program: Program, sink: Sink
) -> None:
    run(
        program,
        """
        current = tracer.start_as_current_span
        tried(current("block"))
        tried(current("not recorded", record_exception=False))
        tried(current("status left alone", set_status_on_exception=False))
        tried(tracer.start_span("the span itself"))
        tried(tracer.start_span("nothing", record_exception=False, set_status_on_exception=False))
        tried(trace.use_span(tracer.start_span("use_span"), end_on_exit=True))
        with tracer.start_as_current_span("said to be fine") as span:
            span.set_status(StatusCode.OK)
            tried(trace.use_span(span))
        """,
        before=GLOBAL + FAIL,
    )
    failed = "Refused: no room"

    def said(span: Span) -> tuple[object, ...]:
        escaped = [event.attributes["exception.escaped"] for event in span.events]
        return span.name, span.status, span.message, escaped

    assert [said(span) for span in sink.spans] == [
        ("block", "ERROR", failed, ["False"]),
        ("not recorded", "ERROR", failed, []),
        ("status left alone", "UNSET", "", ["False"]),
        ("the span itself", "ERROR", failed, ["True"]),
        ("nothing", "UNSET", "", []),
        ("use_span", "ERROR", failed, ["False"]),
        ("said to be fine", "OK", "", ["False"]),
    ]


def test_what_is_no_exception_does_not_fail_a_block(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        def steps():
            with tracer.start_as_current_span("generator"):
                yield 1

        for _ in steps():
            break
        try:
            with tracer.start_as_current_span("exit"):
                sys.exit(0)
        except SystemExit:
            pass
        """,
    )
    assert [(s.name, s.status, s.events) for s in sink.spans] == [
        ("generator", "UNSET", []),
        ("exit", "UNSET", []),
    ]


def test_a_block_leaves_its_span_open_if_it_is_told_to(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        with tracer.start_as_current_span("s", end_on_exit=False) as span:
            pass
        say([span.is_recording(), span.end_time, trace.get_current_span() is trace.INVALID_SPAN])
        span.set_attribute("late", True)
        span.end()
        say([span.is_recording(), span.end_time is None])
        """,
    )
    assert result.said == [[True, None, True], [False, False]]
    assert [(s.name, s.attributes) for s in sink.spans] == [("s", {"late": True})]


def test_all_that_a_span_says_can_be_read_before_and_after_its_end(program: Program) -> None:
    result = run(
        program,
        """
        import weakref
        tracer = trace.get_tracer_provider().get_tracer(
            "library", "1.2", "https://schema/1", {"part": "core"})
        with tracer.start_as_current_span("parent") as parent:
            span = tracer.start_span("s", kind=SpanKind.SERVER, attributes={"a": [1, 2]},
                                     links=[Link(parent.get_span_context(), {"l": 1})], start_time=5)

        def seen():
            scope, link, event = span.instrumentation_scope, span.links[0], span.events[0]
            return [
                span.name, span.kind is SpanKind.SERVER, span.start_time, span.end_time,
                dict(span.attributes), span.attributes["a"] == (1, 2),
                [event.name, event.timestamp, dict(event.attributes), event.dropped_attributes],
                [link.context == parent.get_span_context(), dict(link.attributes)],
                [span.status.status_code is StatusCode.ERROR, span.status.description],
                span.context is span.get_span_context(), span.parent == parent.get_span_context(),
                [scope.name, scope.version, scope.schema_url, dict(scope.attributes)],
                span.resource.attributes["service.name"],
                [span.dropped_attributes, span.dropped_events, span.dropped_links],
            ]

        span.set_status(Status(StatusCode.ERROR, "why"))
        span.add_event("e", {"x": 1}, 6)
        before = seen()
        span.end(7)
        after = seen()
        before[3] = 7
        say(before == after)
        say(after)
        say([isinstance(span, trace.Span), isinstance(tracer, trace.Tracer),
             isinstance(span, NonRecordingSpan), parent.parent])
        span.anything = 1
        say([span.anything, weakref.ref(span)() is span, len({span, span, parent})])
        try:
            span.attributes["a"] = 1
        except TypeError:
            say("read-only")
        """,
    )
    assert result.said == [
        True,
        [
            "s",
            True,
            5,
            7,
            {"a": [1, 2]},
            True,
            ["e", 6, {"x": 1}, 0],
            # A link does not keep the flags of what it points to.
            [False, {"l": 1}],
            [True, "why"],
            True,
            True,
            ["library", "1.2", "https://schema/1", {"part": "core"}],
            "vllm-serve",
            [0, 0, 0],
        ],
        [True, True, False, None],
        [1, True, 2],
        "read-only",
    ]


def test_each_scope_is_told_from_the_others_after_a_new_set_up_too(
    program: Program, sink: Sink
) -> None:
    run(
        program,
        """
        tracers = [trace.get_tracer(name) for name in "abab"]
        assert tracers[0] is tracers[2] and tracers[0] is not tracers[1]
        for tracer in tracers[:2]:
            tracer.start_span("1").end()
        init()
        for tracer in reversed(tracers[:2]):
            tracer.start_span("2").end()
        with span("3"):
            pass
        """,
    )
    assert sorted((s.name, s.scope.name) for s in sink.spans) == [
        ("1", "a"),
        ("1", "b"),
        ("2", "a"),
        ("2", "b"),
        ("3", "omnitrace"),
    ]


def test_limits_keep_the_latest_and_count_the_rest(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        here = SpanContext(1, 1, False)
        links = [Link(here, {"n": n, "m": n}) for n in range(3)]
        span = tracer.start_span("s", attributes={"a": "12345", "b": 1, "c": ["123456"]}, links=links)
        span.set_attribute("b", 2)
        span.set_attributes({"d": 3})
        for n in range(3):
            span.add_event(str(n), {"x": "éééé", "y": 1}, timestamp=n)
        span.end()
        """,
        OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="2",
        OTEL_SPAN_EVENT_COUNT_LIMIT="2",
        OTEL_SPAN_LINK_COUNT_LIMIT="1",
        OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT="1",
        OTEL_LINK_ATTRIBUTE_COUNT_LIMIT="1",
        OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT="3",
        OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT="4",
    )
    (span,) = sink.spans
    assert (span.attributes, span.dropped) == ({"b": 2, "d": 3}, (2, 1, 2))
    assert span.events == [Event("1", 1, {"y": 1}, 1), Event("2", 2, {"y": 1}, 1)]
    assert span.links == [Link("0" * 31 + "1", "0" * 15 + "1", "", {"m": 2}, 1)]


def test_texts_are_cut_where_the_limit_says(program: Program, sink: Sink) -> None:
    found = attributes(
        program,
        sink,
        "{'long': 'ééééé', 'short': 'éé', 'list': ['12345', '1'], 'n': 123456}",
        OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT="3",
    )
    assert found == {"long": "ééé", "short": "éé", "list": ["123", "1"], "n": 123456}


def test_no_attribute_event_or_link_is_kept_where_the_limit_is_0(
    program: Program, sink: Sink
) -> None:
    run(
        program,
        """
        span = tracer.start_span("s", attributes={"a": 1}, links=[Link(SpanContext(1, 1, False))])
        span.add_event("e")
        span.end()
        """,
        OTEL_ATTRIBUTE_COUNT_LIMIT="0",
        OTEL_SPAN_EVENT_COUNT_LIMIT="0",
        OTEL_SPAN_LINK_COUNT_LIMIT="0",
    )
    (span,) = sink.spans
    nothing = replace(span, attributes={}, events=[], links=[], dropped=(1, 1, 1))
    assert span == nothing
