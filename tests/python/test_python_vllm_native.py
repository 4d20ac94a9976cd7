"""OMNITRACE_VLLM_NATIVE=1: vLLM's own span of a request goes through omnitrace, below the
request's. The vLLM here is made up; `make test-vllm` has the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from program import Program, Result
from sink import Sink, forest, the

SERVING = """\
class OpenAIServingChat:
    async def create_chat_completion(self, request, raw_request=None):
        return self.answer(request)
"""

TRACING = """\
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

available = True

def is_otel_available():
    return available

def start(tracer, headers):
    context = TraceContextTextMapPropagator().extract(headers or {})
    return tracer.start_span("llm_request", context=context, kind=trace.SpanKind.SERVER)
"""

CLIENT = """\
exporters = []

class AsyncLLM:
    def __init__(self, vllm_config):
        endpoint = vllm_config.observability_config.otlp_traces_endpoint
        if endpoint is not None:
            exporters.append(endpoint)
"""

OLDER = """\
from vllm import tracing

class OutputProcessor:
    def __init__(self, log_stats=True):
        self.log_stats = log_stats
        self.tracer = None

    def finish(self, output, req_state):
        self._update_stats_from_finished(req_state, "stop", None)
        if self.tracer:
            self.do_tracing(output, req_state, None)

    def _update_stats_from_finished(self, req_state, finish_reason, iteration_stats):
        pass

    def do_tracing(self, engine_core_output, req_state, iteration_stats):
        tracing.start(self.tracer, engine_core_output.trace_headers).end()
"""
YOUNGER = OLDER.replace("self.tracer = None", "self.tracing_enabled = False")
YOUNGER = YOUNGER.replace("if self.tracer:", "if self.tracing_enabled:")
YOUNGER = YOUNGER.replace("self.tracer,", "tracing.trace.get_tracer('vllm'),")
WITHOUT = OLDER.replace("do_tracing", "something_else")

BEFORE = """\
import asyncio
from types import SimpleNamespace as Thing
from omnitrace import vllm
vllm.register()
from vllm import tracing
from vllm.entrypoints.openai.serving_chat import OpenAIServingChat
from vllm.v1.engine.async_llm import AsyncLLM, exporters
from vllm.v1.engine.output_processor import OutputProcessor

def serve(processor, request_id, headers={}, **parameters):
    raw = Thing(headers={"x-request-id": request_id, **headers})
    state = Thing(request_id=f"chatcmpl-{request_id}-0a1b2c3d",
                  external_req_id=f"chatcmpl-{request_id}", prompt_len=5)
    class Serving(OpenAIServingChat):
        def answer(self, request):
            processor.finish(Thing(trace_headers=None), state)
            return Thing()
    asked = Thing(kv_transfer_params=parameters or None)
    asyncio.run(Serving().create_chat_completion(asked, raw))
