"""How `omnitrace.vllm` takes a trace through vLLM's processes: with what they send each other."""

from __future__ import annotations

import json

import pytest

from program import Program, Running
from sink import Sink, forest, the
from vllm_program import STANDINS, TRACEPARENT, actions, run

TRACE = TRACEPARENT.split("-")[1]

API = """
api = Api()
headers = {"traceparent": sys.argv[1], "tracestate": "k=v", "baggage": "b=c"}
api.chat_received(chat(), raw("a", **headers))
request = of_engine("chatcmpl-a", trace_headers=json.loads(sys.argv[2]))
# A client that is made of another passes it on.
api.sent(request)
api.sent(request)
say(request.trace_headers)
output = made(request.request_id)
output.outputs[0].trace_headers = json.loads(input())
api.outputs(output.outputs)
say(output.outputs[0].trace_headers)
action("First decode output token", "chatcmpl-a")
api.finished(state("chatcmpl-a"), "stop", statistics(1))
api.ends("chatcmpl-a")
"""
ENGINE = """
engine = Engine()
engine.starts(scheduler(data_parallel_index=2, data_parallel_rank=0))
request = of_engine("chatcmpl-a", trace_headers=json.loads(input()))
engine.arrives(request)
say(request.trace_headers)
engine.waits(request)
engine.scheduling()
engine.needs_pull(request, 64)
chosen = step()
engine.scheduled(chosen)
say(chosen.omnitrace)
engine.executed(Thing(requests={}), chosen, Thing(omnitrace=json.loads(input())))
engine.transfers(Thing(finished_recving={request.request_id}))
chosen = step(request.request_id)
engine.scheduled(chosen)
engine.executing(chosen)
output = made(request.request_id)
output.outputs[0].trace_headers = request.trace_headers
engine.outputs(output)
say(output.outputs[0].trace_headers)
"""
WORKER = """
engine = Engine()
chosen = step()
chosen.omnitrace = json.loads(input())
engine.step_arrives(chosen)
(request_id,) = chosen.omnitrace[1]
action("Start pull kv", request_id)
outcome = Thing(kv_connector_output=Thing(finished_recving={request_id}))
engine.step_leaves(outcome)
say(outcome.omnitrace)
"""


@pytest.mark.parametrize("own", [None, {}, {"traceparent": TRACEPARENT}])
def test_a_trace_goes_through_all_processes_and_vllm_finds_its_own_headers(
    program: Program, sink: Sink, own: dict[str, str] | None
) -> None:
    def start(code: str, *args: str) -> Running:
        return program.start(code, *args, before=STANDINS, ROLE="decode")

    api = start(API, TRACEPARENT, json.dumps(own))
    engine, worker = start(ENGINE), start(WORKER)
    engine.tell(json.dumps(api.hear()))
    assert engine.hear() == own
    worker.tell(json.dumps(engine.hear()))
    engine.tell(json.dumps(worker.hear()))
    api.tell(json.dumps(engine.hear()))
    assert api.hear() == own
    for each in api, engine, worker:
        assert each.end().messages == []

    assert forest(sink.spans) == [
        (
            "Decode",
            [
                (
                    "Add to need pulling for decode",
                    [("Start to dispatch decode request", []), ("Add need pulling sequence", [])],
                ),
                ("Pull kv", [("Start pull kv", []), ("Finish pull kv", [])]),
                ("Start append running sequece for decode", []),
                (
                    "Send output in decode stage",
                    [("Start to send output", []), ("First decode output token", [])],
                ),
            ],
        )
    ]
    assert the(sink.spans, "Decode").attributes["omnitrace.engine.rank"] == 2
    pids = {
        running.process.pid: name
        for running, name in zip((api, engine, worker), "aew", strict=True)
    }
    assert {span.name: pids[int(span.pid)] for span in sink.spans} == {
        "Decode": "a",
        "Add to need pulling for decode": "e",
        "Start to dispatch decode request": "e",
        "Add need pulling sequence": "e",
        "Pull kv": "e",
        "Start pull kv": "w",
        "Finish pull kv": "e",
        "Start append running sequece for decode": "e",
        "Send output in decode stage": "a",
        "Start to send output": "e",
        "First decode output token": "a",
    }
    assert {span.trace_id for span in sink.spans} == {TRACE}


CALLERS = {
    "tracecontext": {"traceparent": TRACEPARENT},
    "b3": {"b3": f"{TRACE}-00f067aa0ba902b7-1"},
    "b3multi": {
        "x-b3-traceid": TRACE,
        "x-b3-spanid": "00f067aa0ba902b7",
        "x-b3-sampled": "1",
    },
}


@pytest.mark.parametrize("propagator", CALLERS)
def test_the_callers_id_and_context_are_found_among_starlettes_headers(
    program: Program, sink: Sink, propagator: str
) -> None:
    run(
        program,
        """
        pairs = [("accept", "*/*"), ("x-request-id", "a"), *json.loads(sys.argv[1]).items(),
                 ("x-request-id", "a second one does not count")]
        raw_request = Thing(scope={"headers": [(k.encode(), v.encode()) for k, v in pairs]})
        api = Api()
        api.chat_received(chat(), raw_request)
        api.chat_answered(chat(), raw_request, Thing())
        """,
        json.dumps(CALLERS[propagator]),
        OTEL_PROPAGATORS=propagator,
    )
    (decode,) = sink.spans
    assert (decode.attributes["gen_ai.request.id"], decode.trace_id) == ("a", TRACE)
    assert decode.parent_id == "00f067aa0ba902b7"


def test_headers_that_we_have_not_touched_count_and_they_and_own_steps_stay_as_they_are(
    program: Program, sink: Sink
) -> None:
    result = run(
        program,
        """
        engine = Engine()
        own = {"traceparent": sys.argv[1]}
        request = of_engine("a", trace_headers=own)
        engine.arrives(request)
        chosen = step(request.request_id)
        engine.scheduled(chosen)
        # A worker that is in the engine's process.
        engine.step_arrives(chosen)
        engine.executing(chosen)
        flush()
        say([request.trace_headers is own, chosen.omnitrace[0] == os.getpid(), stats()["events"]])
        """,
        TRACEPARENT,
    )
    assert result.said == [[True, True, 4]]
    assert [name for name, _ in actions(result)] == [
        "Enter decode to generate",
        "Start to dispatch decode request",
        "Start append running sequece for decode",
        "Start to send output",
    ]
    # An engine whose API process is without us is in its client's trace still.
    started = the(sink.spans, "Start to dispatch decode request")
    assert started.trace_id == TRACE
