"""OMNITRACE_VLLM_NATIVE=1: vLLM's own span of a request goes the way of omnitrace's."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from test_versions import CLIENT, SERVED, STREAMED, post

import tree
from pair import SENTENCE, VERSION, Vllm
from stack import Stack

CHAT = {"messages": [{"role": "user", "content": SENTENCE}], "max_tokens": 8}
ASKED = {
    "native-streamed": ({**CHAT, "stream": True}, STREAMED),
    "native-whole": (CHAT, SERVED),
}
"""Body, and the tree without vLLM's own span."""


def traces_of(stack: Stack, spans: int) -> dict[str, dict[str, Any]]:
    """The traces of requests, once they have as many spans together."""
    traces: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + 60
    while sum(len(t["spans"]) for t in traces.values()) < spans and time.monotonic() < deadline:
        time.sleep(2)
        for trace in stack.traces("vllm-serve"):
            ids = {tree.tag(span, "gen_ai.request.id") for span in trace["spans"]} - {None}
            for request_id in {str(each).removeprefix("chatcmpl-") for each in ids}:
                traces[request_id] = trace
    return traces


@pytest.mark.parametrize("has_endpoint", [False, True], ids=["alone", "with-endpoint"])
def test_each_request_has_vllms_own_span_once_and_below_its_own(
    tmp_path: Path, stacks: list[Stack], has_endpoint: bool
) -> None:
    stack = Vllm(tmp_path, version=VERSION)
    stacks.append(stack)
    stack.start_receiver()
    # What another exporter sent would be there too.
    endpoint = ["--otlp-traces-endpoint", f"http://127.0.0.1:{stack.grpc}"]
    options = endpoint if has_endpoint else []
    stack.start_node("serve", stack.decode, options, {"OMNITRACE_VLLM_NATIVE": "1"})
    stack.wait_for_node("serve", stack.decode)
    for request_id, (body, _) in ASKED.items():
        headers = {"X-Request-Id": request_id}
        if request_id == "native-whole":
            headers["traceparent"] = f"00-{CLIENT}-00f067aa0ba902b7-01"
        assert post(stack.decode, "chat/completions", body, headers)

    spans = sum(len(shape.splitlines()) + 1 for _, shape in ASKED.values())
    traces = traces_of(stack, spans)
    assert set(traces) == set(ASKED)
    assert traces["native-whole"]["traceID"] == CLIENT
    for request_id, (_, shape) in ASKED.items():
        trace = traces[request_id]
        native, decode = tree.the(trace, "llm_request"), tree.the(trace, "Decode")
        assert tree.parent_of(native) == decode["spanID"]
        assert tree.service(trace, native) == "vllm-serve"
        assert tree.tag(native, "gen_ai.usage.completion_tokens") == 8
        trace["spans"].remove(native)
        assert tree.shape(trace) == shape
    # Also those of traces that are none of these requests', and of a service without a name.
    with urllib.request.urlopen(f"{stack.ui_url}/api/services", timeout=10) as response:
        assert json.load(response)["data"] == ["vllm-serve"]
    everywhere = [span for trace in stack.traces("vllm-serve") for span in trace["spans"]]
    assert [s["operationName"] for s in everywhere].count("llm_request") == len(ASKED)
    said = stack.messages("serve")
    assert len(said) == int(has_endpoint) and all("--otlp-traces-endpoint" in s for s in said)
