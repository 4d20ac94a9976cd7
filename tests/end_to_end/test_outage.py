"""A collector that goes away in the middle of the load loses nothing."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tree
from stack import Stack
from third_party import Collector
from whole import OFFLINE_ONLY, WHOLE_TREE, trace_of

REQUESTS = 60


def balance(books: dict[str, Any]) -> int:
    """created minus everything that became of it."""
    return int(
        books["created"]
        - books["exported"]
        - books["in_flight"]
        - books["logged"]
        - sum(books["dropped"].values())
    )


def nginx_books(stack: Stack) -> list[dict[str, int]]:
    """The line of books that each worker leaves at its end."""
    log = (stack.folder / "nginx" / "error.log").read_text()
    pattern = re.compile(
        r"omnitrace: created=(\d+) exported=(\d+) logged=(\d+) dropped=(\d+) in flight=(\d+)"
    )
    keys = ("created", "exported", "logged", "dropped", "in_flight")
    return [dict(zip(keys, map(int, found), strict=False)) for found in pattern.findall(log)]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_collector_that_dies_under_load_costs_no_request_and_no_span(
    folder: Path, stacks: list[Stack], collector: type[Collector], how: signal.Signals
) -> None:
    stack = Stack(folder)
    stacks.append(stack)
    between = collector(folder, f"http://127.0.0.1:{stack.http}")
    if how == signal.SIGKILL and not between.is_synchronous:
        pytest.skip("what this collector has taken dies with it")
    stack.endpoint = between.endpoint()
    stack.start_receiver()
    between.start()
    stack.start()

    def one(number: int) -> tuple[int, bool, str]:
        if number == REQUESTS // 3:
            between.stop(how)
        answer = stack.chat(f"request {number}", max_tokens=8)
        return answer.status, answer.done, answer.request_id

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(one, range(REQUESTS)))
    assert [answer[:2] for answer in answers] == [(200, True)] * REQUESTS

    # Spans wait for the collector a while; then they go to the log.
    deadline = time.monotonic() + 30
    while not any(stack.logs.glob("*.log")) and time.monotonic() < deadline:
        time.sleep(0.1)

    # Back again: what is made from now on goes live again.
    between.start()
    later = [stack.chat(f"late {number}").request_id for number in range(3)]
    for request_id in later:
        trace_of(stack, request_id)
    stack.stop_service()
    between.stop()

    books = stack.node_books()
    assert len(books) == 4
    assert [(balance(each), each["dropped"], each["in_flight"]) for each in books] == [
        (0, {}, 0)
    ] * 4
    proxies = nginx_books(stack)
    assert len(proxies) == 2
    for each in proxies:
        assert each["created"] == each["exported"] + each["logged"]
        assert (each["dropped"], each["in_flight"]) == (0, 0)
    assert sum(each["logged"] for each in [*books, *proxies]) > 0
    assert sum(each["exported"] for each in [*books, *proxies]) > 0

    stack.endpoint = f"http://127.0.0.1:{stack.http}"
    stack.replay()
    whole = 0
    for trace in stack.traces():
        if "P running" not in tree.shape(trace):
            continue  # the look whether the proxy is there
        trace["spans"] = [s for s in trace["spans"] if s["operationName"] != OFFLINE_ONLY]
        assert tree.shape(trace) == WHOLE_TREE
        whole += 1
    assert whole == REQUESTS + len(later)
    with urllib.request.urlopen(f"{stack.ui_url}/stats", timeout=10) as response:
        stats = json.load(response)
    assert stats["rejected"] == 0
    if how == signal.SIGTERM:
        # A killed one may have passed on a batch and died before it said so: then
        # that batch comes again, with the same ids.
        assert stats["duplicates"] == 0
