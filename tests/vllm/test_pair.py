"""A request through nginx, a real vLLM that prefills and one that decodes is one trace."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import tree
from pair import Load, Said, Vllm, unfinished
from stack import Stack
from whole import OFFLINE_ONLY, WHOLE_TREE

REQUESTS = 100
LEAVES = frozenset(range(7, REQUESTS, 10))
TOKENS = 100
ABORTED, REASONS = "omnitrace.aborted", "gen_ai.response.finish_reasons"
PREEMPTED = "Preempted in decode stage"
FREED = "Prefill free kv blocks"

DECODE_EVENTS = [
    "Decode request tokenized",
    "Decode request sent to engine",
    "First decode output token",
    "Second decode output token",
    "Third decode output token",
]
ORDER = [
    "Trace for Omni Proxy",
    "P running",
    "Prefill",
    "Prefill add waiting queue",
    "try to schedule in waiting queue",
    "Prefill get new_blocks",
    "success add to seq groups",
    "Prefill start execute_model",
    "Prefill done execute_model",
    "Start to send output in prefill stage",
    "D running",
    "Decode",
    "Add need pulling sequence",
    "Start pull kv",
    "Finish pull kv",
    "Start append running sequece for decode",
    "Start to send output",
]
"""Spans in the order in which what they begin with must have happened."""


def by_request(stack: Stack, requests: int) -> dict[str, list[dict[str, Any]]]:
    """Each request's traces, once as many spans have come as will."""
    if any(stack.logs.iterdir()):
        # On a machine with so much to do the receiver may be too slow for the proxy.
        stack.replay()
    deadline = time.monotonic() + 60
    last = -1
    while time.monotonic() < deadline:
        traces = stack.traces()
        spans = sum(len(trace["spans"]) for trace in traces)
        if len(traces) >= requests and spans == last:
            break
        last = spans
        time.sleep(2)
    found: dict[str, list[dict[str, Any]]] = {}
    for trace in stack.traces():
        if not any(span["operationName"] == "P running" for span in trace["spans"]):
            continue
        ids = {tree.tag(span, "gen_ai.request.id") for span in trace["spans"]} - {None}
        (request_id,) = ids
        found.setdefault(request_id, []).append(trace)
    return found


def orphans(trace: dict[str, Any]) -> list[str]:
    spans = {span["spanID"] for span in trace["spans"]}
    parents = ((span["operationName"], tree.parent_of(span)) for span in trace["spans"])
    return [name for name, parent in parents if parent and parent not in spans]


def processes(trace: dict[str, Any]) -> set[tuple[str, Any]]:
    pids = set()
    for process in trace["processes"].values():
        tags = {tag["key"]: tag["value"] for tag in process["tags"]}
        pids.add((process["serviceName"], tags.get("process.pid")))
    return pids


def test_each_request_is_one_whole_trace(tmp_path: Path, stacks: list[Stack]) -> None:
    """Four clients at once, some of whom leave; the decode node has too few blocks."""
    few = ("--num-gpu-blocks-override", "21", "--max-model-len", "640")
    stack = Vllm(tmp_path, decode_options=few)
    stacks.append(stack)
    stack.start_receiver()
    stack.start()
    answers = Load(stack.proxy, REQUESTS, tokens=TOKENS, leaves=LEAVES).run()
    assert [said.error for said in answers if said.error] == []
    assert {said.number for said in answers if said.was_left} == LEAVES
    assert unfinished(answers) == []

    traces = by_request(stack, REQUESTS)
    assert set(traces) == {said.request_id for said in answers}
    assert {len(each) for each in traces.values()} == {1}
    preempted = sum(check(said, traces[said.request_id][0]) for said in answers)
    assert preempted > 0
    aborted = {
        said.number
        for said in answers
        if tree.tag(tree.the(traces[said.request_id][0], "Decode"), ABORTED) is True
    }
    # How many tokens the node is ahead of a client that leaves is the machine's affair.
    assert aborted and aborted <= LEAVES
    for name in ("prefill", "decode"):
        assert stack.messages(name) == []
    stack.stop_service()
    books = stack.collector.books().values()
    assert sorted(each.service for each in books) == ["vllm-decode"] * 2 + ["vllm-prefill"] * 2
    assert all(each.created > 0 and each.balance == 0 for each in books)


def test_workers_beside_the_engine_are_in_the_trace_too(
    tmp_path: Path, stacks: list[Stack]
) -> None:
    stack = Vllm(tmp_path, workers={"decode"})
    stacks.append(stack)
    stack.start_receiver()
    stack.start()
    answers = Load(stack.proxy, 10, at_once=1, tokens=TOKENS).run()
    assert unfinished(answers) == []
    traces = by_request(stack, 10)
    for said in answers:
        (trace,) = traces[said.request_id]
        check(said, trace)
        worker = stack.processes("decode")["VLLM::Worker"]
        assert ("vllm-decode", worker) in processes(trace)


