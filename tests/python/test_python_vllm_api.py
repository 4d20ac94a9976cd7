"""`omnitrace.vllm`'s stages in the API process, with stand-ins for vLLM's own objects: what is
recorded of a request. `make test-vllm` has the real ones."""

from __future__ import annotations

import re
from typing import Any

from program import Program
from sink import Sink, the
from vllm_program import TRACEPARENT, actions, recorded, run

# What a client of 4 tokens has asked for, and what it has got.
ASKED = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "tiny",
    "gen_ai.request.max_tokens": 4,
}
LATENCIES = {
    "gen_ai.latency.e2e": 2.0,
    "gen_ai.latency.time_in_queue": 0.25,
    "gen_ai.latency.time_in_model_prefill": 0.5,
    "gen_ai.latency.time_in_model_decode": 1.0,
    "gen_ai.latency.time_in_model_inference": 1.5,
}
USED = {
    "gen_ai.response.finish_reasons": ["length"],
    "gen_ai.usage.input_tokens": 7,
    "gen_ai.usage.cache_read.input_tokens": 3,
    "gen_ai.usage.output_tokens": 4,
    "omnitrace.preemptions": 1,
    **LATENCIES,
}
RECEIVED, FINISHED = "Enter decode to generate", "Finish decode pickle and start response"
SENT = "Decode request sent to engine"
PREFILL_RECEIVED = "PD api server get request"
PREFILL_FINISHED = "Finish prefill pickle and start response"


def test_a_chat_says_what_was_asked_for_and_what_it_took_and_nothing_of_its_text(
    program: Program, sink: Sink
) -> None:
    result = run(
        program,
        """
        api = Api()
        request = chat(max_completion_tokens=None, max_tokens=4, temperature=0.0, top_p=1.0,
                       stream=True)
        api.chat_received(request, raw("a", traceparent=sys.argv[1]))
        async def stream(): yield
        api.chat_answered(request, raw("a"), stream())
        api.finished(state("chatcmpl-a", cached=3), "length", statistics(9, 4, preemptions=1))
        api.ends("chatcmpl-a")
        api.ends("chatcmpl-a")
        api.fails("chatcmpl-a", GeneratorExit())
        """,
        TRACEPARENT,
    )
    asked = {
        **ASKED,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.stream": True,
    }
    assert recorded(result) == [(RECEIVED, "a", asked), (FINISHED, "a", USED)]
    decode = the(sink.spans, "Decode")
    own = {"gen_ai.request.id": "a", "omnitrace.role": "decode"}
    assert decode.attributes == {**own, **asked, **USED}
    assert (decode.kind, decode.status) == ("SERVER", "UNSET")
    assert f"00-{decode.trace_id}-{decode.parent_id}-01" == TRACEPARENT


