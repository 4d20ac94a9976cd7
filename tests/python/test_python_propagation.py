"""`OTEL_PROPAGATORS`, `OTEL_TRACES_SAMPLER` and `OTEL_LOG_LEVEL` at work."""

from __future__ import annotations

import pytest

from program import Program
from sink import Sink

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
OTHER_TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"


@pytest.mark.parametrize(
    ("propagators", "sent", "within_the_node"),
    [
        (
            None,
            {"Traceparent": TRACEPARENT, "tracestate": "a=1", "baggage": "k=v;p", "b3": "0"},
            {"traceparent": TRACEPARENT, "tracestate": "a=1", "baggage": "k=v;p"},
        ),
        (
            "b3",
            {"b3": f"{TRACE}-{CALLER}-1", "baggage": "k=v"},
            {"b3": f"{TRACE}-{CALLER}-1"},
        ),
        (
            "b3,baggage",
            {"X-B3-TraceId": TRACE, "X-B3-SpanId": CALLER, "X-B3-Flags": "1", "baggage": "k=v"},
            {"b3": f"{TRACE}-{CALLER}-d", "baggage": "k=v"},
        ),
        (
            "b3multi,tracecontext",
            {"b3": f"{TRACE}-{CALLER}-1"},
            {
                "x-b3-traceid": TRACE,
                "x-b3-spanid": CALLER,
                "x-b3-sampled": "1",
                "traceparent": TRACEPARENT,
            },
        ),
    ],
)
def test_context_comes_and_goes_in_the_formats_that_are_asked_for(
    program: Program,
    sink: Sink,
    propagators: str | None,
    sent: dict[str, str],
    within_the_node: dict[str, str],
) -> None:
    result = program.run(
        f"""
        class Headers:
            "A carrier that is no dict, and whose names have no case."
            def get(self, key):
                return {{k.lower(): v for k, v in {sent!r}.items()}}.get(key)

        asgi = [(k.lower().encode(), v.encode()) for k, v in {sent!r}.items()]
        for carrier in ({sent!r}, Headers(), [(b"host", b"h"), *asgi]):
            context = extract(carrier, "r")
            say([context.trace_id, context.span_id, context.sampled])
        inject(onward := {{}}, "r")
        say(onward)
        with span("ours", parent=context) as ours:
            inject(outward := {{}})
        say(outward)
        """,
        OTEL_PROPAGATORS=propagators,
    )
    [ours] = sink.spans
    assert (ours.trace_id, ours.parent_id) == (TRACE, CALLER)
    outward = {
        name: value.replace(CALLER, ours.span_id)
        for name, value in within_the_node.items()
        if name not in ("tracestate", "baggage")
    }
    assert result.said == [
        [TRACE, CALLER, True],
        [TRACE, CALLER, True],
        [TRACE, CALLER, True],
        {**within_the_node, "omnitrace-request-id": "r"},
        outward,
    ]


@pytest.mark.parametrize(
    ("headers", "context", "onward"),
    [
        (
            [(b"TraceParent", TRACEPARENT), (b"tracestate", "a=1"), (b"tracestate", "b=2")],
            TRACE,
            {"traceparent": TRACEPARENT, "tracestate": "a=1,b=2"},
        ),
        ([(b"traceparent", TRACEPARENT), (b"tracestate", "a=1")] * 2, None, {}),
        (
            [(b"baggage", "k=\xff"), (b"host", "h"), "no header", (b"traceparent", None)],
            None,
            {"baggage": "k=\xff"},
        ),
    ],
    ids=["lists are joined", "two parents are none", "what is no header is left out"],
)
def test_of_asgis_headers_only_lists_may_come_more_than_once(
    program: Program, headers: list[object], context: str | None, onward: dict[str, str]
) -> None:
    asgi = [
        (h[0], h[1].encode("latin-1")) if isinstance(h, tuple) and isinstance(h[1], str) else h
        for h in headers
    ]
    result = program.run(
        f"""
        context = extract({asgi!r}, "r")
        say(context and context.trace_id)
        inject(onward := {{}}, "r")
        say(onward)
        """
    )
    assert result.said == [context, {**onward, "omnitrace-request-id": "r"}]


def test_none_is_none_and_a_wrong_name_is_left_out(program: Program, sink: Sink) -> None:
    code = f"""
        say(extract({{"traceparent": "{TRACEPARENT}", "b3": "{TRACE}-{CALLER}-1"}}) is None)
        with span("ours"):
            inject(carrier := {{}})
        say(list(carrier))
        """
    assert program.run(code, OTEL_PROPAGATORS="none").said == [True, []]
    result = program.run(code, OTEL_PROPAGATORS="b3,ottrace")
    assert result.said == [False, ["b3"]]
    assert result.messages == [
        (
            "WARNING",
            'OTEL_PROPAGATORS: "ottrace" is not one of tracecontext, baggage, b3, b3multi or none: '
            "left out",
        )
    ]


