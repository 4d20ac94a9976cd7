"""What a whole request looks like."""

from __future__ import annotations

import time
from typing import Any

import pytest

import tree
from stack import Stack

WHOLE_TREE = """\
Trace for Omni Proxy [omni-proxy SERVER]
  P running [omni-proxy CLIENT]
    Prefill [vllm-prefill SERVER]
      Add to running for prefill [vllm-prefill]
        Start process request in prefill engine [vllm-prefill]
        Prefill add waiting queue [vllm-prefill]
        try to schedule in waiting queue [vllm-prefill]
        Prefill get new_blocks [vllm-prefill]
        success add to seq groups [vllm-prefill]
      Prefill execute_model [vllm-prefill]
        Prefill start execute_model [vllm-prefill]
        Prefill done execute_model [vllm-prefill]
      Send output in prefill stage [vllm-prefill]
        Start to send output in prefill stage [vllm-prefill]
        Finish prefill pickle and start response [vllm-prefill]
  D running [omni-proxy CLIENT]
    Decode [vllm-decode SERVER]
      Add to need pulling for decode [vllm-decode]
        Start to dispatch decode request [vllm-decode]
        Add need pulling sequence [vllm-decode]
      Pull kv [vllm-decode]
        Start pull kv [vllm-decode]
        Finish pull kv [vllm-decode]
      Start append running sequece for decode [vllm-decode]
      Send output in decode stage [vllm-decode]
        Start to send output [vllm-decode]
        First decode output token [vllm-decode]"""

SPANS = len(WHOLE_TREE.splitlines())
"""Spans of a request as the live side makes them."""

OFFLINE_ONLY = "Prefill free kv"
"""From one node's clock to another's: only the converter sees both."""


def trace_of(
    stack: Stack, request_id: str, spans: int = SPANS, service: str = "omni-proxy"
) -> dict[str, Any]:
    """The trace of a request, once it is whole; `service` has a span in it."""
    deadline = time.monotonic() + 30
    found: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        found = [
            trace
            for trace in stack.traces(service)
            if any(tree.tag(s, "gen_ai.request.id") == request_id for s in trace["spans"])
        ]
        if len(found) == 1 and len(found[0]["spans"]) >= spans:
            return found[0]
        time.sleep(0.2)
    pytest.fail("no whole trace:\n" + "\n\n".join(map(tree.shape, found)))


def outside_parent(trace: dict[str, Any]) -> list[str]:
    """Spans that are not within their parent's time. Of a call's only the beginning is: a client
    does not wait for what its server does after the last byte."""
    spans = {span["spanID"]: span for span in trace["spans"]}
    wrong = []
    for span in trace["spans"]:
        parent = spans.get(tree.parent_of(span) or "")
        if parent is None:
            continue
        begin, end = span["startTime"], span["startTime"] + span["duration"]
        last = begin if parent["processID"] != span["processID"] else end
        if begin < parent["startTime"] or last > parent["startTime"] + parent["duration"]:
            wrong.append(span["operationName"])
    return wrong


def facts(trace: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """What live and converted spans must agree on, by span id."""
    return {
        span["spanID"]: (
            span["traceID"],
            span["operationName"],
            tree.parent_of(span),
            span["startTime"],
            span["duration"],
            tree.service(trace, span),
            sorted(
                (t["key"], str(t["value"])) for t in span["tags"] if "otel.scope" not in t["key"]
            ),
            [(log["timestamp"], log["fields"]) for log in span["logs"]],
        )
        for span in trace["spans"]
        if span["operationName"] != OFFLINE_ONLY
    }
