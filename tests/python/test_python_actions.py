"""Actions of a request in the two processes of a vLLM node become one tree of spans."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import NamedTuple

import pytest

from program import NODE, Program
from sink import Sink, Span

ID = "38a4f1c0-5b1e-4c52-9c0d-0123456789ab"
API_ID = f"chatcmpl-{ID}"
ENGINE_ID = f"chatcmpl-{ID}-1a2b3c4d"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
# The XXH3-128 hash of ID: what proxy, nodes and converter derive without a traceparent.
DERIVED = "ed1510ce5ffcb7754dc60e681b580ab8"


class Phase(NamedTuple):
    """A span: its name, its parent's, the process and the actions that bound it."""

    name: str
    parent: str | None
    process: str
    start: str
    end: str


GOT = "PD api server get request"
STARTED = "Start process request in prefill engine"
QUEUED = "Prefill add waiting queue"
TRIED = "try to schedule in waiting queue"
BLOCKS = "Prefill get new_blocks"
RUNNING = "success add to seq groups"
EXECUTING = "Prefill start execute_model"
EXECUTED = "Prefill done execute_model"
SENDING = "Start to send output in prefill stage"
RESPONDING = "Finish prefill pickle and start response"

PREFILL_STEPS = [
    ("api", GOT),
    ("engine", STARTED),
    ("engine", QUEUED),
    ("engine", TRIED),
    ("engine", BLOCKS),
    ("engine", RUNNING),
    ("engine", EXECUTING),
    ("engine", EXECUTED),
    ("engine", SENDING),
    ("api", RESPONDING),
]
ADD = "Add to running for prefill"
EXECUTE = "Prefill execute_model"
SEND = "Send output in prefill stage"
PREFILL = [
    Phase("Prefill", None, "api", GOT, RESPONDING),
    Phase(ADD, "Prefill", "engine", GOT, RUNNING),
    Phase(STARTED, ADD, "engine", GOT, STARTED),
    Phase(QUEUED, ADD, "engine", STARTED, QUEUED),
    Phase(TRIED, ADD, "engine", QUEUED, TRIED),
    Phase(BLOCKS, ADD, "engine", TRIED, BLOCKS),
    Phase(RUNNING, ADD, "engine", BLOCKS, RUNNING),
    Phase(EXECUTE, "Prefill", "engine", RUNNING, EXECUTED),
    Phase(EXECUTING, EXECUTE, "engine", RUNNING, EXECUTING),
    Phase(EXECUTED, EXECUTE, "engine", EXECUTING, EXECUTED),
    Phase(SEND, "Prefill", "api", EXECUTED, RESPONDING),
    Phase(SENDING, SEND, "engine", EXECUTED, SENDING),
    Phase(RESPONDING, SEND, "api", SENDING, RESPONDING),
]

ENTERED = "Enter decode to generate"
DISPATCHED = "Start to dispatch decode request"
PULLING = "Add need pulling sequence"
PULL_BEGUN = "Start pull kv"
PULLED = "Finish pull kv"
APPENDED = "Start append running sequece for decode"
OUTPUT = "Start to send output"
FIRST = "First decode output token"
SECOND = "Second decode output token"
THIRD = "Third decode output token"
DONE = "Finish decode pickle and start response"
DECODE_STEPS = [
    ("api", ENTERED),
    ("engine", DISPATCHED),
    ("engine", PULLING),
    ("engine", PULL_BEGUN),
    ("engine", PULLED),
    ("engine", APPENDED),
    ("engine", OUTPUT),
    ("api", FIRST),
    ("api", SECOND),
    ("api", THIRD),
    ("api", DONE),
]
NEED = "Add to need pulling for decode"
SEND_DECODE = "Send output in decode stage"
DECODE = [
    Phase("Decode", None, "api", ENTERED, DONE),
    Phase(NEED, "Decode", "engine", ENTERED, PULLING),
    Phase(DISPATCHED, NEED, "engine", ENTERED, DISPATCHED),
    Phase(PULLING, NEED, "engine", DISPATCHED, PULLING),
    Phase("Pull kv", "Decode", "engine", PULLING, PULLED),
    Phase(PULL_BEGUN, "Pull kv", "engine", PULLING, PULL_BEGUN),
    Phase(PULLED, "Pull kv", "engine", PULL_BEGUN, PULLED),
    Phase(APPENDED, "Decode", "engine", PULLED, APPENDED),
    Phase(SEND_DECODE, "Decode", "api", APPENDED, DONE),
    Phase(OUTPUT, SEND_DECODE, "engine", APPENDED, OUTPUT),
    Phase(FIRST, SEND_DECODE, "api", OUTPUT, FIRST),
]
NODES = {
    "prefill": (PREFILL_STEPS, PREFILL),
    "decode": (DECODE_STEPS, DECODE),
}


