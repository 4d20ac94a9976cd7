"""`omnitrace.opentelemetry.TracerProvider`: what it is given."""

from __future__ import annotations

import pytest

from opentelemetry_program import SAMPLED, SET_UP, UNSAMPLED, messages, run
from program import Program
from sink import Event, Link, Sink

SDK = (
    SET_UP
    + """\
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
"""
)

# Starts one span without a parent and one under each of a caller's decisions, local and remote.
DECISIONS = f"""
def decisions(provider):
    tracer = provider.get_tracer("library")
    found = [tracer.start_span("root").is_recording()]
    for traceparent in "{SAMPLED}", "{UNSAMPLED}":
        remote = propagate.extract({{"traceparent": traceparent}})
        found.append(tracer.start_span("remote", remote).is_recording())
        context = trace.get_current_span(remote).get_span_context()
        local = SpanContext(context.trace_id, 5, False, context.trace_flags)
        local = trace.set_span_in_context(NonRecordingSpan(local))
        found.append(tracer.start_span("local", local).is_recording())
    return found
"""
FOUND = {
    "always_on": [True, True, True, True, True],
    "always_off": [False, False, False, False, False],
    "parentbased_always_on": [True, True, True, False, False],
    "parentbased_always_off": [False, True, True, False, False],
}


@pytest.mark.parametrize("name", FOUND)
def test_a_standard_sampler_decides_the_same_by_name_as_an_object_and_from_the_environment(
    program: Program, name: str
) -> None:
    result = run(
        program,
        f"""
        name = "{name}"
        theirs = sampling._KNOWN_SAMPLERS[name]
        say(decisions(TracerProvider(sampler=name)))
        say(decisions(TracerProvider(sampler=theirs)))
        say(decisions(TracerProvider()))
        say(TracerProvider().sampler)
        """,
        before=SDK + DECISIONS,
        OTEL_TRACES_SAMPLER=name,
    )
    assert result.said == [FOUND[name], FOUND[name], FOUND[name], name]


def test_a_ratio_chooses_the_traces_that_the_sdk_chooses(program: Program) -> None:
    result = run(
        program,
        """
        import random
        ids = [random.getrandbits(128) for _ in range(2000)]

        class Ids:
            def generate_trace_id(self): return self.next
            def generate_span_id(self): return 7

        def chosen(sampler):
            generator = Ids()
            tracer = TracerProvider(sampler=sampler, id_generator=generator).get_tracer("library")
            found = []
            for generator.next in ids:
                found.append(tracer.start_span("s").is_recording())
            return found

        quarter = sampling.TraceIdRatioBased(0.25)
        theirs = [quarter.should_sample(None, i, "s").decision.is_sampled() for i in ids]
        asked = type("Asked", (sampling.TraceIdRatioBased,), {})(0.25)
        say([chosen(sampler) == theirs for sampler in
             (quarter, None, sampling.ParentBasedTraceIdRatio(0.25), asked)])
        say([300 < sum(theirs) < 700, TracerProvider().sampler])
        """,
        before=SDK,
        OTEL_TRACES_SAMPLER="traceidratio",
        OTEL_TRACES_SAMPLER_ARG="0.25",
    )
    assert result.said == [[True, True, True, True], [True, "traceidratio(0.25)"]]


def test_a_sampler_of_the_programs_own_is_asked_for_each_span(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        class Own(sampling.Sampler):
            def get_description(self): return "Own"
            def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None,
                              links=None, trace_state=None):
                say([parent_context, name, kind.name, dict(attributes or {}), len(links)])
                decision = {"keep": sampling.Decision.RECORD_AND_SAMPLE,
                            "look": sampling.Decision.RECORD_ONLY}.get(name, sampling.Decision.DROP)
                return sampling.SamplingResult(decision, {**(attributes or {}), "sampler": "own"},
                                               TraceState([("own", "1")]))

        tracer = TracerProvider(sampler=Own()).get_tracer("library")
        link = Link(SpanContext(1, 1, False))
        for name in "keep", "look", "drop":
            with tracer.start_as_current_span(name, kind=SpanKind.SERVER, attributes={"a": 1},
                                              links=[link]) as span:
                onwards = {}
                propagate.inject(onwards)
                say([span.is_recording(), onwards["traceparent"][-2:], onwards["tracestate"]])
        flush()
        say(stats()["unsampled"])
        """,
        before=SDK,
    )
    asked = [[None, name, "SERVER", {"a": 1}, 1] for name in ("keep", "look", "drop")]
    assert result.said == [
        asked[0],
        [True, "01", "own=1"],
        asked[1],
        [True, "00", "own=1"],
        asked[2],
        [False, "00", "own=1"],
        2,
    ]
    (kept,) = sink.spans
    assert (kept.name, kept.attributes, kept.trace_state) == (
        "keep",
        {"a": 1, "sampler": "own"},
        "own=1",
    )


def test_ids_come_from_a_generator_of_the_programs_own(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        class Ids:
            def __init__(self): self.last = 0
            def generate_trace_id(self): return 0xabc
            def generate_span_id(self):
                self.last += 1
                return self.last

        ids = Ids()
        provider = TracerProvider(id_generator=ids)
        assert provider.id_generator is ids
        tracer = provider.get_tracer("library")
        with tracer.start_as_current_span("1"):
            tracer.start_span("2").end()
        """,
        before=SET_UP,
    )
    assert [(s.name, int(s.trace_id, 16), int(s.span_id, 16)) for s in sink.spans] == [
        ("2", 0xABC, 2),
        ("1", 0xABC, 1),
    ]