def test_the_span_of_a_request_says_how_it_ended(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        api = Api()
        for name in "cancelled", "left", "aborted", "refused", "broken", "whole":
            api.chat_received(chat(max_tokens=4), raw(name))
        api.chat_answered(chat(), raw("cancelled"), asyncio.CancelledError())
        # The client goes in the middle of the stream: the engine says so, or the generator.
        api.fails("chatcmpl-left", GeneratorExit())
        api.finished(state("chatcmpl-aborted", cached=3), "abort", statistics(4, preemptions=1))
        api.fails("chatcmpl-aborted", asyncio.CancelledError())
        api.chat_answered(chat(), raw("refused"), ErrorResponse("BadRequestError"))
        api.chat_answered(chat(), raw("broken"), KeyError("secret"))
        api.finished(state("chatcmpl-whole", cached=3), "length", statistics(4, preemptions=1))
        api.chat_answered(chat(), raw("whole"), Thing(choices=["secret"]))
        """,
    )
    aborted = {"omnitrace.aborted": True, "gen_ai.response.finish_reasons": ["abort"]}
    ends: dict[str, tuple[str, dict[str, Any]]] = {
        "cancelled": ("UNSET", aborted),
        "left": ("UNSET", aborted),
        "aborted": ("UNSET", {**USED, **aborted}),
        "refused": ("ERROR", {"error.type": "BadRequestError"}),
        "broken": ("ERROR", {"error.type": "KeyError"}),
        "whole": ("UNSET", USED),
    }
    assert {s.attributes["gen_ai.request.id"]: (s.status, s.attributes) for s in sink.spans} == {
        name: (status, {"gen_ai.request.id": name, "omnitrace.role": "decode", **ASKED, **more})
        for name, (status, more) in ends.items()
    }
    assert not any("secret" in str(vars(span)) for span in sink.spans)


def test_several_prompts_and_several_choices_are_one_request(program: Program) -> None:
    result = run(
        program,
        """
        api = Api()
        api.completion_received(chat(request_id="x", max_tokens=4), None)
        api.chat_received(chat(max_tokens=4), raw("n"))
        prompts = [of_engine(f"cmpl-x-{i}") for i in range(2)]
        choices = [of_engine("chatcmpl-n", before=f"{i}_") for i in range(2)]
        for each in prompts + choices:
            api.sent(each)
        say([each.trace_headers["omnitrace-request-id"] for each in prompts + choices])
        api.finished(state("cmpl-x-0", 7), "length", statistics(4, preemptions=1))
        api.finished(state("cmpl-x-1", 5), "stop", statistics(2, preemptions=2))
        api.completion_answered(chat(request_id="x"), None, Thing())
        api.finished(state("chatcmpl-n", 7, before="0_"), "length", statistics(4))
        api.finished(state("chatcmpl-n", 7, before="1_"), "stop", statistics(2))
        api.ends("chatcmpl-n")
        """,
    )
    assert result.said == [["x", "x", "n", "n"]]
    used = {"gen_ai.response.finish_reasons": ["length", "stop"], **LATENCIES}
    output = {"gen_ai.usage.output_tokens": 6}
    assert recorded(result) == [
        (RECEIVED, "x", {**ASKED, "gen_ai.operation.name": "text_completion"}),
        (RECEIVED, "n", ASKED),
        # With the first of them.
        (SENT, "x", {}),
        (SENT, "n", {}),
        (
            FINISHED,
            "x",
            {**used, **output, "gen_ai.usage.input_tokens": 12, "omnitrace.preemptions": 3},
        ),
        # A prompt is read once for all its choices.
        (
            FINISHED,
            "n",
            {**used, **output, "gen_ai.usage.input_tokens": 7, "omnitrace.preemptions": 0},
        ),
    ]


def test_the_first_chunks_with_tokens_are_recorded_and_no_others(program: Program) -> None:
    result = run(
        program,
        """
        api = Api()
        token = 'data: {"id":"x","choices":[{"delta":{"content":"."}}]}'
        streams = {
            "short": [token, 'data: {"id":"x","choices":[],"usage":{}}', "data: [DONE]"],
            "cut": [token, token, 'data: {"error":{"type":"x"}}', "data: [DONE]"],
            "long": [token] * 5,
        }
        for name, chunks in streams.items():
            api.chat_received(chat(), raw(name))
            for chunk in chunks:
                api.streams(f"chatcmpl-{name}", chunk)
        api.streams("chatcmpl-unknown", token)
        """,
    )
    tokens = [f"{each} decode output token" for each in ("First", "Second", "Third")]
    assert [each for each in actions(result) if each[0] != RECEIVED] == [
        (tokens[0], "short"),
        *[(name, "cut") for name in tokens[:2]],
        *[(name, "long") for name in tokens],
    ]


def test_a_stream_that_breaks_says_why_in_its_own_request(program: Program) -> None:
    result = run(
        program,
        """
        api = Api()
        async def stream(name, error):
            api.begins(f"chatcmpl-{name}")
            await asyncio.sleep(0)
            if error:
                api.breaks(json.dumps({"error": {"type": error, "message": "secret"}}))
            api.ends(f"chatcmpl-{name}")
        async def both():
            for name in "ab":
                api.chat_received(chat(), raw(name))
            await asyncio.gather(stream("a", "InternalServerError"), stream("b", None))
        asyncio.run(both())
        api.breaks("nobody's")
        """,
    )
    assert recorded(result)[2:] == [
        (FINISHED, "a", {"error.type": "InternalServerError"}),
        (FINISHED, "b", {}),
    ]


def test_a_client_that_tries_again_before_its_first_try_is_over_has_two_requests(
    program: Program, sink: Sink
) -> None:
    result = run(
        program,
        """
        api = Api()
        token = 'data: {"id":"x","choices":[{"delta":{"content":"."}}]}'
        started, refused = asyncio.Event(), asyncio.Event()
        async def serve(first):
            request = raw("a", traceparent=sys.argv[1])
            api.chat_received(chat(), request)
            if not first:
                # Versions without ids of their own in the engine take none twice.
                api.chat_answered(chat(), request, ErrorResponse("BadRequestError"))
                return
            sent = of_engine("chatcmpl-a")
            api.sent(sent)
            say(sent.trace_headers["omnitrace-request-id"])
            started.set()
            await refused.wait()
            async def stream():
                api.begins("chatcmpl-a")
                api.streams("chatcmpl-a", token)
                api.finished(state("chatcmpl-a", cached=3), "length", statistics(4, preemptions=1))
                api.ends("chatcmpl-a")
            await asyncio.create_task(stream())
        async def both():
            first = asyncio.create_task(serve(True))
            await started.wait()
            for _ in range(2):
                await asyncio.create_task(serve(False))
            refused.set()
            await first
            await serve(True)
        asyncio.run(both())
        say([len(api._open), len(api._in_engine), len(api.silent)])
        """,
        TRACEPARENT,
    )
    # The last one comes when all are over.
    assert result.said == ["a", "a", [0, 0, 0]]
    whole = [(SENT, "a", {}), ("First decode output token", "a", {}), (FINISHED, "a", USED)]
    second, third = {of: None for _, of, _ in recorded(result) if of != "a"}
    assert all(re.fullmatch("a-[0-9a-f]{16}", each) for each in (second, third))
    asked = {key: value for key, value in ASKED.items() if key != "gen_ai.request.max_tokens"}
    assert recorded(result) == [
        (RECEIVED, "a", asked),
        whole[0],
        (RECEIVED, second, asked),
        (FINISHED, second, {"error.type": "BadRequestError"}),
        (RECEIVED, third, asked),
        (FINISHED, third, {"error.type": "BadRequestError"}),
        *whole[1:],
        (RECEIVED, "a", asked),
        *whole,
    ]
    # Where their caller is, and none with another's span.
    roots = [span for span in sink.spans if span.name == "Decode"]
    assert {f"00-{s.trace_id}-{s.parent_id}-01" for s in roots} == {TRACEPARENT}
    assert len({s.span_id for s in roots}) == 3


def test_tokens_are_those_of_the_tasks_own_request(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        api = Api()
        async def serve(name, first, then):
            api.chat_received(chat(), raw(name))
            first.set()
            await then.wait()
            api.tokenized()
            api.tokenized()
            request = of_engine(f"chatcmpl-{name}")
            api.sent(request)
            carried = made(request.request_id).outputs
            _carrier.put(carried[0], request.request_id, 3)
            api.outputs(carried)
            api.finished(state(f"chatcmpl-{name}"), "stop", statistics(1))
            api.ends(f"chatcmpl-{name}")
        async def both():
            a, b = asyncio.Event(), asyncio.Event()
            await asyncio.gather(serve("a", a, b), serve("b", b, a))
        asyncio.run(both())
        api.tokenized()
        """,
    )
    found = {
        span.attributes["gen_ai.request.id"]: (
            [event.name for event in span.events],
            span.attributes["omnitrace.engine.rank"],
        )
        for span in sink.spans
        if span.name == "Decode"
    }
    assert found == dict.fromkeys("ab", (["Decode request tokenized", SENT], 3))


