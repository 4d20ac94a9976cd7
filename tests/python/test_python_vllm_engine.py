"""`omnitrace.vllm`'s stages in the engine and its workers, with stand-ins for vLLM's own objects:
what is recorded of a request. `make test-vllm` has the real ones."""

from __future__ import annotations

import re

import pytest

from program import Program
from sink import Sink, the
from vllm_program import TRACEPARENT, actions, recorded, run

PREFILL = """
engine = Engine()
first, second = arriving("a"), arriving("b")
ids = [first.request_id, second.request_id]
for request in first, second:
    engine.arrives(request)
    engine.arrives(request)
    # A scheduler that is made of another passes it on.
    engine.waits(request)
    engine.waits(request)
engine.scheduling()
for _ in range(2):
    engine.blocks(first, [1])
    engine.blocks(second, None)
chosen = step(ids[0])
engine.scheduled(chosen)
engine.executing(chosen)
# A prompt of two steps.
for computed in 4, 7:
    first.num_computed_tokens, first.num_prompt_tokens = computed, 7
    engine.executed(Thing(requests={ids[0]: first}), step(running=ids[:1]), None)
    engine.scheduling()
for _ in range(2):
    engine.outputs({0: made(ids[0])})
engine.blocks(second, [1])
chosen = step(ids[1], running=ids[:1])
engine.scheduled(chosen)
engine.executing(chosen)
"""


def test_a_prefill_node_records_each_stage_once_and_refused_blocks(program: Program) -> None:
    result = run(program, PREFILL, ROLE="prefill")
    chosen = {
        "omnitrace.engine.step": 1,
        "omnitrace.engine.batch_size": 1,
        "omnitrace.engine.scheduled_tokens": 4,
    }
    again = {
        "omnitrace.engine.step": 2,
        "omnitrace.engine.batch_size": 2,
        "omnitrace.engine.scheduled_tokens": 8,
    }
    assert recorded(result) == [
        ("Start process request in prefill engine", "a-1a2b3c4d", {}),
        ("Prefill add waiting queue", "a-1a2b3c4d", {}),
        ("Start process request in prefill engine", "b-1a2b3c4d", {}),
        ("Prefill add waiting queue", "b-1a2b3c4d", {}),
        ("try to schedule in waiting queue", "a-1a2b3c4d", {}),
        ("try to schedule in waiting queue", "b-1a2b3c4d", {}),
        ("Prefill get new_blocks", "a-1a2b3c4d", {}),
        ("fail to add result of kv insufficient", "b-1a2b3c4d", {}),
        ("success add to seq groups", "a-1a2b3c4d", {}),
        ("Prefill start execute_model", "a-1a2b3c4d", chosen),
        ("Prefill done execute_model", "a-1a2b3c4d", {}),
        ("Start to send output in prefill stage", "a-1a2b3c4d", {}),
        ("Prefill get new_blocks", "b-1a2b3c4d", {}),
        ("success add to seq groups", "b-1a2b3c4d", {}),
        ("Prefill start execute_model", "b-1a2b3c4d", again),
    ]


@pytest.mark.parametrize("role", ["decode", "serve"])
def test_what_a_prefill_node_records_is_not_recorded_by_others(program: Program, role: str) -> None:
    result = run(program, PREFILL, ROLE=role)
    assert [name for name, of in actions(result) if of == "b-1a2b3c4d"] == [
        "Start to dispatch decode request",
        "try to schedule in waiting queue",
        "Start append running sequece for decode",
        "Start to send output",
    ]


def test_refused_blocks_are_an_event_of_the_way_to_running(program: Program, sink: Sink) -> None:
    run(
        program,
        """
        api, engine = Api(), Engine()
        api.chat_received(chat(), raw("a"))
        request = arriving("chatcmpl-a")
        engine.arrives(request)
        engine.waits(request)
        engine.scheduling()
        engine.blocks(request, None)
        engine.blocks(request, [1])
        engine.scheduled(step(request.request_id))
        engine.executing(step(request.request_id))
        request.num_computed_tokens = request.num_prompt_tokens = 7
        engine.executed(Thing(requests={request.request_id: request}),
                        step(running=[request.request_id]), None)
        engine.outputs(made(request.request_id))
        api.finished(state("chatcmpl-a"), "length", statistics(1))
        """,
        ROLE="prefill",
    )
    events = {span.name: [e.name for e in span.events] for span in sink.spans if span.events}
    assert events == {"Add to running for prefill": ["fail to add result of kv insufficient"]}
    assert the(sink.spans, "Prefill").attributes["gen_ai.usage.input_tokens"] == 7