def test_limits_given_as_the_sdks_object_go_before_the_environment(
    program: Program, sink: Sink
) -> None:
    run(
        program,
        """
        limits = SpanLimits(max_span_attributes=1, max_events=SpanLimits.UNSET, max_links=1,
                            max_event_attributes=1, max_link_attributes=1, max_attribute_length=2,
                            max_span_attribute_length=3)
        here = Link(SpanContext(1, 1, False), {"x": "12345", "y": "12345"})
        tracer = TracerProvider(span_limits=limits).get_tracer("library")
        span = tracer.start_span("s", attributes={"a": 1, "b": "12345"}, links=[here, here])
        for n in range(200):
            span.add_event("e", {"x": "12345", "y": "12345"}, n)
        span.end()
        """,
        before=SDK,
        OTEL_SPAN_EVENT_COUNT_LIMIT="3",
    )
    (span,) = sink.spans
    assert (span.attributes, span.dropped) == ({"b": "123"}, (1, 0, 1))
    assert span.events == [Event("e", n, {"y": "12"}, 1) for n in range(200)]
    assert span.links == [Link(f"{1:032x}", f"{1:016x}", "", {"y": "12"}, 1)]


def test_a_providers_resource_describes_the_process(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        resource = Resource.create({"service.name": "shop", "deployment.id": 7, "tags": ["a", "b"]})
        provider = TracerProvider(resource=resource)
        tracer = provider.get_tracer("library")
        with tracer.start_as_current_span("theirs") as theirs:
            assert theirs.resource is resource is provider.resource
            with span("ours"):
                pass
        seen = TracerProvider().resource.attributes
        say([seen["service.name"], seen["deployment.id"], list(seen["tags"]),
             seen["telemetry.sdk.name"], seen["process.pid"] == os.getpid()])
        """,
        before=SDK,
        OTEL_RESOURCE_ATTRIBUTES="host.ip=10.0.0.2,team=a",
    )
    assert result.said == [["shop", 7, ["a", "b"], "omnitrace", True]]
    assert sorted(span.name for span in sink.spans) == ["ours", "theirs"]
    for span in sink.spans:
        kept = {key: span.resource[key] for key in ("service.name", "deployment.id", "tags")}
        assert kept == {"service.name": "shop", "deployment.id": 7, "tags": ["a", "b"]}
        assert (span.resource["team"], span.resource["telemetry.sdk.name"]) == ("a", "omnitrace")
        assert span.resource["host.ip"] == "10.0.0.2"


def test_a_service_that_the_sdk_has_no_name_for_keeps_ours(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        TracerProvider(resource=Resource.create({"a": "1"})).get_tracer("l").start_span("s").end()
        """,
        before=SDK,
    )
    assert [(s.resource["service.name"], s.resource["a"]) for s in sink.spans] == [
        ("vllm-serve", "1")
    ]


def test_a_resource_that_comes_late_loses_nothing(program: Program, sink: Sink) -> None:
    result = program.run(
        """
        with span("before"):
            pass
        first = TracerProvider(resource=Resource({"service.name": "first"}))
        first.get_tracer("l").start_span("first").end()
        second = TracerProvider(resource=Resource({"service.name": "second"}))
        first.get_tracer("l").start_span("described anew").end()
        second.shutdown()
        TracerProvider(resource=Resource({"service.name": "third"})).get_tracer("l").start_span(
            "third").end()
        """,
        before=SDK,
    )
    assert [(s.name, s.resource["service.name"]) for s in sink.spans] == [
        ("before", "vllm-serve"),
        ("first", "first"),
        ("described anew", "second"),
        ("third", "third"),
    ]
    ((level, text),) = result.messages
    assert level == "WARNING" and text.startswith("a second TracerProvider has another resource")


