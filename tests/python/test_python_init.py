"""Settings: `init`'s arguments, the environment, and recording switched off."""

from __future__ import annotations

import json

import pytest

from program import NODE, REPOSITORY, Program
from sink import Sink

ZERO = {
    "created": 0,
    "exported": 0,
    "in_flight": 0,
    "logged": 0,
    "dropped": {},
    "events": 0,
    "events_lost": 0,
    "events_loose": 0,
    "unsampled": 0,
    "contradictory": 0,
    "open_requests": 0,
    "last_error": None,
}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
ONE_SPAN = """
with span("one"):
    pass
say(flush())
say(stats())
"""


def test_without_init_the_environment_is_enough(program: Program, sink: Sink) -> None:
    result = program.run(
        ONE_SPAN,
        OTEL_SERVICE_NAME="my service",
        OTEL_RESOURCE_ATTRIBUTES="host.ip=10.9.9.9,service.instance.id=i%2C7, k8s.pod.name = p ",
        OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer%20t,X-Other=o",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
    )
    assert result.said == [True, {**ZERO, "created": 1, "exported": 1, "events": 1}]
    [request], [one] = sink.requests, sink.spans
    assert request.path == "/v1/traces"
    assert {k: request.headers.get(k) for k in ("authorization", "x-other")} == {
        "authorization": "Bearer t",
        "x-other": "o",
    }
    assert request.headers["content-encoding"] == "gzip"
    assert request.headers["content-type"] == "application/x-protobuf"
    assert one.resource == {
        "service.name": "my service",
        "service.instance.id": "i,7",
        "k8s.pod.name": "p",
        "host.ip": "10.9.9.9",
        "process.pid": one.pid,
        "telemetry.sdk.name": "omnitrace",
        "telemetry.sdk.language": "rust",
        "telemetry.sdk.version": one.resource["telemetry.sdk.version"],
    }


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json"])
def test_every_argument_of_init_outweighs_the_environment(
    program: Program, sink: Sink, protocol: str
) -> None:
    nowhere = "http://127.0.0.1:9"
    result = program.run(
        f"""
        init(
            service_name="argument", role="decode", endpoint="{sink.url}/base/",
            protocol="{protocol}", headers={{"x-one": "a,b=c%;ü", "x-two": "2"}},
            compression="none", exporter="otlp", timeout=20, insecure=False,
            sampler="parentbased_always_on", propagators="tracecontext", log_level="warn",
            attribute_count_limit=100, attribute_value_length_limit=1000, event_count_limit=10,
            link_count_limit=10, event_attribute_count_limit=10, link_attribute_count_limit=10,
            max_export_batch_size=100, max_queue_size=1000, memory_limit_mib=10,
            resource_attributes={{"host.ip": "10.7.7.7", "pod": "a,b", "n": 5}},
            legacy_log="always", legacy_log_directory={str(program.directory / "given")!r},
            schedule_delay=0.001, export_timeout=60, disabled=False,
        )
        action("Enter decode to generate", "r")
        action("Finish decode pickle and start response", "r")
        say(flush())
        """,
        ROLE="prefill",
        OTEL_SERVICE_NAME="variable",
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=nowhere,
        OTEL_EXPORTER_OTLP_ENDPOINT=nowhere,
        OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_TRACES_HEADERS="x-one=variable,x-three=variable",
        OTEL_EXPORTER_OTLP_HEADERS="x-four=variable",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        OTEL_EXPORTER_OTLP_TRACES_TIMEOUT="1",
        OTEL_TRACES_EXPORTER="none",
        OTEL_TRACES_SAMPLER="always_off",
        OTEL_PROPAGATORS="none",
        OTEL_LOG_LEVEL="none",
        OTEL_RESOURCE_ATTRIBUTES="host.ip=10.1.1.1",
        OMNITRACE_LEGACY_LOG="off",
        OTEL_SDK_DISABLED="true",
    )
    assert (result.said, result.messages) == ([True], [])
    [request] = sink.requests
    assert request.path == "/base/v1/traces"
    assert request.headers["x-one"].encode("latin-1").decode() == "a,b=c%;ü"
    assert request.headers["x-two"] == "2"
    assert not {"x-three", "x-four", "content-encoding"} & request.headers.keys()
    if protocol == "http/json":
        [resource] = json.loads(request.body)["resourceSpans"]
        attributes = resource["resource"]["attributes"]
        described = {a["key"]: a["value"].get("stringValue") for a in attributes}
        [decode] = resource["scopeSpans"][0]["spans"]
        name = decode["name"]
    else:
        [span] = sink.spans
        described, name = span.resource, span.name
    assert name == "Decode"
    expected = {"service.name": "argument", "host.ip": "10.7.7.7", "pod": "a,b", "n": "5"}
    assert {key: described[key] for key in expected} == expected
    assert len(list((program.directory / "given").glob("*.log"))) == 1


