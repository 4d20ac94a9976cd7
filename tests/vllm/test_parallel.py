"""A node of several engines, API servers or workers, or of engines alone: a request is one trace
wherever it goes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from test_versions import STREAMED

import tree
from pair import Load, Vllm, unfinished
from stack import Stack

REQUESTS = 12


def ends_of(stack: Vllm) -> list[dict[str, Any]]:
    """Sends requests; the `Decode` spans of their traces, all of which are whole."""
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
    return ends


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
    assert {tree.tag(end, "omnitrace.engine.rank") for end in ends_of(stack)} == ranks
    assert stack.messages("serve") == []


def test_engines_whose_api_server_is_not_traced_make_whole_traces_too(
    tmp_path: Path, stacks: list[Stack]
) -> None:
    environment = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    stack = Vllm(tmp_path, workers={"api", "engines"}, environment=environment)
    stacks.append(stack)
    stack.start_receiver()
    both = ["--data-parallel-size", "1", "--data-parallel-address", "127.0.0.1"]
    both += ["--data-parallel-rpc-port", str(stack.prefill)]
    engines = ["--headless", "--data-parallel-size-local", "1"]
    stack.start_node("engines", stack.decode, [*both, *engines])
    untraced = {"OMNITRACE": "0"}
    stack.start_node("api", stack.decode, [*both, "--data-parallel-size-local", "0"], untraced)
    stack.wait_for_node("api", stack.decode)
    for end in ends_of(stack):
        assert tree.tag(end, "gen_ai.response.finish_reasons") == '["length"]'
        assert tree.tag(end, "gen_ai.usage.output_tokens") == 24
    assert stack.messages("engines") == []
