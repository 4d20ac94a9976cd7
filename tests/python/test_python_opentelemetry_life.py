"""`omnitrace.opentelemetry.TracerProvider`: its life, from the environment to its end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from opentelemetry_program import GLOBAL, SAMPLED, SET_UP, UNSAMPLED, messages, run
from program import Program
from sink import Sink, forest


def test_after_shutdown_a_provider_records_nothing_and_omnitrace_goes_on(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        """
        provider = TracerProvider()
        tracer = provider.get_tracer("library")
        late = tracer.start_span("late")
        tracer.start_span("in time").end()
        provider.shutdown()
        say(stats()["exported"])
        late.end()
        after = tracer.start_span("after")
        say([after is trace.INVALID_SPAN, after.is_recording()])
        with span("ours"):
            pass
        TracerProvider().get_tracer("library").start_span("another provider's").end()
        flush()
        books = stats()
        say([books["created"], books["exported"], books["dropped"]])
        """,
        before=SET_UP,
    )
    assert result.said == [1, [True, False], [4, 3, {"after_shutdown": 1}]]
    late = "spans that end after shutdown() are dropped; stats() counts them"
    assert messages(result) == [("WARNING", late)]
    assert sorted(s.name for s in sink.spans) == ["another provider's", "in time", "ours"]


def test_force_flush_delivers_and_says_whether_it_could(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        provider = TracerProvider()
        provider.get_tracer("library").start_span("s").end()
        say([provider.force_flush(), provider.force_flush(timeout_millis=10_000)])
        """,
        before=SET_UP,
    )
    assert result.said == [[True, True]]
    assert [s.name for s in sink.spans] == ["s"]


def test_where_recording_is_switched_off_the_callers_context_is_passed_on(
    program: Program, sink: Sink
) -> None:
    result = run(
        program,
        f"""
        say(tracer.start_span("root") is trace.INVALID_SPAN)
        caller = propagate.extract({{"traceparent": "{SAMPLED}"}})
        with tracer.start_as_current_span("server", caller) as server:
            with span("ours", parent=extract({{"traceparent": "{UNSAMPLED}"}})):
                inside = {{}}
                propagate.inject(inside)
            onwards = {{}}
            propagate.inject(onwards)
            say([server.is_recording(), onwards["traceparent"], inside["traceparent"]])
        """,
        OTEL_SDK_DISABLED="true",
    )
    assert result.said == [True, [False, SAMPLED, UNSAMPLED]]
    assert sink.spans == []


def test_a_forked_child_records_its_own_spans_and_not_its_parents(
    program: Program, sink: Sink
) -> None:
    run(
        program,
        """
        def child():
            assert not both.is_recording()
            both.set_attribute("child", 1)
            both.end()
            with tracer.start_as_current_span("child's"):
                pass
            flush()

        with tracer.start_as_current_span("both") as both:
            join(fork(child))
            both.set_attribute("parent", 1)
        """,
    )
    assert forest(sink.spans) == [("both", [("child's", [])])]
    both = next(s for s in sink.spans if s.name == "both")
    assert both.attributes == {"parent": 1}
    assert len({s.pid for s in sink.spans}) == 2


def test_the_environment_alone_makes_it_the_global_provider(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        tracer = trace.get_tracer("library")
        with tracer.start_as_current_span("s"):
            pass
        """,
        before="from opentelemetry import trace\n",
        OTEL_PYTHON_TRACER_PROVIDER="omnitrace",
    )
    assert [(s.name, s.scope.name) for s in sink.spans] == [("s", "library")]


def test_a_tracer_made_before_the_provider_uses_it(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        early = trace.get_tracer("early")

        @early.start_as_current_span("decorated")
        def function(): pass

        trace.set_tracer_provider(TracerProvider())
        with early.start_as_current_span("s"):
            function()
        """,
        before=SET_UP,
    )
    assert forest(sink.spans) == [("s", [("decorated", [])])]


def test_wrong_settings_are_named_once_and_replaced(program: Program, sink: Sink) -> None:
    result = program.run(
        """
        for _ in range(2):
            TracerProvider().get_tracer("library").start_span("s", attributes={"a": "1234"}).end()
        """,
        before=SET_UP,
        OTEL_TRACES_SAMPLER="sometimes",
        OTEL_SPAN_EVENT_COUNT_LIMIT="-1",
        OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT="short",
        OTEL_SPAN_LINK_COUNT_LIMIT="",
    )
    assert sorted(messages(result)) == [
        (
            "WARNING",
            'OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT="short" is not a whole number: no limit',
        ),
        ("WARNING", 'OTEL_SPAN_EVENT_COUNT_LIMIT="-1" is not a whole number: 128'),
        (
            "WARNING",
            'OTEL_TRACES_SAMPLER="sometimes" is not one of always_on, always_off, traceidratio, '
            "parentbased_always_on, parentbased_always_off or parentbased_traceidratio: "
            "parentbased_always_on",
        ),
    ]
    assert [s.attributes for s in sink.spans] == 2 * [{"a": "1234"}]


def test_without_opentelemetrys_api_omnitrace_works_and_its_face_says_what_is_missing(
    program: Program, tmp_path: Path, sink: Sink
) -> None:
    result = run(
        program,
        """
        sys.modules["opentelemetry.trace"] = None
        with span("s"):
            pass
        try:
            import omnitrace.opentelemetry
        except ImportError as error:
            say(str(error))
        """,
        before="",
    )
    assert result.said == [
        "omnitrace.opentelemetry needs the package opentelemetry-api: "
        "pip install 'omnitrace-sdk[opentelemetry]'"
    ]
    assert [s.name for s in sink.spans] == ["s"]


def test_importing_omnitrace_imports_nothing_of_opentelemetry(program: Program) -> None:
    result = run(
        program, "say([m for m in sys.modules if m.startswith('opentelemetry')])", before=""
    )
    assert result.said == [[]]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs a recent interpreter")
def test_a_provider_that_nobody_uses_goes_away(program: Program) -> None:
    result = run(
        program,
        """
        import gc, weakref
        provider = TracerProvider(shutdown_on_exit=False)
        provider.get_tracer("library").start_span("s").end()
        gone = weakref.ref(provider)
        del provider
        gc.collect()
        say(gone() is None)
        """,
        before=GLOBAL,
    )
    assert result.said == [True]
