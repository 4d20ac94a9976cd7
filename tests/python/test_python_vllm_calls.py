"""`omnitrace.vllm`'s stages in the API process for what comes by other ways than chats and
completions: the whole of an HTTP call is one request, and so is each that a program gives the
engine by itself. `make test-vllm` has the real ones."""

from __future__ import annotations

import re
from typing import Any

import pytest

from program import Program, Result
from sink import Sink, the
from vllm_program import TRACEPARENT
from vllm_program import run as run_stages

CALLS = """
from omnitrace.vllm import _call

def scope(path="/v1/responses", kind="http", **headers):
    return {"type": kind, "path": path, "headers": [
        (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]}

async def call(api, scope, handle):
    # As the hooks at the application do.
    async def whole():
        _call.begins(scope)
        try:
            await handle()
        except BaseException as error:
            api.call_fails(scope, error)
        else:
            api.call_ends(scope)
    await asyncio.create_task(whole())

def send(api, external, **members):
    request = of_engine(external, sampling_params=Thing(max_tokens=4, temperature=0.5), **members)
    api.sent(request)
    return request.trace_headers["omnitrace-request-id"]

def speak(api, external, rank=3, tokens=(1,)):
    output = Thing(request_id=f"{external}-1a2b3c4d", trace_headers=None, new_token_ids=tokens)
    _carrier.put(output, output.request_id, rank)
    api.outputs([output])

def finish(api, external, reason="length"):
    api.finished(state(external, cached=3), reason, statistics(4, preemptions=1))
"""
OWN = {"omnitrace.role": "decode"}
ASKED = {"gen_ai.request.max_tokens": 4, "gen_ai.request.temperature": 0.5}
RESPONSES = {**OWN, **ASKED, "gen_ai.operation.name": "chat", "url.path": "/v1/responses"}
USED = {
    "gen_ai.usage.input_tokens": 7,
    "gen_ai.usage.cache_read.input_tokens": 3,
    "gen_ai.usage.output_tokens": 4,
    "omnitrace.preemptions": 1,
    "gen_ai.latency.e2e": 2.0,
    "gen_ai.latency.time_in_queue": 0.25,
    "gen_ai.latency.time_in_model_prefill": 0.5,
    "gen_ai.latency.time_in_model_decode": 1.0,
    "gen_ai.latency.time_in_model_inference": 1.5,
}
ABORTED = {"omnitrace.aborted": True, "gen_ai.response.finish_reasons": ["abort"]}
FIRST = "gen_ai.latency.time_to_first_token"


def run(program: Program, code: str, *args: str) -> Result:
    return run_stages(program, code, *args, before=CALLS)


def ends(sink: Sink) -> dict[str, dict[str, Any]]:
    """What the span of each request says, without what takes its own time."""
    found = {}
    for span in sink.spans:
        if span.name == "Decode":
            said: dict[str, Any] = {k: v for k, v in span.attributes.items() if k != FIRST}
            found[str(said.pop("gen_ai.request.id"))] = said
    return found


def test_all_that_a_call_asks_of_the_engine_is_one_request_from_its_arrival_to_its_end(
    program: Program, sink: Sink
) -> None:
    result = run(
        program,
        """
        api = Api()
        api.configured(Thing(model_config=Thing(served_model_name="tiny")))
        async def handle():
            await asyncio.sleep(0.05)
            # First the model asks for a tool, then it answers; each by a task of its own.
            for n in range(2):
                async def turn():
                    say(send(api, f"resp_x_{n}"))
                    speak(api, f"resp_x_{n}")
                    finish(api, f"resp_x_{n}")
                await asyncio.create_task(turn())
            await asyncio.sleep(0.05)
        asyncio.run(call(api, scope(x_request_id="a", traceparent=sys.argv[1]), handle))
        say([len(api._open), len(api._in_engine), len(api.silent)])
        """,
        TRACEPARENT,
    )
    assert result.said == ["a", "a", [0, 0, 0]]
    decode = the(sink.spans, "Decode")
    assert f"00-{decode.trace_id}-{decode.parent_id}-01" == TRACEPARENT
    # What it waited before and after the engine's part is its own.
    assert decode.end - decode.start > 100_000_000
    both = {"gen_ai.usage.input_tokens": 14, "gen_ai.usage.cache_read.input_tokens": 6}
    both |= {"gen_ai.usage.output_tokens": 8, "omnitrace.preemptions": 2}
    more = {"gen_ai.request.model": "tiny", "omnitrace.engine.rank": 3}
    reasons = {"gen_ai.response.finish_reasons": ["length", "length"]}
    assert ends(sink) == {"a": {**RESPONSES, **more, **USED, **both, **reasons}}
    names = [event.name for event in decode.events]
    # Of several turns the first.
    assert names == ["Decode request sent to engine", "First decode output token"]