def test_a_traces_endpoint_is_used_as_it_is_and_json_is_spoken(
    program: Program, sink: Sink
) -> None:
    program.run(
        f"""
        init(traces_endpoint="{sink.url}/as/it/is", protocol="http/json")
        with span("one") as one:
            say(one.context.trace_id)
        """
    )
    [request] = sink.requests
    assert (request.path, request.headers["content-type"]) == ("/as/it/is", "application/json")
    [document] = sink.json()
    [resource] = document["resourceSpans"]
    [one] = resource["scopeSpans"][0]["spans"]
    assert one["name"] == "one"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("nonsense=1", "TypeError: init() got an unexpected keyword argument 'nonsense'"),
        ("'positional'", "TypeError: init() takes 0 positional arguments but 1 was given"),
        (
            "protocol='smtp'",
            'ValueError: init(): protocol="smtp" is not one of http/protobuf, http/json or grpc',
        ),
        ("endpoint='nowhere'", 'ValueError: init(): endpoint="nowhere" is not a URL'),
        (
            "traces_endpoint='ftp://h/'",
            'ValueError: init(): traces_endpoint="ftp://h/" does not begin with http://',
        ),
        ("compression='zip'", 'ValueError: init(): compression="zip" is not one of gzip or none'),
        (
            "exporter='otlp,zipkin'",
            'ValueError: init(): exporter: "zipkin" is not one of otlp, console or none',
        ),
        (
            "sampler='sometimes'",
            'ValueError: init(): sampler="sometimes" is not one of always_on, always_off, ',
        ),
        (
            "sampler='traceidratio', sampler_arg=2",
            'ValueError: init(): sampler_arg="2" is not a ratio from 0 to 1',
        ),
        (
            "sampler_arg=0.5",
            'ValueError: init(): sampler_arg="0.5" has no effect unless sampler is a traceidratio',
        ),
        (
            "propagators='b3,xray'",
            'ValueError: init(): propagators: "xray" is not one of tracecontext, baggage, b3, ',
        ),
        ("log_level='loud'", 'ValueError: init(): log_level="loud" is not one of none, error, '),
        ("timeout='x'", "TypeError: timeout must be a number of seconds"),
        (
            "endpoint='http://c', insecure='yes'",
            'ValueError: init(): insecure="yes" is neither true nor false',
        ),
        (
            "max_queue_size=0",
            'ValueError: init(): max_queue_size="0" is not a whole number above 0',
        ),
        (
            "max_queue_size=10, max_export_batch_size=11",
            'ValueError: init(): max_export_batch_size="11" is more than max_queue_size, the spans',
        ),
        (
            "attribute_value_length_limit=-1",
            'ValueError: init(): attribute_value_length_limit="-1" is not a whole number',
        ),
        (
            "endpoint='https://c', certificate='/nowhere/authority.pem'",
            'ValueError: init(): certificate="/nowhere/authority.pem" cannot be read (No such file',
        ),
        (
            "endpoint='https://c', client_certificate='own.pem'",
            'ValueError: init(): client_certificate="own.pem" needs the certificate\'s key in '
            "client_key too",
        ),
        (
            "legacy_log='sometimes'",
            'ValueError: init(): legacy_log="sometimes" is not one of off, fallback or always',
        ),
        ("disabled='yes'", 'ValueError: init(): disabled="yes" is neither true nor false'),
        ("headers='plain'", "ValueError: init(): headers: entry 1 is not key=value"),
        ("headers={'a b': 1}", 'ValueError: init(): headers: "a b" is not an HTTP header'),
        (
            "resource_attributes='x'",
            'ValueError: init(): resource_attributes: "x" is not key=value',
        ),
        ("schedule_delay='soon'", "TypeError: schedule_delay must be a number of seconds"),
        ("schedule_delay=-1", "ValueError: schedule_delay must be 0 or more seconds"),
        ("export_timeout=float('nan')", "ValueError: export_timeout must be 0 or more seconds"),
    ],
)
def test_a_wrong_argument_is_named_and_what_ran_goes_on(
    program: Program, sink: Sink, arguments: str, error: str
) -> None:
    result = program.run(
        f"""
        init(service_name="first")
        try:
            init({arguments})
        except Exception as error:
            say(f"{{type(error).__name__}}: {{error}}")
        with span("one"):
            pass
        """
    )
    assert result.messages == []
    assert result.said[0].startswith(error)
    assert [s.resource["service.name"] for s in sink.spans] == ["first"]


