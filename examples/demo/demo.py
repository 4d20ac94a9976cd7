"""`make demo`: one request traced end to end, an outage, and what is left of it.

Leaves in target/demo: live.json, logs/, trace.json, tree.txt, jaeger.png.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tree
from stack import TARGET, Answer, Stack, StackError

LIVE_REQUESTS = 50
OUTAGE_REQUESTS = 20
CONCURRENCY = 8
SETTLE_TIMEOUT = 30.0


class DemoError(Exception):
    """Something is not as the demo promises."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def load(stack: Stack, count: int) -> list[str]:
    """Sends `count` streaming requests; returns their ids."""

    def one(number: int) -> Answer:
        return stack.chat(f"request {number}: " + "where does the time go? " * 40)

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        answers = list(pool.map(one, range(count)))
    for answer in answers:
        if answer.status != 200 or not answer.done or not answer.tokens:
            raise DemoError(f"a request failed: status {answer.status} {answer.body[:200]}")
    return [answer.request_id for answer in answers]


def is_whole(trace: dict[str, Any]) -> bool:
    """Whether a trace has one root and all three services' main spans."""
    names = {span["operationName"] for span in trace["spans"]}
    return {"Trace for Omni Proxy", "P running", "Prefill", "D running", "Decode"} <= names


def requests_of(traces: list[dict[str, Any]]) -> Counter[str]:
    """How many whole traces there are of each request."""
    return Counter(
        str(tree.tag(trace["spans"][0], "gen_ai.request.id")) for trace in traces if is_whole(trace)
    )


def wait_for_traces(stack: Stack, ids: list[str]) -> list[dict[str, Any]]:
    """The traces of these requests, once the receiver has all of them."""
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while True:
        traces = stack.traces()
        missing = set(ids) - set(requests_of(traces))
        if not missing:
            wanted = set(ids)
            return [t for t in traces if wanted & set(requests_of([t]))]
        if time.monotonic() > deadline:
            raise DemoError(f"the receiver lacks {len(missing)} of {len(ids)} requests")
        time.sleep(0.2)


def wait_for_logs(stack: Stack, ids: list[str], output: Path) -> str:
    """Converts the logs once all of these requests are in them."""
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while True:
        try:
            said = stack.convert(output)
            missing = set(ids) - set(requests_of(json.loads(output.read_text())["data"]))
        except StackError as error:
            said, missing = str(error), set(ids)
        if not missing:
            return said
        if time.monotonic() > deadline:
            raise DemoError(f"the logs lack {len(missing)} of {len(ids)} requests: {said}")
        time.sleep(0.5)


def picture(url: str, output: Path) -> bool:
    """Takes a picture of a page; False where there is no browser."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return False
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                f"--user-data-dir={profile}",
                "--hide-scrollbars",
                "--virtual-time-budget=15000",
                "--window-size=1600,1150",
                f"--screenshot={output}",
                url,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
    return output.exists()


def show_books(stack: Stack) -> None:
    """Prints the books of the node processes; they must balance."""
    for books in stack.node_books():
        stats = books.get("stats", books)
        dropped = sum(stats["dropped"].values())
        accounted = stats["exported"] + stats["in_flight"] + stats["logged"] + dropped
        say(
            f"  created {stats['created']:5} = exported {stats['exported']:5}"
            f" + in flight {stats['in_flight']} + logged {stats['logged']:4} + dropped {dropped}"
        )
        if stats["created"] != accounted or dropped:
            raise DemoError("the books do not balance")
    log = (stack.folder / "nginx" / "error.log").read_text(errors="replace")
    for line in log.splitlines():
        if "omnitrace: created=" in line:
            say("  nginx: " + line.split("omnitrace: ")[1])


def run(stack: Stack, keep: bool) -> None:
    folder = stack.folder
    say("starting omnitrace serve, a prefill node, a decode node and nginx")
    stack.start_receiver()
    stack.start()

    say(f"sending {LIVE_REQUESTS} streaming chat requests, {CONCURRENCY} at a time")
    live_ids = load(stack, LIVE_REQUESTS)
    live = wait_for_traces(stack, live_ids)
    (folder / "live.json").write_text(json.dumps({"data": live}))
    shown = next(t for t in live if live_ids[-1] in requests_of([t]))
    text = tree.with_times(shown)
    (folder / "tree.txt").write_text(text + "\n")
    say(f"\n{text}\n")
    page = f"{stack.ui_url}/trace/{shown['traceID']}"
    say(f"the same in the Jaeger UI: {page}")
    if picture(page, folder / "jaeger.png"):
        say(f"a picture of it: {folder / 'jaeger.png'}")

    say(f"\nstopping the receiver and sending {OUTAGE_REQUESTS} more requests")
    stack.stop("receiver")
    outage_ids = load(stack, OUTAGE_REQUESTS)
    said = wait_for_logs(stack, outage_ids, folder / "trace.json")
    lines = sum(
        line.count(b"<<<Action: ")
        for each in stack.logs.glob("*.log")
        for line in each.read_bytes().splitlines()
    )
    say(f"no request failed; the legacy logs hold {lines} lines in {stack.logs}")
    say(f"  {said.strip()}")

    say("\nstarting the receiver again and replaying the logs into it")
    stack.start_receiver()
    say(f"  {stack.replay().strip()}")
    replayed = wait_for_traces(stack, outage_ids)
    again = requests_of(replayed)
    twice = [each for each in outage_ids if again[each] != 1]
    if twice:
        raise DemoError(f"requests that are not there exactly once: {twice}")
    say(f"  all {OUTAGE_REQUESTS} requests are in the Jaeger UI, each once")

    if keep:
        # The new receiver does not know what the stopped one had in memory.
        say(f"\nthe Jaeger UI: {stack.ui_url}/trace/{replayed[-1]['traceID']}")
        say(f"the proxy: http://127.0.0.1:{stack.proxy}/v1/chat/completions")
        say("running until Ctrl-C")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    stack.stop_service()
    say("\nthe books of each process:")
    show_books(stack)
    stack.stop("receiver")
    say(f"\ndone; everything is in {folder}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="run until Ctrl-C")
    keep = parser.parse_args().keep
    folder = TARGET / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Whoever ends us ends what we have started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Stack(folder) as stack:
        try:
            run(stack, keep)
        except (DemoError, StackError, OSError, KeyboardInterrupt) as error:
            sys.stderr.write(f"demo: {error or type(error).__name__}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
