"""The same plugin in other versions of vLLM: those that prepare.py has installed."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import tree
import versions_table
from pair import SENTENCE, Vllm
from stack import Stack

VERSIONS = versions_table.installed()

SERVED = """\
Decode [vllm-serve SERVER]
  Add to need pulling for decode [vllm-serve]
    Start to dispatch decode request [vllm-serve]
  Send output in decode stage [vllm-serve]
    Start to send output [vllm-serve]"""
"""A node that prefills and decodes."""
STREAMED = SERVED + "\n    First decode output token [vllm-serve]"

CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736"
"""The trace of a client that has one."""


ALIKE = {"model": "standin", "temperature": 0, "ignore_eos": True}
"""What makes two answers the same, and as long as they may be."""


def post(port: int, path: str, body: dict[str, Any], headers: dict[str, str]) -> bytes:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/{path}",
        json.dumps({**ALIKE, **body}).encode(),
        {"Content-Type": "application/json", **headers},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer: bytes = response.read()
    return answer


@pytest.mark.parametrize("version", VERSIONS)
def test_chats_and_completions_are_traced_and_no_built_in_hook_is_missing(
    tmp_path: Path, stacks: list[Stack], version: str
) -> None:
    stack = Vllm(tmp_path, version=version)
    stacks.append(stack)
    stack.start_receiver()
    stack.start_node("serve", stack.decode, [])
    stack.wait_for_node("serve", stack.decode)
    chat = {"messages": [{"role": "user", "content": SENTENCE}], "max_tokens": 8}
    prompt = {"prompt": SENTENCE, "max_tokens": 8}
    asked = {
        "chat-streamed": ("chat/completions", {**chat, "stream": True}, STREAMED),
        "chat-whole": ("chat/completions", chat, SERVED),
        "prompt-streamed": ("completions", {**prompt, "stream": True}, STREAMED),
        "prompt-whole": ("completions", prompt, SERVED),
    }
    for request_id, (path, body, _) in asked.items():
        headers = {"X-Request-Id": request_id}
        if request_id == "prompt-whole":
            headers["traceparent"] = f"00-{CLIENT}-00f067aa0ba902b7-01"
        assert post(stack.decode, path, body, headers)

    traces: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + 60
    spans = sum(len(shape.splitlines()) for _, _, shape in asked.values())
    while sum(len(t["spans"]) for t in traces.values()) < spans and time.monotonic() < deadline:
        time.sleep(2)
        for trace in stack.traces("vllm-serve"):
            (request_id,) = {tree.tag(s, "gen_ai.request.id") for s in trace["spans"]} - {None}
            traces[request_id] = trace
    found = {request_id: tree.shape(trace) for request_id, trace in traces.items()}
    assert found == {request_id: shape for request_id, (_, _, shape) in asked.items()}
    assert traces["prompt-whole"]["traceID"] == CLIENT
    for trace in traces.values():
        decode = tree.the(trace, "Decode")
        assert tree.events(decode)[:2] == [
            "Decode request tokenized",
            "Decode request sent to engine",
        ]
        assert tree.tag(decode, "gen_ai.usage.output_tokens") == 8
        assert tree.tag(decode, "gen_ai.response.finish_reasons") == '["length"]'
    assert stack.messages("serve") == []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_documented_table_of_hooks_is_what_there_is(version: str) -> None:
    found, _ = versions_table.find(version)
    # Otherwise: python tests/vllm/versions_table.py
    assert versions_table.documented()[version] == found