def test_a_pull_is_recorded_once_and_only_of_what_is_pulled(program: Program) -> None:
    result = run(
        program,
        """
        engine = Engine()
        engine.starts(scheduler((24, 1000, 4), (64, 5000, 2)))
        pulled, local = arriving("a"), arriving("b")
        for request in pulled, local:
            engine.arrives(request)
            engine.waits(request)
        # A connector made of several asks each; after the pull, it is asked again.
        for tokens in 64, 64, 0:
            engine.needs_pull(pulled, tokens)
        engine.needs_pull(local, 0)
        engine.needs_pull(local, None)
        chosen = [step(local.request_id), step(pulled.request_id)]
        for each in chosen:
            engine.scheduled(each)
        say([sorted(each.omnitrace[1]) for each in chosen])
        engine.transfers(Thing(finished_recving={pulled.request_id, local.request_id}))
        """,
        ROLE="decode",
    )
    assert result.said == [[["a-1a2b3c4d", "b-1a2b3c4d"], ["a-1a2b3c4d"]]]
    pulls = [each for each in recorded(result) if "pull" in each[0]]
    assert pulls == [
        ("Add need pulling sequence", "a-1a2b3c4d", {}),
        (
            "Finish pull kv",
            "a-1a2b3c4d",
            {
                "omnitrace.kv.external_tokens": 64,
                "omnitrace.kv.blocks": 3 + 1,
                "omnitrace.kv.bytes": 3 * 4 * 1000 + 1 * 2 * 5000,
            },
        ),
    ]


def test_each_preemption_lasts_until_the_request_is_chosen_again(program: Program) -> None:
    result = run(
        program,
        """
        engine = Engine()
        request, other = arriving("a"), arriving("b")
        for each in request, other:
            engine.arrives(each)
        for _ in range(2):
            engine.preempted(request)
            # vLLM notes it beside.
            engine.event(request, Thing(name="PREEMPTED"))
            engine.event(other, Thing(name="SCHEDULED"))
            engine.scheduled(step(running=[other.request_id]))
            engine.scheduled(step(running=[request.request_id, other.request_id]))
        engine.preempted(request)
        engine.freed(request)
        engine.scheduling()
        engine.scheduled(step(running=[request.request_id]))
        engine.preempted(arriving("never seen"))
        """,
    )
    found = [each for each in actions(result) if each[0] in {"Preempted", "Resumed"}]
    twice = [("Preempted", "a-1a2b3c4d"), ("Resumed", "a-1a2b3c4d")] * 2
    assert found == [*twice, ("Preempted", "a-1a2b3c4d")]
    assert [int(n) for n in re.findall(r'"occurrence":(\d+)', "".join(result.lines))] == [1, 1, 2]


def test_engines_that_would_be_killed_at_once_may_end_by_themselves(program: Program) -> None:
    result = run(
        program,
        """
        import multiprocessing, signal, time
        from omnitrace.vllm import _ends

        def engine(ready):
            def leave(*_):
                raise SystemExit(7)
            signal.signal(signal.SIGTERM, leave)
            ready.set()
            time.sleep(60)

        fork = multiprocessing.get_context("fork")
        statuses = []
        for timeout in 0, None, 30:
            ready = fork.Event()
            process = fork.Process(target=engine, args=(ready,))
            process.start()
            ready.wait(20)
            _ends.engines_end(Thing(processes=[process]), timeout)
            # What vLLM does next, where it has no patience of its own.
            process.kill()
            process.join()
            statuses.append(process.exitcode)
        say(statuses)
        """,
    )
    assert result.said == [[7, -9, -9]]


def test_what_a_prefill_node_has_from_a_store_is_no_pull(program: Program) -> None:
    result = run(
        program,
        """
        engine = Engine()
        engine.arrives(arriving("a"))
        engine.needs_pull(arriving("a"), 64)
        engine.transfers(Thing(finished_recving={"a-1a2b3c4d"}))
        """,
        ROLE="prefill",
    )
    assert actions(result) == [("Start process request in prefill engine", "a-1a2b3c4d")]


@pytest.mark.parametrize(
    ("role", "found"),
    [("prefill", [("Prefill free kv blocks", "a")]), ("decode", []), (None, [])],
)
def test_blocks_that_are_sent_count_on_a_prefill_node_alone(
    program: Program, role: str | None, found: list[tuple[str, str]]
) -> None:
    code = "Engine().transfers(Thing(finished_sending={'a'}, finished_recving=None))"
    assert actions(run(program, code, ROLE=role)) == found