"""


def with_vllm(
    program: Program, code: str, processor: str, native: str | None = "1", **variables: str
) -> Result:
    """Runs a program beside a made-up vLLM."""
    files = {
        "tracing.py": TRACING,
        "entrypoints/openai/serving_chat.py": SERVING,
        "v1/engine/async_llm.py": CLIENT,
        "v1/engine/output_processor.py": processor,
    }
    package = program.workplace / "vllm"
    for name, text in files.items():
        file = package / name
        file.parent.mkdir(parents=True, exist_ok=True)
        for folder in (file.parent, *file.parent.parents):
            if folder.is_relative_to(package):
                Path(folder, "__init__.py").touch()
        file.write_text(text)
    return program.run(code, before=BEFORE, OMNITRACE_VLLM_NATIVE=native, **variables)


def own_messages(result: Result) -> list[tuple[str, str]]:
    """But for the hooks that the made-up vLLM has no targets for."""
    return [said for said in result.messages if "is not in this vLLM" not in said[1]]


CALLER = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
CALLED = repr({"traceparent": f"00-{'-'.join(CALLER)}-01", "tracestate": "vendor=x"})


@pytest.mark.parametrize("processor", [OLDER, YOUNGER], ids=["older", "younger"])
@pytest.mark.parametrize(
    ("role", "parameters", "entry"),
    [
        ("", "", "Decode"),
        ("prefill", "", "Prefill"),
        ("decode", "", "Decode"),
        ("", ", do_remote_decode=True", "Prefill"),
    ],
)
@pytest.mark.parametrize("headers", ["{}", CALLED], ids=["alone", "called"])
def test_vllms_own_span_is_below_the_requests(
    program: Program,
    sink: Sink,
    processor: str,
    role: str,
    parameters: str,
    entry: str,
    headers: str,
) -> None:
    result = with_vllm(
        program,
        f"serve(OutputProcessor(), 'r', {headers}{parameters})",
        processor,
        ROLE=role,
    )
    assert own_messages(result) == []
    names = sorted(span.name for span in sink.spans)
    assert names == sorted([entry, "llm_request"])
    native, request = the(sink.spans, "llm_request"), the(sink.spans, entry)
    assert (native.trace_id, native.parent_id) == (request.trace_id, request.span_id)
    assert native.kind == "SERVER"
    if headers == CALLED:
        assert (request.trace_id, request.parent_id) == CALLER
        assert native.trace_state == "vendor=x"


def test_each_of_several_requests_has_its_own(program: Program, sink: Sink) -> None:
    code = """
    processor = OutputProcessor()
    for request_id in ("a", "b", "c"):
        serve(processor, request_id)
    """
    with_vllm(program, code, YOUNGER)
    assert forest(sink.spans) == [("Decode", [("llm_request", [])])] * 3


def test_an_unsampled_request_has_none(program: Program, sink: Sink) -> None:
    headers = CALLED.replace("-01", "-00")
    result = with_vllm(program, f"serve(OutputProcessor(), 'r', {headers})", YOUNGER)
    assert (sink.spans, own_messages(result)) == ([], [])


@pytest.mark.parametrize("native", [None, "", "0"])
def test_nobody_has_it_who_has_not_asked(program: Program, sink: Sink, native: str | None) -> None:
    code = """
    config = Thing(otlp_traces_endpoint="grpc://elsewhere")
    AsyncLLM(Thing(observability_config=config))
    serve(OutputProcessor(), "r")
    say(exporters)
    """
    result = with_vllm(program, code, OLDER, native)
    assert (result.said, own_messages(result)) == ([["grpc://elsewhere"]], [])
    assert [span.name for span in sink.spans] == ["Decode"]


def test_vllm_makes_no_exporter_of_its_own(program: Program, sink: Sink) -> None:
    code = """
    config = Thing(otlp_traces_endpoint="grpc://elsewhere")
    AsyncLLM(vllm_config=Thing(observability_config=config))
    serve(OutputProcessor(), "r")
    say(exporters)
    """
    result = with_vllm(program, code, OLDER)
    assert result.said == [[]]
    assert own_messages(result) == [
        (
            "WARNING",
            "OMNITRACE_VLLM_NATIVE: vLLM's own spans go where omnitrace's go, not to "
            "--otlp-traces-endpoint=grpc://elsewhere",
        )
    ]
    assert forest(sink.spans) == [("Decode", [("llm_request", [])])]


@pytest.mark.parametrize(
    ("processor", "prepare", "reason"),
    [
        (WITHOUT, "", "this version makes none"),
        (OLDER, "tracing.available = False", "they need packages that are not there: pip install "),
        (OLDER, "options['log_stats'] = False", "they need its statistics, which --disable-log-st"),
    ],
)
def test_what_it_lacks_is_said_once_and_vllm_goes_on(
    program: Program, sink: Sink, processor: str, prepare: str, reason: str
) -> None:
    code = f"""
    options = {{}}
    {prepare}
    serve(OutputProcessor(**options), "r")
    """
    result = with_vllm(program, code, processor)
    ((level, text),) = own_messages(result)
    assert level == "WARNING"
    assert text.startswith(f"OMNITRACE_VLLM_NATIVE: no spans of vLLM's own: {reason}")
    assert [span.name for span in sink.spans] == ["Decode"]


def test_another_provider_that_is_set_already_is_named_and_stays(program: Program) -> None:
    code = """
    from opentelemetry import trace
    class Theirs(trace.NoOpTracerProvider):
        pass
    trace.set_tracer_provider(Theirs())
    serve(OutputProcessor(), "r")
    say(type(trace.get_tracer_provider()).__name__)
    """
    result = with_vllm(program, code, YOUNGER)
    assert result.said == ["Theirs"]
    ((level, text),) = own_messages(result)
    assert level == "WARNING" and "that is set already (__main__.Theirs)" in text
