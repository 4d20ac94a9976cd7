"""A node of several engines, API servers or workers: a request is one trace wherever it goes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from test_versions import STREAMED

import tree
from pair import Load, Vllm, unfinished
from stack import Stack

REQUESTS = 12


@pytest.mark.parametrize(
    ("options", "binding", "ranks"),
    [
        (["--tensor-parallel-size", "2"], "0|1", {0}),
        (["--data-parallel-size", "2", "--api-server-count", "2"], "nobind", {0, 1}),
    ],
    ids=["two-workers", "two-engines-two-api-servers"],
)
def test_a_request_is_one_trace_wherever_it_goes(
    tmp_path: Path, stacks: list[Stack], options: list[str], binding: str, ranks: set[int]
) -> None:
    environment = {"VLLM_CPU_OMP_THREADS_BIND": binding}
    stack = Vllm(tmp_path, workers={"serve"}, environment=environment)
    stacks.append(stack)
    stack.start_receiver()
    stack.start_node("serve", stack.decode, options)
    stack.wait_for_node("serve", stack.decode)
    answers = Load(stack.decode, REQUESTS).run()
    assert unfinished(answers) == []

    deadline = time.monotonic() + 60
    spans = REQUESTS * len(STREAMED.splitlines())
    traces = stack.traces("vllm-serve")
    while sum(len(t["spans"]) for t in traces) < spans and time.monotonic() < deadline:
        time.sleep(2)
        traces = stack.traces("vllm-serve")
    assert [tree.shape(trace) for trace in traces] == [STREAMED] * REQUESTS
    ends = [tree.the(trace, "Decode") for trace in traces]
    ids = {tree.tag(end, "gen_ai.request.id") for end in ends}
    assert ids == {said.request_id for said in answers}
    assert {tree.tag(end, "omnitrace.engine.rank") for end in ends} == ranks
    assert stack.messages("serve") == []