def test_calls_that_ask_nothing_of_the_engine_are_no_requests(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        api = Api()
        async def nothing(): pass
        async def all_of_them():
            for kind in "http", "websocket", "lifespan":
                await call(api, scope("/health", kind), nothing)
            # What is no call has no scope of ours.
            api.call_ends(scope())
        asyncio.run(all_of_them())
        say(stats()["events"])
        """,
    )
    assert result.said == [0] and sink.spans == []


def test_how_a_call_ends(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        api = Api()
        async def whole(): send(api, "whole"); finish(api, "whole")
        async def left(): send(api, "left"); raise asyncio.CancelledError
        async def broken(): send(api, "broken"); raise KeyError("secret")
        # The client leaves: the server says so to the engine before the call is over, or later.
        async def aborted(): send(api, "aborted"); api.aborted(["aborted-1a2b3c4d"])
        async def late(): send(api, "late")
        async def dead(): send(api, "dead"); api.engine_fails(RuntimeError("secret"))
        async def all_of_them():
            for handle in whole, left, broken, aborted, dead, late:
                await call(api, scope(x_request_id=handle.__name__), handle)
            api.aborted(["late-1a2b3c4d", "unknown"])
        asyncio.run(all_of_them())
        """,
    )
    expected: dict[str, dict[str, Any]] = {
        "whole": {**USED, "gen_ai.response.finish_reasons": ["length"]},
        "left": ABORTED,
        "broken": {"error.type": "KeyError"},
        "aborted": ABORTED,
        "late": ABORTED,
        "dead": {"error.type": "RuntimeError"},
    }
    assert ends(sink) == {name: {**RESPONSES, **more} for name, more in expected.items()}
    assert {s.attributes["gen_ai.request.id"]: s.status for s in sink.spans} == {
        **dict.fromkeys(["whole", "left", "aborted", "late"], "UNSET"),
        **dict.fromkeys(["broken", "dead"], "ERROR"),
    }


def test_two_calls_at_once_that_say_the_same_id_are_two_requests(
    program: Program, sink: Sink
) -> None:
    result = run(
        program,
        """
        api = Api()
        async def all_of_them():
            begun, left = asyncio.Event(), asyncio.Event()
            async def first():
                say(send(api, "one"))
                begun.set()
                await left.wait()
                finish(api, "one")
            async def second():
                await begun.wait()
                say(send(api, "two"))
                raise asyncio.CancelledError
            async def again():
                await call(api, scope(x_request_id="a"), second)
                left.set()
            await asyncio.gather(call(api, scope(x_request_id="a"), first), again())
        asyncio.run(all_of_them())
        say(len(api._open))
        """,
    )
    first, second, left = result.said
    assert first == "a" and re.fullmatch("a-[0-9a-f]{16}", second) and left == 0
    finished = {**RESPONSES, **USED, "gen_ai.response.finish_reasons": ["length"]}
    assert ends(sink) == {first: finished, second: {**RESPONSES, **ABORTED}}