def test_a_prefill_nodes_request_ends_when_the_engine_is_done_with_all_its_prompts(
    program: Program,
) -> None:
    result = run(
        program,
        """
        api = Api()
        request = chat(max_tokens=1, kv_transfer_params={"do_remote_decode": True})
        api.completion_received(request, raw("p"))
        for i in range(2):
            request_of_one = of_engine(f"cmpl-p-{i}")
            # A client that is made of another passes it on.
            api.sent(request_of_one)
            api.sent(request_of_one)
        for i in range(2):
            action(f"before {i}", "p")
            api.finished(state(f"cmpl-p-{i}"), "length", statistics(1))
        action("after", "p")
        api.completion_answered(request, raw("p"), Thing())
        """,
    )
    asked = {
        **ASKED,
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.max_tokens": 1,
    }
    used = {
        "gen_ai.response.finish_reasons": ["length", "length"],
        "gen_ai.usage.input_tokens": 14,
        "gen_ai.usage.output_tokens": 2,
        "omnitrace.preemptions": 0,
        **LATENCIES,
    }
    assert recorded(result) == [
        (PREFILL_RECEIVED, "p", asked),
        ("Prefill request sent to engine", "p", {}),
        ("before 0", "p", {}),
        ("before 1", "p", {}),
        (PREFILL_FINISHED, "p", used),
        ("after", "p", {}),
    ]


def test_requests_whose_end_nobody_sees_are_forgotten_beyond_the_limit(program: Program) -> None:
    result = run(
        program,
        """
        _api._MOST = _engine._MOST = 2
        api, engine = Api(), Engine()
        for name in "a", "b", "c":
            api.chat_received(chat(), raw(name))
            engine.arrives(arriving(name))
            api.sent(of_engine(name))
        say([len(api._open), len(api.silent), len(engine._requests)])
        for name in "a", "b", "c":
            api.ends(f"chatcmpl-{name}")
            engine.outputs(made(f"{name}-1a2b3c4d"))
        say([len(api._open), len(engine._requests)])
        """,
    )
    assert result.said == [[2, 2, 2], [0, 2]]
    assert [of for name, of in actions(result) if name == FINISHED] == ["b", "c"]


def test_what_has_no_id_or_is_not_known_is_left_alone(program: Program, sink: Sink) -> None:
    result = run(
        program,
        """
        api, engine = Api(), Engine()
        api.chat_received(chat(request_id=None), Thing(headers={}))
        api.chat_answered(chat(request_id=None), None, Thing())
        api.finished(state("chatcmpl-a"), "length", statistics(4))
        api.ends("chatcmpl-a")
        unknown = made("a")
        api.outputs(unknown.outputs)
        engine.outputs(unknown)
        engine.blocks(of_engine("a"), [1])
        engine.needs_pull(of_engine("a"), 4)
        engine.executing(step("a"))
        engine.executed(Thing(requests={}), step("a"), None)
        engine.transfers(Thing(finished_recving={"a"}, finished_sending={"a"}))
        engine.transfers(None)
        engine.step_arrives(step("a"))
        engine.step_leaves(None)
        engine.freed(of_engine("a"))
        engine.scheduling()
        say([unknown.outputs[0].trace_headers, stats()["events"]])
        """,
    )
    assert result.said == [[None, 0]] and recorded(result) == [] and sink.spans == []
