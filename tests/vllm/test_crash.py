"""A process of vLLM dies in the middle of an answer: vLLM does what it does without us."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_versions import STREAMED

import tree
from pair import SENTENCE, Load, Vllm, unfinished
from stack import Stack

BEFORE = 3


@dataclass
class Outcome:
    """What the client and whoever started vLLM see of it."""

    status: int
    error: str
    is_whole: bool


@pytest.mark.parametrize(
    ("victim", "workers"), [("VLLM::EngineCore", set()), ("VLLM::Worker", {"serve"})]
)
def test_vllm_ends_as_without_us_and_what_survives_is_accounted_for(
    tmp_path: Path, stacks: list[Stack], victim: str, workers: set[str]
) -> None:
    outcomes = {}
    for traced in (False, True):
        stack = Vllm(tmp_path / str(traced), traced=traced, workers=workers)
        stacks.append(stack)
        stack.start_receiver()
        stack.start_node("serve", stack.decode, [])
        stack.wait_for_node("serve", stack.decode)
        api = stack.parts["serve"].process.pid
        answers = Load(stack.decode, BEFORE, at_once=1).run()
        assert unfinished(answers) == []
        if traced:
            finished(stack, BEFORE)
        outcomes[traced] = crash(stack, victim)
        if not traced:
            stack.close()
    assert outcomes[True] == outcomes[False]
    assert not outcomes[True].is_whole

    traces = finished(stack, BEFORE + 1)
    shapes = {tree.tag(decode(trace), "gen_ai.request.id"): tree.shape(trace) for trace in traces}
    assert [shapes.pop(said.request_id) for said in answers] == [STREAMED] * BEFORE
    (cut,) = [t for t in traces if tree.tag(decode(t), "gen_ai.request.id") in shapes]
    assert tree.tag(decode(cut), "error.type") is not None, cut
    # The one that was killed has had no last word.
    books = stack.collector.books()
    assert books[api].created > 0
    assert all(each.balance == 0 for each in books.values())


def crash(stack: Vllm, victim: str) -> Outcome:
    """Kills a process of a node in the middle of an answer."""
    part = stack.parts["serve"]
    connection = http.client.HTTPConnection("127.0.0.1", stack.decode, timeout=120)
    body = {
        "model": "standin",
        "messages": [{"role": "user", "content": SENTENCE}],
        "max_tokens": 900,
        "ignore_eos": True,
        "stream": True,
    }
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    error, is_whole, chunks = "", False, 0
    try:
        for raw in response:
            line = raw.decode().strip()
            chunks += line.startswith("data: ")
            if chunks == 4 and line:
                os.kill(stack.processes("serve")[victim], signal.SIGKILL)
            if line.startswith("data: {") and "error" in (event := json.loads(line[6:])):
                error = str(event["error"].get("type"))
            is_whole |= '"finish_reason":"length"' in line
    except (http.client.HTTPException, OSError) as reason:
        error = type(reason).__name__
    finally:
        connection.close()
    return Outcome(part.process.wait(120), error, is_whole)


def decode(trace: dict[str, Any]) -> dict[str, Any]:
    return tree.the(trace, "Decode")


def finished(stack: Vllm, requests: int) -> list[dict[str, Any]]:
    """The traces, once as many requests are in them."""
    deadline = time.monotonic() + 60
    found: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        traces = stack.traces("vllm-serve")
        found = [t for t in traces if any(s["operationName"] == "Decode" for s in t["spans"])]
        whole = [t for t in found if tree.shape(t) == STREAMED]
        if len(found) == requests and len(whole) >= BEFORE:
            return found
        time.sleep(0.5)
    pytest.fail("\n".join(map(tree.shape, found)))