def test_a_freed_request_is_forgotten_and_is_offered_to_no_scheduler(program: Program) -> None:
    result = run(
        program,
        """
        engine = Engine()
        gone, here = arriving("a"), arriving("b")
        for request in gone, here:
            # Without preprocess_add_request the scheduler is the first to see a request.
            engine.waits(request)
        engine.freed(gone)
        engine.scheduling()
        engine.outputs(made(gone.request_id))
        say(list(engine._requests))
        engine.freed(here)
        # Its last output is made after it is freed.
        engine.outputs(made(here.request_id))
        engine.scheduling()
        say([list(engine._requests), engine._gone])
        """,
        ROLE="prefill",
    )
    assert result.said == [["b-1a2b3c4d"], [[], []]]
    assert actions(result) == [
        ("Prefill add waiting queue", "a-1a2b3c4d"),
        ("Prefill add waiting queue", "b-1a2b3c4d"),
        ("try to schedule in waiting queue", "b-1a2b3c4d"),
        ("Start to send output in prefill stage", "b-1a2b3c4d"),
    ]


FOREIGN = """
engine = Engine()
engine.starts(scheduler(data_parallel_index=1))

def foreign(external, **members):
    return of_engine(external, sampling_params=Thing(max_tokens=4, temperature=0.5),
                     num_computed_tokens=7, num_prompt_tokens=7, **members)

def compute(*requests, first=False):
    ids = [each.request_id for each in requests]
    chosen = step(*ids) if first else step(running=ids)
    engine.scheduling()
    engine.scheduled(chosen)
    engine.executing(chosen)
    engine.executed(Thing(requests=dict(zip(ids, requests))), chosen, None)
    return made(*ids)

def ends(request, reason):
    request.num_output_tokens, request.num_preemptions = 4, 0
    request.get_finished_reason = lambda: reason
    engine.freed(request)
"""


def test_a_request_that_no_api_process_of_ours_has_received_begins_and_ends_in_the_engine(
    program: Program, sink: Sink
) -> None:
    result = run(
        program,
        """
        whole, left = foreign("whole", trace_headers={"traceparent": sys.argv[1]}), foreign("left")
        for request in whole, left:
            engine.arrives(request)
            engine.waits(request)
        engine.outputs({0: compute(whole, left, first=True)})
        say(bool(engine.silent))
        ends(left, "abort")
        outputs = compute(whole)
        ends(whole, "length")
        say(bool(engine.silent))
        engine.outputs({0: outputs})
        say([outputs.outputs[0].trace_headers, bool(engine.silent)])
        engine.scheduling()
        say(len(engine._requests))
        """,
        TRACEPARENT,
        before=FOREIGN,
    )
    # It is looked for its end only as long as that takes; others are told nothing of ours.
    assert result.said == [False, True, [None, False], 0]
    asked = {"gen_ai.request.max_tokens": 4, "gen_ai.request.temperature": 0.5}
    used = {
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 4,
        "omnitrace.preemptions": 0,
        "omnitrace.engine.rank": 1,
    }
    ends = {
        span.attributes["gen_ai.request.id"]: span for span in sink.spans if span.name == "Decode"
    }
    own = {"omnitrace.role": "decode", **asked, **used}
    said = {
        request_id: {
            key: value
            for key, value in span.attributes.items()
            if key not in ("gen_ai.request.id", "gen_ai.latency.time_to_first_token")
        }
        for request_id, span in ends.items()
    }
    assert said == {
        "whole": {**own, "gen_ai.response.finish_reasons": ["length"]},
        "left": {
            **own,
            "gen_ai.response.finish_reasons": ["abort"],
            "omnitrace.aborted": True,
        },
    }
    whole = {span.name for span in sink.spans if span.trace_id == TRACEPARENT.split("-")[1]}
    assert whole == {
        "Decode",
        "Add to need pulling for decode",
        "Start to dispatch decode request",
        "Send output in decode stage",
        "Start to send output",
        "First decode output token",
    }


def test_a_prefill_that_no_api_process_of_ours_has_received_ends_with_its_output(
    program: Program, sink: Sink
) -> None:
    run(
        program,
        """
        request = foreign("p")
        engine.arrives(request)
        engine.waits(request)
        outputs = compute(request, first=True)
        ends(request, "length")
        engine.outputs({0: outputs})
        """,
        before=FOREIGN,
        ROLE="prefill",
    )
    prefill, sent = (
        the(sink.spans, "Prefill"),
        the(sink.spans, "Start to send output in prefill stage"),
    )
    assert prefill.start <= sent.start <= sent.end <= prefill.end
    spans = {span.span_id: span for span in sink.spans}
    assert {span.name for span in sink.spans if span.parent_id not in spans} == {"Prefill"}
    assert prefill.attributes["gen_ai.usage.output_tokens"] == 4
    assert all(span.attributes["gen_ai.request.id"] == "p" for span in sink.spans)