def test_every_argument_is_in_the_documented_table(program: Program, sink: Sink) -> None:
    result = program.run(
        """
        try:
            init(nonsense=1)
        except TypeError as error:
            say(str(error))
        """
    )
    taken = result.said[0].split("; it takes ")[1].split(", ")
    readme = (REPOSITORY / "py-bindings" / "README.md").read_text()
    lines = [line for line in readme.splitlines() if line.startswith("| `")]
    # The table of settings is the one with five columns.
    rows = [row for row in (line.split("|") for line in lines) if len(row) == 7]
    listed = [row[2].strip(" `") for row in rows if row[2].strip() != "–"]
    assert sorted(listed) == sorted(taken)


def test_a_wrong_variable_is_said_once_and_the_default_is_used(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        """
        with span("first"):
            pass
        init(role="prefill")
        with span("second"):
            pass
        pid = os.fork()
        if pid == 0:
            with span("in the child"):
                pass
            flush()
            os._exit(0)
        os.waitpid(pid, 0)
        """,
        OTEL_EXPORTER_OTLP_PROTOCOL="smtp",
        OTEL_SDK_DISABLED="yes",
        OTEL_BSP_SCHEDULE_DELAY="5s",
        OTEL_RESOURCE_ATTRIBUTES="alone,a=b",
        ROLE="decode",
    )
    warnings = [
        ("WARNING", 'OTEL_RESOURCE_ATTRIBUTES: "alone" is not key=value: ignored'),
        (
            "WARNING",
            'OTEL_EXPORTER_OTLP_PROTOCOL="smtp" is not one of http/protobuf, http/json or grpc: '
            "http/protobuf",
        ),
        ("WARNING", 'OTEL_BSP_SCHEDULE_DELAY="5s" is not a whole number: 5000'),
        ("WARNING", 'OTEL_SDK_DISABLED="yes" is neither true nor false: false'),
    ]
    # Once for the environment alone, once for init() over it; never in the child.
    assert result.messages == warnings * 2
    services = {(s.name, s.resource["service.name"], s.resource["a"]) for s in sink.spans}
    assert services == {
        ("first", "vllm-decode", "b"),
        ("second", "vllm-prefill", "b"),
        ("in the child", "vllm-prefill", "b"),
    }


def test_a_second_init_delivers_what_the_first_recorded_to_where_the_first_said(
    program: Program, sink: Sink
) -> None:
    other = Sink()
    try:
        result = program.run(
            f"""
            with span("by the environment"):
                pass
            init(endpoint="{other.url}", service_name="second")
            say(stats())
            with span("by init"):
                pass
            flush()
            say(stats())
            init()
            with span("by the environment again"):
                pass
            """
        )
        assert [s.name for s in sink.spans] == ["by the environment", "by the environment again"]
        assert [(s.name, s.resource["service.name"]) for s in other.spans] == [
            ("by init", "second")
        ]
        assert result.said == [ZERO, {**ZERO, "created": 1, "exported": 1, "events": 1}]
    finally:
        other.close()