def test_what_one_request_carries_is_not_the_next_ones(program: Program, sink: Sink) -> None:
    result = program.run(
        f"""
        extract({{"traceparent": "{TRACEPARENT}", "baggage": "k=v", "tracestate": "a=1"}}, "r")
        extract({{"traceparent": "00-{TRACE}-00000000000000aa-01"}}, "r")
        inject(carrier := {{}}, "r")
        say(carrier)
        extract({{"baggage": "alone=1"}}, "s")
        inject(carrier := {{}}, "s")
        say(carrier)
        """
    )
    assert result.said == [
        {"traceparent": f"00-{TRACE}-00000000000000aa-01", "omnitrace-request-id": "r"},
        {"baggage": "alone=1", "omnitrace-request-id": "s"},
    ]


def test_switched_off_the_formats_still_count(program: Program, sink: Sink) -> None:
    result = program.run(
        f"""
        context = extract({{"b3": "{TRACE}-{CALLER}-1"}}, "r")
        with span("of the caller", parent=context):
            inject(carrier := {{}})
        say(carrier)
        """,
        OTEL_SDK_DISABLED="true",
        OTEL_PROPAGATORS="b3",
    )
    assert (result.said, sink.requests) == ([{"b3": f"{TRACE}-{CALLER}-1"}], [])


@pytest.mark.parametrize("disabled", ["false", "true"])
@pytest.mark.parametrize(
    ("propagators", "passed_on"),
    [
        ("b3", [{"b3": f"{TRACE}-*-d"}, {"b3": f"{OTHER_TRACE}-*-1"}]),
        (
            "b3multi",
            [
                {"x-b3-traceid": TRACE, "x-b3-spanid": "*", "x-b3-flags": "1"},
                {"x-b3-traceid": OTHER_TRACE, "x-b3-spanid": "*", "x-b3-sampled": "1"},
            ],
        ),
    ],
)
def test_a_callers_debug_flag_goes_on_with_the_calls_of_its_trace_and_of_no_other(
    program: Program, sink: Sink, propagators: str, passed_on: list[dict[str, str]], disabled: str
) -> None:
    result = program.run(
        f"""
        for sent in (
            {{"X-B3-TraceId": "{TRACE}", "X-B3-SpanId": "{CALLER}", "X-B3-Flags": "1"}},
            {{"b3": "{OTHER_TRACE}-{CALLER}-1"}},
        ):
            with span("outer", parent=extract(sent)), span("inner"):
                inject(carrier := {{}})
            say(carrier)
        """,
        OTEL_PROPAGATORS=propagators,
        OTEL_SDK_DISABLED=disabled,
    )
    callers = {CALLER, *(span.span_id for span in sink.spans)}
    for carrier in result.said:
        for key, value in carrier.items():
            (*trace, caller, state) = value.split("-") if key == "b3" else ("", value, "")
            if caller in callers:
                carrier[key] = "-".join([*trace, "*", state]).strip("-")
    assert result.said == passed_on


@pytest.mark.parametrize(
    ("sampler", "flags", "sampled"),
    [
        ("parentbased_always_off", "01", True),
        ("parentbased_always_off", "00", False),
        ("always_on", "00", True),
        ("always_off", "01", False),
    ],
)
def test_a_sampler_decides_over_or_with_the_caller(
    program: Program, sink: Sink, sampler: str, flags: str, sampled: bool
) -> None:
    result = program.run(
        f"""
        context = extract({{"traceparent": "00-{TRACE}-{CALLER}-{flags}"}}, "r")
        with span("one", parent=context):
            pass
        inject(carrier := {{}}, "r")
        say([context.sampled, carrier["traceparent"][-2:], flush(), stats()["unsampled"]])
        """,
        OTEL_TRACES_SAMPLER=sampler,
    )
    assert result.said == [[sampled, "01" if sampled else "00", True, int(not sampled)]]
    assert len(sink.spans) == int(sampled)


@pytest.mark.parametrize(
    ("level", "heard"),
    [("none", []), ("error", []), ("warn", ["WARNING"] * 2), (None, ["WARNING"] * 2)],
)
def test_the_log_level_says_which_of_our_messages_are_heard(
    program: Program, sink: Sink, level: str | None, heard: list[str]
) -> None:
    sink.script = ["400"]
    result = program.run(
        """
        record("one")
        flush()
        """,
        OTEL_LOG_LEVEL=level,
        OTEL_BSP_SCHEDULE_DELAY="soon",
    )
    assert [level for level, _ in result.messages] == heard
    assert len(result.lines) == 1