def test_what_goes_on_when_a_call_is_over_ends_with_the_engines_last_word(
    program: Program, sink: Sink
) -> None:
    run(
        program,
        """
        api = Api()
        later = []
        async def background(name, begun):
            if begun:
                send(api, f"resp_{name}")
            async def rest():
                await asyncio.sleep(0.05)
                if not begun:
                    send(api, f"resp_{name}")
                finish(api, f"resp_{name}")
            later.append(asyncio.create_task(rest()))
        async def all_of_them():
            for name, begun in ("begun", True), ("waiting", False):
                came = scope(x_request_id=name, traceparent=sys.argv[1])
                await call(api, came, lambda: background(name, begun))
            await asyncio.gather(*later)
        asyncio.run(all_of_them())
        """,
        TRACEPARENT,
    )
    finished = {**RESPONSES, **USED, "gen_ai.response.finish_reasons": ["length"]}
    # What begins after the answer is not that call, but its caller's still.
    assert ends(sink) == {"begun": finished, "resp_waiting": finished}
    spans = {s.attributes["gen_ai.request.id"]: s for s in sink.spans if s.name == "Decode"}
    assert {span.trace_id for span in spans.values()} == {TRACEPARENT.split("-")[1]}
    assert spans["begun"].end - spans["begun"].start > 50_000_000