def run(
    program: Program,
    role: str,
    headers: dict[str, str],
    attributes: dict[str, dict[str, object]] | None = None,
) -> dict[str, tuple[int, dict[str, object]]]:
    """One request through a node: each process's number and books."""
    steps = NODES[role][0]
    full = [(p, a, (attributes or {}).get(a, {})) for p, a in steps]
    sent = json.dumps(headers), json.dumps(full), API_ID, ENGINE_ID
    result = program.start("node.py", *sent, ROLE=role).end()
    assert result.messages == [] and result.lines == []
    return {process: (pid, books) for process, pid, books in result.said}


def books(created: int, events: int, **more: object) -> dict[str, object]:
    nothing = ["in_flight", "logged", "events_lost", "events_loose", "unsampled"]
    nothing += ["contradictory", "open_requests"]
    delivered = {"created": created, "exported": created, "events": events}
    rest: dict[str, object] = {"dropped": {}, "last_error": None}
    return {**dict.fromkeys(nothing, 0), **delivered, **rest, **more}


def moments(spans: list[Span], phases: list[Phase]) -> dict[str, int]:
    """When each action happened; every span that it bounds must agree."""
    seen = defaultdict(set)
    by_name = {span.name: span for span in spans}
    for phase in phases:
        seen[phase.start].add(by_name[phase.name].start)
        seen[phase.end].add(by_name[phase.name].end)
    assert {action: len(times) for action, times in seen.items()} == dict.fromkeys(seen, 1)
    return {action: times.pop() for action, times in seen.items()}


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("caller", [None, CALLER], ids=["derived", "traceparent"])
def test_a_request_through_api_and_engine_is_one_tree(
    program: Program, sink: Sink, role: str, caller: str | None
) -> None:
    steps, phases = NODES[role]
    headers = {"Traceparent": f"00-{TRACE}-{caller}-01"} if caller else {}
    processes = run(program, role, headers, {steps[0][1]: {"model": "m"}})

    spans = sink.spans
    names = {span.span_id: span.name for span in spans}
    pids = {pid: process for process, (pid, _) in processes.items()}
    assert len(names) == len(spans) and len(pids) == 2
    found = {(s.name, names.get(s.parent_id), pids[int(s.pid)]) for s in spans}
    assert found == {phase[:3] for phase in phases}

    # One moment for each action, in the order in which they were recorded.
    times = moments(spans, phases)
    order = [action for _, action in steps if action in times]
    assert sorted(times, key=lambda action: times[action]) == order
    assert len(set(times.values())) == len(order)

    [trace] = {span.trace_id for span in spans}
    [entry] = [s for s in spans if names.get(s.parent_id) is None]
    assert entry.parent_id == (caller or "")
    assert trace == (TRACE if caller else DERIVED)

    # What each span says.
    latencies = {}
    if role == "decode":
        latencies = {
            "gen_ai.latency.time_to_first_token": (times[FIRST] - times[ENTERED]) / 1e9,
            "omnitrace.latency.kv_wait": (times[PULLED] - times[PULLING]) / 1e9,
        }
    for span in spans:
        main = span is entry
        expected: dict[str, object] = {"gen_ai.request.id": ID}
        if main:
            expected |= {"model": "m", "omnitrace.role": role, **latencies}
        assert span.attributes == expected
        assert (span.kind, span.status, span.message, span.flags) == (
            "SERVER" if main else "INTERNAL",
            "UNSET",
            "",
            1,
        )
        tokens = [FIRST, SECOND, THIRD] if main and role == "decode" else []
        assert [(e.name, e.attributes) for e in span.events] == [(token, {}) for token in tokens]
        assert span.resource == {
            "service.name": f"vllm-{role}",
            "service.instance.id": f"{NODE}:{span.pid}",
            "host.ip": NODE,
            "process.pid": span.pid,
            "telemetry.sdk.name": "omnitrace",
            "telemetry.sdk.language": "rust",
            "telemetry.sdk.version": span.resource["telemetry.sdk.version"],
        }

    for process, (_, kept) in processes.items():
        created = sum(phase.process == process for phase in phases)
        events = sum(step[0] == process for step in steps)
        assert kept == books(created, events)


def test_prefill_and_decode_node_derive_the_same_trace(program: Program, sink: Sink) -> None:
    run(program, "prefill", {})
    run(program, "decode", {})
    services = {span.resource["service.name"] for span in sink.spans}
    assert services == {"vllm-prefill", "vllm-decode"}
    assert {span.trace_id for span in sink.spans} == {DERIVED}
    assert len({span.span_id for span in sink.spans}) == len(PREFILL) + len(DECODE)


