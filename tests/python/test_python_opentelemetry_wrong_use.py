"""Wrong uses of OpenTelemetry's API: said once, and the program goes on."""

from __future__ import annotations

from opentelemetry_program import GLOBAL, messages
from program import Program
from sink import Sink


def test_wrong_uses_of_a_span_are_said_once_and_change_nothing(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        """
        for _ in range(2):
            span = tracer.start_span("s", kind="server", start_time="now", attributes=[1], links=5)
            say([span.kind.name, abs(span.start_time - time.time_ns()) < 60 * 10**9])
            span.set_attribute("", 1)
            span.set_attribute(None, 1)
            span.set_attributes({"": 1, "a": 1, 5: "five"})
            span.set_attributes(7)
            span.add_event("e", attributes=7, timestamp=-1)
            span.set_status("ERROR")
            span.set_status(Status(StatusCode.ERROR, "kept"), "ignored")
            span.add_link("not a context", {"a": 1})
            span.record_exception(ValueError("v"), attributes=7)
            span.end()
            span.end()
            span.set_attribute("late", 1)
            span.add_event("late")
            span.update_name("late")
            span.set_status(StatusCode.OK)
        """,
        before=GLOBAL,
    )
    assert result.said == 2 * [["INTERNAL", True]]
    once = " (said once)"
    said = [text for level, text in messages(result) if level == "WARNING"]
    assert len(said) == len(messages(result))
    assert all(text.endswith(once) for text in said)
    beginnings = [
        "a span's kind is not a SpanKind: INTERNAL",
        "attributes of <class 'list'> are no mapping: ignored",
        "a time is not a number of nanoseconds since 1970: now",
        "links are no sequence of links",
        "an attribute without a key is left out",
        "set_status needs a Status or a StatusCode: ignored",
        "set_status of a Status takes no description: ignored",
        "a link needs a SpanContext",
        "a span has been ended twice; the first end counts",
        "set_attribute of a span that has ended has no effect",
    ]
    assert len(said) == len(beginnings)
    for beginning in beginnings:
        assert any(text.startswith(beginning) for text in said), beginning
    for span in sink.spans:
        assert (span.name, span.kind, span.status, span.message) == (
            "s",
            "INTERNAL",
            "ERROR",
            "kept",
        )
        assert span.attributes == {"a": 1, "5": "five"}
        assert [(event.name, len(event.attributes)) for event in span.events] == [
            ("e", 0),
            ("exception", 4),
        ]
        assert (span.links, span.dropped) == ([], (0, 0, 1))


def test_what_fails_in_the_programs_own_parts_never_reaches_its_requests(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        """
        class Broken:
            def __getattr__(self, name):
                raise RuntimeError(name)

        class Sampler:
            def should_sample(self, *given): raise RuntimeError("sampler")

        class Ids:
            def generate_trace_id(self): raise RuntimeError("ids")
            def generate_span_id(self): return 0

        class Processor:
            def on_start(self, span, parent_context=None): raise RuntimeError("on_start")
            def on_end(self, span): raise RuntimeError("on_end")
            def shutdown(self): pass

        class Unprintable(Exception):
            def __str__(self): raise RuntimeError("str")

        for n in range(2):
            provider = TracerProvider(sampler=Sampler(), id_generator=Ids())
            provider.add_span_processor(Processor())
            tracer = provider.get_tracer("library")
            try:
                with tracer.start_as_current_span("s", attributes={"a": 1}):
                    raise Unprintable
            except Unprintable:
                pass
            token = context.attach(context.set_value(trace.propagation._SPAN_KEY, Broken()))
            tracer.start_span("under what is no span").end()
            context.detach(token)
            tracer.start_span(Broken, attributes={"text": Unprintable()}).end()
        """,
        before=GLOBAL,
    )
    said = sorted(text for _, text in messages(result))
    assert [text.partition(" (")[0] for text in said] == [
        "a span processor fails",
        "the current span, a <class '__main__.Broken'>, has no span context",
        "the id generator fails",
        "the sampler fails",
    ]
    assert len(sink.spans) == 6
    for span in sink.spans:
        assert (span.parent_id, span.flags) == ("", 1)
    first = sink.spans[0]
    assert (first.name, first.status, first.message) == ("s", "ERROR", "Unprintable: ?")
    assert first.events[0].attributes["exception.message"] == "?"
    assert [s.attributes for s in sink.spans if s.name.startswith("<class")] == 2 * [{"text": "?"}]


def test_ids_that_are_none_are_replaced(program: Program, sink: Sink) -> None:
    result = program.run(
        """
        class Ids:
            def generate_trace_id(self): return 0
            def generate_span_id(self): return 0

        tracer = TracerProvider(id_generator=Ids()).get_tracer("library")
        tracer.start_span("s").end()
        """,
        before=GLOBAL,
    )
    ((_, text),) = messages(result)
    assert text == "the id generator gives an invalid id: a random one instead (said once)"
    (span,) = sink.spans
    assert int(span.trace_id, 16) and int(span.span_id, 16)


def test_wrong_arguments_of_a_call_are_errors_as_with_any_function(program: Program) -> None:
    result = program.run(
        """
        span = tracer.start_span("s")
        for call in (
            lambda: tracer.start_span(),
            lambda: tracer.start_span("s", nonsense=1),
            lambda: tracer.start_span("s", None, name="t"),
            lambda: tracer.start_span(*range(9)),
            lambda: tracer.start_as_current_span(),
            lambda: span.set_attribute("k"),
            lambda: span.end(1, 2),
            lambda: span.is_recording(1),
        ):
            try:
                call()
            except TypeError as error:
                say(str(error))
        """,
        before=GLOBAL,
    )
    assert result.said == [
        "start_span() missing required argument 'name'",
        "start_span() got an unexpected keyword argument 'nonsense'",
        "start_span() got multiple values for argument 'name'",
        "start_span() takes 8 positional arguments but 9 were given",
        "start_as_current_span() missing required argument 'name'",
        "set_attribute() missing required argument 'value'",
        "end() takes 1 positional arguments but 2 were given",
        "is_recording() takes 0 positional arguments but 1 were given",
    ]


def test_a_handler_of_the_programs_log_may_use_the_span_that_is_complained_of(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        """
        class Handler(logging.Handler):
            def emit(self, record):
                current = trace.get_current_span()
                current.set_attribute("said", record.getMessage())
                current.end()

        logging.getLogger("omnitrace").addHandler(Handler())
        with tracer.start_as_current_span("s") as span:
            span.set_status("wrong")
        span.end()
        """,
        before=GLOBAL,
    )
    assert len(messages(result)) == 2
    (span,) = sink.spans
    assert str(span.attributes["said"]).startswith("set_status needs")
