"""Requests that are neither chats nor completions: other paths of vLLM's server, which may
need the engine several times, and programs that use the engine by themselves."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_versions import ALIKE, CLIENT, SERVED, STREAMED, post

import tree
from pair import SENTENCE, VERSION, Vllm
from stack import Stack

MESSAGES = [{"role": "user", "content": SENTENCE}]
TEXT = {"input": SENTENCE, "max_output_tokens": 8}
ASKED: dict[str, tuple[str, dict[str, Any], str, int]] = {
    # The first token of what is not a chat or completion is known, streamed or not.
    "responses-whole": ("responses", TEXT, STREAMED, 8),
    "responses-streamed": ("responses", {**TEXT, "stream": True}, STREAMED, 8),
    "messages": ("messages", {"messages": MESSAGES, "max_tokens": 8}, SERVED, 8),
    "batch": (
        "chat/completions/batch",
        {"messages": [MESSAGES] * 2, "max_tokens": 8},
        STREAMED,
        16,
    ),
    # Each step of each beam is a request to the engine.
    "beams": (
        "chat/completions",
        {"messages": MESSAGES, "max_tokens": 3, "use_beam_search": True, "n": 2},
        SERVED,
        5,
    ),
}
"""Path, body, tree, and how many tokens the engine has made."""


def trace_id(number: int) -> str:
    return f"{number:032x}"


def traces_of(stack: Stack, count: int) -> dict[str, dict[str, Any]]:
    """The traces by their ids, once that many have an end and no more spans come."""
    deadline = time.monotonic() + 60
    spans = 0
    while True:
        traces = {trace["traceID"]: trace for trace in stack.traces("vllm-serve")}
        names = [[span["operationName"] for span in trace["spans"]] for trace in traces.values()]
        ended = sum("Decode" in each for each in names)
        before, spans = spans, sum(map(len, names))
        if (ended >= count and spans == before) or time.monotonic() > deadline:
            return traces
        time.sleep(2)


def decode(trace: dict[str, Any]) -> dict[str, Any]:
    return tree.the(trace, "Decode")


@contextmanager
def streamed(
    port: int, path: str, body: dict[str, Any], headers: dict[str, str]
) -> Iterator[http.client.HTTPResponse]:
    """An answer of which the first line is read: the engine is at work on it. Who does not
    read the rest has gone."""
    asked = json.dumps({**ALIKE, "stream": True, **body})
    headers = {"Content-Type": "application/json", **headers}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", f"/v1/{path}", asked, headers)
        answer = connection.getresponse()
        assert answer.readline()
        yield answer


@pytest.fixture
def stack(tmp_path: Path, stacks: list[Stack]) -> Vllm:
    stack = Vllm(tmp_path, version=VERSION)
    stacks.append(stack)
    stack.start_receiver()
    return stack


def test_every_path_of_the_server_makes_one_trace_of_a_request(stack: Vllm) -> None:
    stack.start_node("serve", stack.decode, [])
    stack.wait_for_node("serve", stack.decode)
    for number, (name, (path, body, _, _)) in enumerate(ASKED.items(), 1):
        caller = f"00-{trace_id(number)}-00f067aa0ba902b7-01"
        assert post(stack.decode, path, body, {"X-Request-Id": name, "traceparent": caller})
    long = {**TEXT, "max_output_tokens": 500}
    with streamed(stack.decode, "responses", long, {"X-Request-Id": "left"}):
        pass

    traces = traces_of(stack, len(ASKED) + 1)
    for number, (name, (path, _, shape, tokens)) in enumerate(ASKED.items(), 1):
        trace = traces.pop(trace_id(number))
        assert (name, tree.shape(trace)) == (name, shape)
        span = decode(trace)
        assert tree.tag(span, "gen_ai.request.id") == name
        assert tree.tag(span, "gen_ai.operation.name") == "chat"
        assert tree.tag(span, "gen_ai.request.model") == "standin"
        assert tree.tag(span, "gen_ai.usage.output_tokens") == tokens
        by_its_hooks = name in ("messages", "beams")
        assert tree.tag(span, "url.path") == (None if by_its_hooks else f"/v1/{path}")
    # Nothing of any of them is anywhere else.
    (left,) = traces.values()
    assert tree.tag(decode(left), "gen_ai.request.id") == "left"
    assert tree.tag(decode(left), "omnitrace.aborted") is True
    assert tree.tag(decode(left), "gen_ai.response.finish_reasons") == '["abort"]'
    assert stack.messages("serve") == []


def test_a_client_that_tries_again_too_soon_has_two_requests(stack: Vllm) -> None:
    stack.start_node("serve", stack.decode, [])
    stack.wait_for_node("serve", stack.decode)

    def chat(number: int, tokens: int) -> AbstractContextManager[http.client.HTTPResponse]:
        caller = f"00-{trace_id(number)}-00f067aa0ba902b7-01"
        body = {"messages": MESSAGES, "max_tokens": tokens}
        headers = {"X-Request-Id": "again", "traceparent": caller}
        return streamed(stack.decode, "chat/completions", body, headers)

    with chat(1, 500) as first:
        with chat(2, 8) as second:
            assert second.read()
        assert first.read()

    traces = traces_of(stack, 2)
    assert [tree.shape(traces[trace_id(number)]) for number in (1, 2)] == [STREAMED] * 2
    spans = [decode(traces[trace_id(number)]) for number in (1, 2)]
    assert [tree.tag(span, "gen_ai.usage.output_tokens") for span in spans] == [500, 8]
    one, two = [str(tree.tag(span, "gen_ai.request.id")) for span in spans]
    assert one == "again" and re.fullmatch("again-[0-9a-f]{16}", two)
    assert stack.messages("serve") == []


def test_texts_to_be_embedded_are_one_request(stack: Vllm) -> None:
    stack.start_node("serve", stack.decode, ["--runner", "pooling"])
    stack.wait_for_node("serve", stack.decode)
    caller = f"00-{trace_id(1)}-00f067aa0ba902b7-01"
    headers = {"X-Request-Id": "two", "traceparent": caller}
    assert post(stack.decode, "embeddings", {"input": [SENTENCE, SENTENCE]}, headers)

    (trace,) = traces_of(stack, 1).values()
    assert trace["traceID"] == trace_id(1)
    assert tree.shape(trace) == SERVED
    span = decode(trace)
    assert tree.tag(span, "gen_ai.operation.name") == "embeddings"
    assert tree.tag(span, "gen_ai.request.id") == "two"
    assert tree.tag(span, "gen_ai.usage.input_tokens") > 2 * len(SENTENCE.split())
    assert stack.messages("serve") == []


@pytest.mark.parametrize("in_process", [False, True], ids=["engine-beside-it", "engine-in-it"])
def test_a_program_without_a_server_has_its_requests_traced(stack: Vllm, in_process: bool) -> None:
    status = stack.run(Path(__file__).parent / "programs" / "offline.py", in_process=in_process)
    assert status == 0, stack.parts["program"].tail()

    traces = traces_of(stack, 4)
    assert [tree.shape(trace) for trace in traces.values()] == [STREAMED] * 4
    assert tree.tag(decode(traces[CLIENT]), "gen_ai.request.id") == "left"
    ends = [decode(trace) for trace in traces.values()]
    said = {
        str(tree.tag(span, "gen_ai.request.id")).partition("-")[0]: (
            tree.tag(span, "gen_ai.response.finish_reasons"),
            tree.tag(span, "omnitrace.aborted"),
        )
        for span in ends
    }
    counted = dict.fromkeys("012", ('["length"]', None))
    assert said == {**counted, "left": ('["abort"]', True)}
    assert stack.messages("program") == []