def check(said: Said, trace: dict[str, Any]) -> int:
    """One trace is whole, in order and says how it ended; how often it was preempted."""
    assert orphans(trace) == [], tree.shape(trace)
    assert len(processes(trace)) >= 5
    assert {service for service, _ in processes(trace)} == {
        "omni-proxy",
        "vllm-prefill",
        "vllm-decode",
    }
    decode = tree.the(trace, "Decode")
    if said.was_left:
        # On a busy machine vLLM may have computed all of it before it saw the client leave.
        ended = [tree.tag(decode, key) for key in (ABORTED, REASONS, "error.type")]
        tags = {each["key"]: each["value"] for each in decode["tags"]}
        assert ended in ([True, '["abort"]', None], [None, '["length"]', None]), tags
        return 0
    preemptions = [s for s in trace["spans"] if s["operationName"] == PREEMPTED]
    shape = [line for line in tree.shape(trace).splitlines() if PREEMPTED not in line]
    assert "\n".join(shape) == WHOLE_TREE
    starts = [tree.the(trace, name)["startTime"] for name in ORDER]
    assert starts == sorted(starts)
    assert tree.tag(decode, "gen_ai.usage.output_tokens") == TOKENS
    assert tree.tag(decode, REASONS) == '["length"]'
    assert tree.tag(decode, "gen_ai.request.max_tokens") == TOKENS
    assert tree.tag(decode, "omnitrace.preemptions") == len(preemptions)
    # Where it has fallen behind, vLLM sends several tokens in a chunk.
    assert tree.events(decode) == DECODE_EVENTS[: 2 + min(3, said.chunks - 1)]
    prefill = tree.the(trace, "Prefill")
    assert tree.events(prefill) == ["Prefill request tokenized", "Prefill request sent to engine"]
    assert tree.tag(prefill, "gen_ai.usage.input_tokens") > 50
    assert tree.tag(prefill, "gen_ai.request.model") == "standin"
    check_transfer(trace)
    return len(preemptions)


def check_transfer(trace: dict[str, Any]) -> None:
    """The KV transfer has a size, and the decode span says how long it was waited for."""
    waited = tree.tag(tree.the(trace, "Decode"), "omnitrace.latency.kv_wait")
    assert abs(waited - tree.the(trace, "Pull kv")["duration"] / 1e6) < 1e-5
    computed, pulled = tree.the(trace, "Add to running for prefill"), tree.the(trace, "Pull kv")
    for name in ("omnitrace.kv.blocks", "omnitrace.kv.bytes"):
        assert tree.tag(pulled, name) == tree.tag(computed, name) > 0


def test_answers_are_the_same_without_omnitrace(tmp_path: Path, stacks: list[Stack]) -> None:
    texts = []
    for traced in (True, False):
        stack = Vllm(tmp_path / str(traced), traced=traced)
        stacks.append(stack)
        stack.start_receiver()
        stack.start()
        # One at a time: how requests are batched changes the last bits of a sum.
        answers = Load(stack.proxy, 10, at_once=1).run()
        assert unfinished(answers) == []
        texts.append([said.text for said in answers])
        spans = {service for t in stack.traces() for service, _ in processes(t)}
        stack.close()
    assert texts[0] == texts[1] and any(texts[0])
    assert spans == {"omni-proxy"}


def test_without_a_collector_vllm_answers_as_ever_and_the_log_has_it_all(
    tmp_path: Path, stacks: list[Stack]
) -> None:
    stack = Vllm(tmp_path)
    stacks.append(stack)
    stack.start()
    answers = Load(stack.proxy, 5, at_once=1).run()
    assert unfinished(answers) == []
    stack.stop_service()
    stack.start_receiver()
    stack.replay()
    lines = [line for log in stack.logs.glob("*.log") for line in log.read_text().splitlines()]
    traces = by_request(stack, 5)
    for said in answers:
        (trace,) = traces[said.request_id]
        # The prefill node may hear that its blocks were fetched before the decode node's next
        # step: nothing lies between the two then.
        shape = tree.shape(trace).removesuffix(f"\n  {OFFLINE_ONLY} [vllm-prefill]")
        assert shape == WHOLE_TREE
        freed = f"Action: {FREED}; ", f"RequestID:chatcmpl-{said.request_id};"
        assert sum(all(each in line for each in freed) for line in lines) == 1