def test_the_same_call_seen_twice_has_the_same_ids_and_another_caller_has_others(
    program: Program, sink: Sink
) -> None:
    def ids(caller: str) -> dict[str, str]:
        sink.spans.clear()
        run(program, "prefill", {"traceparent": f"00-{TRACE}-{caller}-01"})
        assert {span.trace_id for span in sink.spans} == {TRACE}
        return {span.name: span.span_id for span in sink.spans}

    first, again, retry = ids(CALLER), ids(CALLER), ids("1111111111111111")
    assert first == again
    assert set(first) == set(retry)
    assert set(first.values()).isdisjoint(retry.values())


def test_a_trace_that_the_caller_does_not_record_is_not_recorded_in_either_process(
    program: Program, sink: Sink
) -> None:
    processes = run(program, "prefill", {"traceparent": f"00-{TRACE}-{CALLER}-00"})
    assert sink.requests == []
    assert processes["api"][1] == books(0, 2, unsampled=3)
    assert processes["engine"][1] == books(0, 8, unsampled=10)


def test_an_action_that_no_vocabulary_knows_is_an_event_of_the_server_span(
    program: Program, sink: Sink
) -> None:
    program.run(
        """
        action("PD api server get request", "r")
        action("KV cache found", "r", {"blocks": 3, "hit": True})
        action("Finish prefill pickle and start response", "chatcmpl-r")
        flush()
        """,
        ROLE="prefill",
    )
    spans = {span.name: span for span in sink.spans}
    assert set(spans) == {"Prefill"}
    prefill = spans["Prefill"]
    [event] = prefill.events
    assert (event.name, event.attributes) == ("KV cache found", {"blocks": 3, "hit": True})
    assert prefill.start <= event.time <= prefill.end


def test_a_moment_that_is_over_is_recorded_at_its_time(program: Program, sink: Sink) -> None:
    result = program.run(
        """
        began = time.time_ns() - 5_000_000_000
        action("PD api server get request", "r", timestamp=began)
        action("KV cache found", "r", None, 0, began + 7)
        action("Finish prefill pickle and start response", "r", timestamp=None)
        say([began, time.time_ns()])
        for wrong in "now", 1.5, -1, 1 << 64:
            try:
                action("KV cache lost", "r", timestamp=wrong)
            except (TypeError, OverflowError) as error:
                say(type(error).__name__)
        """,
        ROLE="prefill",
    )
    (began, now), *errors = result.said
    [prefill] = sink.spans
    assert prefill.start == began and began + 5_000_000_000 <= prefill.end <= now
    assert [(event.name, event.time) for event in prefill.events] == [("KV cache found", began + 7)]
    assert errors == ["TypeError", "TypeError", "OverflowError", "OverflowError"]


def test_of_repeated_actions_the_first_counts(program: Program, sink: Sink) -> None:
    result = program.run(
        """
        action("Prefill add waiting queue", "r")
        action("try to schedule in waiting queue", "r")
        say(time.time_ns())
        for _ in range(100):
            action("try to schedule in waiting queue", "r")
        action("Prefill get new_blocks", "r")
        """,
        ROLE="prefill",
    )
    spans = {span.name: span for span in sink.spans}
    assert set(spans) == {ADD, TRIED, BLOCKS} and len(sink.spans) == 3
    tried, blocks = spans[TRIED], spans[BLOCKS]
    assert tried.start < tried.end == blocks.start < blocks.end
    assert tried.end <= result.said[0]


def test_a_request_that_breaks_off_is_shown_as_incomplete_at_exit(
    program: Program, sink: Sink
) -> None:
    program.run(
        """
        action("PD api server get request", "r", {"model": "m"})
        action("Start process request in prefill engine", "r")
        """,
        ROLE="prefill",
    )
    spans = {span.name: span for span in sink.spans}
    assert set(spans) == {"Prefill", ADD, STARTED}
    incomplete = {"omnitrace.incomplete": True}
    request = {"gen_ai.request.id": "r"}
    assert spans["Prefill"].attributes == {
        "model": "m",
        "omnitrace.role": "prefill",
        **request,
        **incomplete,
    }
    assert spans[STARTED].attributes == request
    assert spans[STARTED].parent_id == spans[ADD].span_id
    assert spans[ADD].parent_id == spans["Prefill"].span_id
    extents = {(span.start, span.end) for span in spans.values()}
    assert len(extents) == 1
