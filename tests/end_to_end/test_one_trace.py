"""One request is one trace: live, through a third-party collector, and converted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tree
from stack import Stack
from third_party import Collector
from whole import OFFLINE_ONLY, WHOLE_TREE, facts, outside_parent, trace_of


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc", "http/json"])
def test_a_request_is_one_trace_of_three_services_through_a_real_collector(
    folder: Path, stacks: list[Stack], collector: type[Collector], protocol: str
) -> None:
    stack = Stack(folder, protocol=protocol)
    stacks.append(stack)
    between = collector(folder, f"http://127.0.0.1:{stack.http}")
    stack.endpoint = between.endpoint(protocol)
    stack.start_receiver()
    between.start()
    stack.start()
    answer = stack.chat("where does the time go?", max_tokens=5)
    assert (answer.status, len(answer.tokens), answer.done) == (200, 5, True)

    trace = trace_of(stack, answer.request_id)
    assert tree.shape(trace) == WHOLE_TREE
    assert outside_parent(trace) == []

    names = {span["operationName"]: span for span in trace["spans"]}
    root, decode = names["Trace for Omni Proxy"], names["Decode"]
    assert tree.parent_of(root) is None
    first = next(
        log for log in root["logs"] if log["fields"][0]["value"] == "Proxy got first token"
    )
    ttft = tree.tag(root, "gen_ai.latency.time_to_first_token")
    assert abs(ttft * 1e6 - (first["timestamp"] - root["startTime"])) <= 1
    assert [log["fields"][0]["value"] for log in root["logs"]] == [
        "Proxy got first token",
        "Proxy got second token",
        "Proxy got third token",
    ]
    assert [log["fields"][0]["value"] for log in decode["logs"]] == [
        "First decode output token",
        "Second decode output token",
        "Third decode output token",
    ]
    assert tree.tag(root, "http.response.status_code") == 200
    assert tree.tag(root, "gen_ai.request.id") == answer.request_id


def test_a_clients_traceparent_and_request_id_are_kept(folder: Path, stacks: list[Stack]) -> None:
    stack = Stack(folder)
    stacks.append(stack)
    stack.start_receiver()
    stack.start()
    odd = 'ID with "quotes" & blanks; {x}'
    headers = {
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "X-Request-Id": odd,
    }
    assert stack.chat("hello", headers=headers).status == 200
    trace = trace_of(stack, odd)
    assert tree.shape(trace) == WHOLE_TREE
    root = next(s for s in trace["spans"] if s["operationName"] == "Trace for Omni Proxy")
    assert (trace["traceID"], tree.parent_of(root)) == (
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "00f067aa0ba902b7",
    )

    # A malformed one is as good as none: the trace is the request's own.
    headers = {"traceparent": "00-zz-00f067aa0ba902b7-01", "X-Request-Id": "second"}
    assert stack.chat("hello", headers=headers).status == 200
    trace = trace_of(stack, "second")
    assert tree.shape(trace) == WHOLE_TREE
    assert trace["traceID"] != "4bf92f3577b34da6a3ce929d0e0e4736"


def test_the_log_of_a_request_converts_to_the_spans_that_were_exported(
    folder: Path, stacks: list[Stack]
) -> None:
    stack = Stack(folder, legacy_log="always")
    stacks.append(stack)
    stack.start_receiver()
    stack.start()
    ids = ["plain-1", 'odd; "2"\tx', "3", "4"]
    for number, request_id in enumerate(ids):
        headers = {"X-Request-Id": request_id.replace("\t", " ")}
        if number == 2:
            headers["traceparent"] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        assert stack.chat(f"request {number}", headers=headers).status == 200
    live = [trace_of(stack, request_id.replace("\t", " ")) for request_id in ids]
    stack.stop_service()

    output = folder / "trace.json"
    stack.convert(output)
    document = json.loads(output.read_text())["data"]
    titles = [tree.walk(trace)[0][1]["operationName"] for trace in document[:4]]
    assert titles == [
        "Request TP99 Percentile Trace",
        "Request TP95 Percentile Trace",
        "Request TP90 Percentile Trace",
        "Request Average Trace",
    ]
    converted = {trace["traceID"]: trace for trace in document}
    for trace in live:
        offline, online = facts(converted[trace["traceID"]]), facts(trace)
        assert offline.keys() == online.keys()
        for span_id, expected in online.items():
            assert offline[span_id] == expected
        extra = [
            s for s in converted[trace["traceID"]]["spans"] if s["operationName"] == OFFLINE_ONLY
        ]
        assert len(extra) == 1

    # Everything has been exported: a replay has only what the live side cannot make.
    said = stack.replay()
    assert f"{len(ids)} spans sent" in said, said