def test_what_belongs_to_a_chat_by_its_call_is_the_chats(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        api = Api()
        async def beams():
            api.chat_received(chat(max_tokens=4), raw("beam"))
            for n in range(2):
                say(send(api, f"beam-x-{n}"))
                finish(api, f"beam-x-{n}")
            # A chat's own hooks see the end of its answer.
            api.aborted(["beam-x-1-1a2b3c4d"])
            api.engine_fails(RuntimeError())
        async def both():
            beam = scope("/v1/chat/completions", x_request_id="beam")
            await call(api, beam, beams)
            say(len(api._open))
            api.ends("chatcmpl-beam")
        asyncio.run(both())
        """,
    )
    assert result.said == ["beam", "beam", 1]
    (said,) = ends(sink).values()
    assert said["gen_ai.usage.output_tokens"] == 8
    assert said["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert "error.type" not in said and "url.path" not in said


def test_an_application_within_another_and_calls_on_one_connection_are_told_apart(
    program: Program, sink: Sink
) -> None:
    run(
        program,
        """
        api = Api()
        async def work(name):
            send(api, name)
            finish(api, name)
        async def outer(name, own):
            await call(api, {**own, "path": "/inner"}, lambda: work(f"{name}-1"))
            await work(f"{name}-2")
        async def both():
            first, second = scope(x_request_id="first"), scope(x_request_id="second")
            async def pipelined():
                await outer("first", first)
                # The next call's task is started by this one's.
                await call(api, second, lambda: outer("second", second))
            await call(api, first, pipelined)
        asyncio.run(both())
        """,
    )
    assert {
        name: (said["url.path"], said["gen_ai.usage.output_tokens"])
        for name, said in ends(sink).items()
    } == {"first": ("/v1/responses", 8), "second": ("/v1/responses", 8)}


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/v1/embeddings", "embeddings"),
        ("/v1/chat/completions/batch", "chat"),
        ("/pooling", None),
    ],
)
def test_the_path_says_the_operation_where_it_is_known(
    program: Program, sink: Sink, path: str, operation: str | None
) -> None:
    run(
        program,
        """
        api = Api()
        async def handle():
            send(api, "p")
            # What is pooled has no tokens.
            speak(api, "p", tokens=None)
            finish(api, "p", None)
        came = scope(sys.argv[1], x_request_id="p")
        # Another server than uvicorn.
        asyncio.run(call(api, {**came, "headers": tuple(came["headers"])}, handle))
        """,
        path,
    )
    said = ends(sink)["p"]
    assert (said["url.path"], said.get("gen_ai.operation.name")) == (path, operation)
    assert FIRST not in the(sink.spans, "Decode").attributes


def test_a_program_that_uses_the_engine_by_itself_has_its_requests_traced(
    program: Program, sink: Sink
) -> None:
    result = run(
        program,
        """
        api = Api()
        for name in "job-1", "0", "0", "left":
            say(send(api, name))
            speak(api, name)
            if name == "left":
                api.aborted(["left-1a2b3c4d"])
            else:
                finish(api, name)
        """,
    )
    job, *counted, left = result.said
    # Every process counts from 0.
    assert job == "job-1" and left == "left" and len(set(counted)) == 2
    assert all(re.fullmatch(r"0-[0-9a-f]{16}", each) for each in counted)
    asked = {**OWN, **ASKED, "omnitrace.engine.rank": 3}
    finished = {**asked, **USED, "gen_ai.response.finish_reasons": ["length"]}
    assert ends(sink) == {
        **dict.fromkeys([job, *counted], finished),
        left: {**asked, **ABORTED},
    }
    assert len({s.trace_id for s in sink.spans}) == 4


def test_what_is_asked_for_is_said_of_each_request_that_has_it(
    program: Program, sink: Sink
) -> None:
    run(
        program,
        """
        api = Api()
        # What is to be pooled has no sampling.
        for name, asked in ("pooled", None), ("sampled", Thing(max_tokens=4)), ("last", None):
            api.sent(of_engine(name, sampling_params=asked))
            finish(api, name)
        """,
    )
    asked = {name: said.get("gen_ai.request.max_tokens") for name, said in ends(sink).items()}
    assert asked == {"pooled": None, "sampled": 4, "last": None}


def test_choices_of_one_prompt_that_a_program_gives_are_one_request(
    program: Program, sink: Sink
) -> None:
    result = run(
        program,
        """
        api = Api()
        choices = [of_engine("7", before=f"{n}_") for n in range(2)]
        for each in choices:
            api.sent(each)
        say([each.trace_headers["omnitrace-request-id"] for each in choices])
        for n in range(2):
            api.finished(state("7", before=f"{n}_"), "stop", statistics(4, preemptions=1))
        say(len(api._open))
        """,
    )
    (first, second), left = result.said
    assert first == second and re.fullmatch(r"7-[0-9a-f]{16}", first) and left == 0
    (said,) = ends(sink).values()
    assert said["gen_ai.usage.output_tokens"] == 8 and said["gen_ai.usage.input_tokens"] == 7


def test_the_headers_that_a_program_gives_with_a_request_are_that_requests(
    program: Program, sink: Sink
) -> None:
    run(
        program,
        """
        api = Api()
        headers = {"traceparent": sys.argv[1], "x-request-id": "another's"}
        async def all_of_them():
            for name, given in ("theirs", headers), ("own", None):
                _call.carries(given)
                send(api, name)
                finish(api, name)
            async def handle():
                # vLLM's server has taken these from the call's own.
                _call.carries(headers)
                send(api, "called")
                finish(api, "called")
            await call(api, scope(), handle)
        asyncio.run(all_of_them())
        """,
        TRACEPARENT,
    )
    traces = {s.attributes["gen_ai.request.id"]: s.trace_id for s in sink.spans}
    caller = TRACEPARENT.split("-")[1]
    assert set(traces) == {"theirs", "own", "called"} and traces["theirs"] == caller
    assert caller not in (traces["own"], traces["called"])


def test_a_prefill_nodes_requests_of_any_path_are_prefills(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        api = Api()
        async def handle():
            send(api, "p", kv_transfer_params={"do_remote_decode": True})
            speak(api, "p")
            finish(api, "p")
            await asyncio.sleep(0.05)
        asyncio.run(call(api, scope(x_request_id="p"), handle))
        """,
    )
    prefill = the(sink.spans, "Prefill")
    assert prefill.attributes["gen_ai.request.id"] == "p"
    assert [event.name for event in prefill.events] == ["Prefill request sent to engine"]
    # It is over with the engine's part.
    assert prefill.end - prefill.start < 50_000_000