@pytest.mark.parametrize(
    ("code", "variables"),
    [("init(disabled=True)", {}), ("", {"OTEL_SDK_DISABLED": "TRUE"})],
    ids=["argument", "variable"],
)
def test_switched_off_nothing_is_recorded_and_contexts_pass_through(
    program: Program, sink: Sink, code: str, variables: dict[str, str]
) -> None:
    result = program.run(
        f"""
        {code}
        caller = {{"traceparent": "00-{TRACE}-{CALLER}-01"}}
        action("PD api server get request", "r")
        with span("of nobody", "r"):
            carrier = {{}}
            inject(carrier)
            say(carrier)
        with span("of the caller", parent=extract(caller, "r")) as open:
            open.set_attribute("a", 1)
            inject(carrier)
            say(carrier == caller)
        action("Finish prefill pickle and start response", "r")
        say(span("decorated")(lambda: 5)())
        say([flush(), threading.active_count()])
        shutdown()
        with span("late"):
            pass
        say(stats())
        """,
        ROLE="prefill",
        OMNITRACE_LEGACY_LOG="always",
        **variables,
    )
    assert (sink.requests, result.lines, result.messages) == ([], [], [])
    assert result.said == [{}, True, 5, [True, 1], ZERO]


def test_without_an_exporter_everything_is_in_the_legacy_log(program: Program, sink: Sink) -> None:
    result = program.run(ONE_SPAN, OTEL_TRACES_EXPORTER="none")
    assert result.said == [True, {**ZERO, "created": 1, "logged": 1, "events": 1}]
    assert sink.requests == [] and result.messages == []
    assert len(result.lines) == 1 and f"Role:serve_{NODE} " in result.lines[0]


def test_without_exporter_and_log_every_span_is_counted_as_dropped(
    program: Program, sink: Sink
) -> None:
    result = program.run(ONE_SPAN, OTEL_TRACES_EXPORTER="none", OMNITRACE_LEGACY_LOG="off")
    assert result.said == [
        False,
        {**ZERO, "created": 1, "dropped": {"not_delivered": 1}, "events": 1},
    ]
    assert sink.requests == [] and not program.directory.exists()


def test_after_shutdown_spans_and_actions_are_counted_and_init_begins_anew(
    program: Program, sink: Sink
) -> None:
    result = program.run(
        """
        with span("before"):
            pass
        shutdown()
        shutdown()
        with span("after"):
            action("after", "r")
            action("after", "r", {"of": "the request"})
        say([flush(), stats()])
        init()
        with span("anew"):
            pass
        flush(float("inf"))
        say(stats())
        """
    )
    assert [s.name for s in sink.spans] == ["before", "anew"]
    late = {"created": 2, "dropped": {"after_shutdown": 1}, "events_lost": 2}
    assert result.said == [
        [True, {**ZERO, "exported": 1, "events": 1, **late}],
        {**ZERO, "created": 1, "exported": 1, "events": 1},
    ]
    assert result.messages == [
        ("WARNING", "actions after shutdown() are lost; stats() counts them"),
        ("WARNING", "spans that end after shutdown() are dropped; stats() counts them"),
    ]


@pytest.mark.parametrize("variables", [{"OTEL_SDK_DISABLED": "true"}, {}])
def test_an_action_is_late_only_where_recording_was_on_and_in_its_own_process(
    program: Program, sink: Sink, variables: dict[str, str]
) -> None:
    result = program.run(
        """
        action("in time", "r")
        shutdown()
        action("late", "r")
        join(fork(lambda: say(stats()["events_lost"])))
        say(stats()["events_lost"])
        """,
        **variables,
    )
    assert result.said == [0, 0 if variables else 1]