def test_span_processors_see_every_span_as_the_sdk_shows_it(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        class Own(SpanProcessor):
            def on_start(self, span, parent_context=None):
                say(["start", span.name, span.is_recording(), parent_context is not None])
                span.set_attribute("by", "processor")
            def on_end(self, span):
                say(["end", span.name, dict(span.attributes), span.end_time > 0])
            def shutdown(self):
                say(["shutdown"])
            def force_flush(self, timeout_millis=30000):
                say(["flush", timeout_millis <= 1000])
                return False

        provider = TracerProvider()
        exporter = InMemorySpanExporter()
        provider.add_span_processor(Own())
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("library", "1", "url", {"part": 1})
        with tracer.start_as_current_span("parent"):
            child = tracer.start_span("child", context.get_current(), SpanKind.CLIENT,
                                      {f"a{n}": n for n in range(130)})
            child.add_event("e", {"x": 1}, 5)
            child.set_status(StatusCode.ERROR, "d")
            child.end()
        with span("ours is not shown"):
            pass
        say([provider.force_flush(1000), omnitrace.stats()["exported"]])
        child, parent = exporter.get_finished_spans()
        say([type(child).__module__, child.parent == parent.context, child.kind.name,
             child.dropped_attributes, [(e.name, dict(e.attributes)) for e in child.events],
             child.status.status_code.name, child.status.description, dict(parent.attributes),
             child.instrumentation_scope.name, dict(child.instrumentation_scope.attributes),
             child.resource.attributes["service.name"], json.loads(child.to_json())["name"]])
        provider.shutdown()
        """,
        before=SDK,
    )
    first = {f"a{n}": n for n in range(3, 130)} | {"by": "processor"}
    assert result.said == [
        ["start", "parent", True, False],
        ["start", "child", True, True],
        ["end", "child", first, True],
        ["end", "parent", {"by": "processor"}, True],
        ["flush", True],
        [False, 3],
        [
            "opentelemetry.sdk.trace",
            True,
            "CLIENT",
            3,
            [["e", {"x": 1}]],
            "ERROR",
            "d",
            {"by": "processor"},
            "library",
            {"part": 1},
            "vllm-serve",
            "child",
        ],
        ["shutdown"],
    ]
    assert {s.name: s.attributes.get("by") for s in sink.spans} == {
        "child": "processor",
        "parent": "processor",
        "ours is not shown": None,
    }


def test_a_processor_of_processors_takes_the_place_of_ours(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor
        provider = TracerProvider(active_span_processor=ConcurrentMultiSpanProcessor())
        exporters = [InMemorySpanExporter(), InMemorySpanExporter()]
        for exporter in exporters:
            provider.add_span_processor(SimpleSpanProcessor(exporter))
        provider.get_tracer("library").start_span("s").end()
        say([[span.name for span in exporter.get_finished_spans()] for exporter in exporters])
        """,
        before=SDK,
    )
    assert result.said == [[["s"], ["s"]]]
    assert [span.name for span in sink.spans] == ["s"]


def test_a_processor_that_would_send_spans_twice_is_named(program: Program) -> None:
    result = program.run(
        """
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        TracerProvider().add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        """,
        before=SDK,
    )
    assert messages(result) == [
        (
            "WARNING",
            "BatchSpanProcessor exports by OTLP what omnitrace exports already: every span is "
            "sent twice; leave add_span_processor out",
        )
    ]


def test_a_provider_without_arguments_has_what_init_was_given(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        provider = TracerProvider()
        omnitrace.init(sampler="traceidratio", sampler_arg=1, attribute_count_limit=1,
                       event_attribute_count_limit=0)
        say(provider.sampler)
        span = provider.get_tracer("library").start_span("s", attributes={"a": 1, "b": 2})
        span.add_event("e", {"c": 3})
        span.end()
        """,
        before=SET_UP,
        OTEL_TRACES_SAMPLER="always_off",
    )
    assert result.said == ["always_on"]
    (span,) = sink.spans
    assert (span.attributes, span.dropped) == ({"b": 2}, (1, 0, 0))
    assert [(event.attributes, event.dropped) for event in span.events] == [({}, 1)]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("TracerProvider(sampler='sometimes')", "ValueError: there is no sampler sometimes"),
        ("TracerProvider(sampler=1)", "TypeError: sampler must be a name such as 'always_on'"),
        ("TracerProvider(meter_provider=1)", "TypeError"),
        ("TracerProvider(span_limits=1)", "AttributeError: 'int' object has no attribute"),
        ("TracerProvider(resource=1)", "AttributeError: 'int' object has no attribute"),
    ],
)
def test_a_wrong_argument_is_an_error(program: Program, call: str, error: str) -> None:
    result = program.run(
        f"""
        try:
            {call}
        except Exception as error:
            say(f"{{type(error).__name__}}: {{error}}")
        """,
        before=SET_UP,
    )
    ((said,),) = [result.said]
    assert said.startswith(error)
