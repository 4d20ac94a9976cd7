"""A Rust service in front of the proxy is part of the same trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import tree
from ports import free_ports
from stack import TARGET, Stack
from third_party import Collector
from whole import SPANS, WHOLE_TREE, outside_parent, trace_of

SERVICE = TARGET / "release" / "retrieval"

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

ABOVE = """\
POST /v1/chat/completions [retrieval SERVER]
  documents_for [retrieval]
  write prompt [retrieval]
  POST [retrieval CLIENT]
"""
"""What the service adds above the proxy's tree."""


@contextmanager
def service(folder: Path, endpoint: str, upstream: str) -> Iterator[str]:
    """The base URL of the running service, which is ended in good order."""
    (port,) = free_ports(1)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "OMNITRACE_"))}
    environment = {
        "OTEL_SERVICE_NAME": "retrieval",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "TRACE_OUTPUT_DIRECTORY": str(folder / "logs"),
    }
    arguments = [str(SERVICE), "--listen", f"127.0.0.1:{port}", "--upstream", upstream]
    with (folder / "retrieval.out").open("ab") as output:
        process = subprocess.Popen(
            arguments, stdout=output, stderr=output, env={**clean, **environment}
        )
    base = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{base}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
        yield base
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def ask(base: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(
        f"{base}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **(headers or {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def chat(question: str) -> dict[str, Any]:
    return {
        "model": "standin",
        "stream": True,
        "max_tokens": 5,
        "messages": [{"role": "user", "content": question}],
    }


def tokens(body: bytes) -> list[str]:
    """The tokens of a streamed answer that is whole."""
    *events, done = [line for line in body.decode().split("\n\n") if line]
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    found = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    return [token for token in found if token]


def spans_of(trace: dict[str, Any]) -> dict[str, Any]:
    return {
        span["operationName"]: span
        for span in trace["spans"]
        if tree.service(trace, span) == "retrieval"
    }


def test_a_client_an_axum_service_nginx_and_vllm_are_one_trace_through_a_real_collector(
    folder: Path, stacks: list[Stack], collector: type[Collector]
) -> None:
    stack = Stack(folder)
    stacks.append(stack)
    between = collector(folder, f"http://127.0.0.1:{stack.http}")
    stack.endpoint = between.endpoint()
    stack.start_receiver()
    between.start()
    stack.start()
    headers = {"traceparent": CALLER, "tracestate": "vendor=abc", "X-Request-Id": "from-rust"}
    with service(folder, stack.endpoint, f"http://127.0.0.1:{stack.proxy}") as base:
        status, body = ask(base, chat("What is prefill, what decode?"), headers)
    assert (status, len(tokens(body))) == (200, 5)

    below = WHOLE_TREE.replace("\n", "\n    ")
    trace = trace_of(stack, "from-rust", SPANS + len(ABOVE.splitlines()), "retrieval")
    assert tree.shape(trace) == f"{ABOVE}    {below}"
    assert outside_parent(trace) == []
    spans = spans_of(trace)
    root = spans["POST /v1/chat/completions"]
    assert (trace["traceID"], tree.parent_of(root)) == (CALLER[3:35], CALLER[36:52])
    assert tree.tag(root, "http.response.status_code") == 200
    assert tree.tag(root, "http.route") == "/v1/chat/completions"
    assert [log["fields"][0]["value"] for log in root["logs"]] == ["the answer begins"]
    assert tree.tag(spans["documents_for"], "documents") == 2
    assert tree.tag(spans["POST"], "server.port") == stack.proxy
    assert {tree.tag(span, "error") for span in spans.values()} == {None}


@pytest.mark.parametrize("headers", [{}, {"traceparent": "00-zz-00f067aa0ba902b7-01"}])
def test_what_fails_in_the_service_is_seen_in_its_trace(
    folder: Path, stacks: list[Stack], headers: dict[str, str]
) -> None:
    stack = Stack(folder)
    stacks.append(stack)
    stack.start_receiver()
    (nobody,) = free_ports(1)
    with service(folder, stack.endpoint, f"http://127.0.0.1:{nobody}") as base:
        status, body = ask(base, chat("Where does the time go?"), headers)
        assert (status, b"cannot be reached" in body) == (502, True)
        assert ask(base, {"model": "standin"})[0] == 400
    # It has ended, so all of it has been delivered.
    traces = {tree.shape(trace): trace for trace in stack.traces("retrieval")}
    assert sorted(traces) == ["POST /v1/chat/completions [retrieval SERVER]", ABOVE.rstrip()]
    spans = spans_of(traces[ABOVE.rstrip()])
    root, call = spans["POST /v1/chat/completions"], spans["POST"]
    assert (tree.tag(root, "error"), tree.tag(call, "error")) == (True, True)
    assert tree.tag(root, "http.response.status_code") == 502
    assert tree.tag(call, "http.response.status_code") is None
    (event,) = root["logs"]
    fields = {field["key"]: field["value"] for field in event["fields"]}
    assert fields["event"] == "exception"
    assert fields["exception.message"].startswith("the service that answers cannot be reached")
    refused = spans_of(traces["POST /v1/chat/completions [retrieval SERVER]"])
    (root,) = refused.values()
    assert (tree.tag(root, "error"), tree.tag(root, "http.response.status_code")) == (None, 400)
