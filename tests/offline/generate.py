"""Logs as OmniInfer's tools write them, for measuring: any number of requests, the same
for the same seed.

    python tests/offline/generate.py OUT_DIRECTORY REQUESTS [--seed N] [--boot-clock]

29 files (one proxy, four prefill and four decode nodes), 30 % of the lines noise, about
10.5 kB for each request.
"""

from __future__ import annotations

import argparse
import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

BEGIN_US = 1_795_334_645_000_000
"""When the first request comes; microseconds since 1970."""

BOOT_US = BEGIN_US - 947_000_000
"""When the proxy's machine was started."""

GAP_US = 4_000
"""Average time from one request to the next."""

NODES = 4
"""Prefill nodes, and as many decode nodes."""

PROXY_BEFORE = (
    "Start to schedule",
    "Time received",
    "Enter state tokenization",
    "Enter state APC matching",
    "Enter state P waiting",
    "Enter state P scheduled",
    "Enter state P running",
)
PREFILL = (
    ("api", "PD api server get request"),
    ("api", "Get prefill engine request and start pickle"),
    ("api", "Finish process request in prefill engine"),
    ("engine", "Start process request in prefill engine"),
    ("engine", "Prefill add waiting queue"),
    ("engine", "try to schedule in waiting queue"),
    ("engine", "Prefill get new_blocks"),
    ("engine", "success add to seq groups"),
    ("engine", "Prefill start execute_model"),
    ("worker", "Prefill start execute main model"),
    ("worker", "Prefill done execute main model"),
    ("worker", "Prefill start execute mtp model"),
    ("worker", "Prefill done execute mtp model"),
    ("engine", "Prefill done execute_model"),
    ("engine", "Start to send output in prefill stage"),
    ("api", "Client get prefill output"),
    ("api", "Finish prefill pickle and start response"),
)
PROXY_BETWEEN = (
    "Finish P running",
    "Enter state D waiting",
    "Enter state D scheduled",
    "Enter state D running",
)
DECODE = (
    ("api", "Enter decode to generate"),
    ("engine", "Start to dispatch decode request"),
    ("engine", "try to schedule in waiting queue"),
    ("engine", "Add need pulling sequence"),
    ("rank0", "Start pull kv"),
    ("rank1", "Start pull kv"),
    ("rank0", "Finish pull kv"),
    ("engine", "Start append running sequece for decode"),
    ("engine", "Start to send output"),
    ("api", "First decode output token"),
    ("api", "Second decode output token"),
    ("api", "Third decode output token"),
    ("engine", "Decode done execute_model"),
    ("api", "Finish decode pickle and start response"),
)
FREED = (("engine", "Prefill free kv blocks"),)
PROXY_AFTER = (
    "Proxy got first token",
    "Proxy got second token",
    "Proxy got third token",
    "Received all tokens",
)

GLUED = {
    "Finish P running": " while sending to client",
    "Enter state D waiting": " while sending to client",
    "Enter state D running": " while connecting to upstream",
    "Proxy got first token": " while reading response header from upstream",
    "Proxy got second token": " while reading upstream",
    "Proxy got third token": " while reading upstream",
    "Received all tokens": " while sending to client",
}
"""What nginx was doing, which its log glues to the request id."""

SCHEDULER = ("Enter state P scheduled", "Enter state D scheduled")
"""Written by the scheduler's worker, which knows no connection."""

TRAILER = (
    ', client: 10.0.9.8, server: , request: "POST /v1/chat/completions HTTP/1.1", host: '
    '"10.0.0.1:7000"'
)

PROXY_NOISE = (
    "[Prefill-{slot}] Submit to:{node}",
    "[Decode-{slot}] Schedule to: {node} (load=0.{slot}, group=0)",
    'http upstream request: "/v1/chat/completions?"\0\0 finished, slot {slot}',
)
NODE_NOISE = (
    "INFO Avg prompt throughput: {slot}.5 tokens/s, Running: {node} reqs",
    "DEBUG scheduler pass {slot} took 0.{node} ms, 17 requests in waiting queue",
)


class Clock:
    """Local time as text, a second at a time: making it is slow."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._second = -1
        self._text = ""

    def text(self, micros: int) -> str:
        second = micros // 1_000_000
        if second != self._second:
            self._second = second
            self._text = time.strftime(self._form, time.localtime(second))
        return self._text


class Generator:
    """The lines of one request after the other, by file."""

    def __init__(self, seed: int, boot_clock: bool) -> None:
        self._random = random.Random(seed)
        self._boot_clock = boot_clock
        self._nginx = Clock("%Y/%m/%d %H:%M:%S")
        self._python = Clock("%Y-%m-%d %H:%M:%S")
        self._now = BEGIN_US

    def requests(self, count: int) -> Iterator[list[tuple[str, str]]]:
        for _ in range(count):
            yield self._request()

    def _request(self) -> list[tuple[str, str]]:
        draw = self._random.random
        self._now += int(2 * GAP_US * draw())
        at = self._now
        request_id = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        slot = self._random.randrange(100)
        prefill, decode = self._random.randrange(NODES), self._random.randrange(NODES)
        lines: list[tuple[str, str]] = []

        def proxy(actions: tuple[str, ...], longest_us: int) -> None:
            nonlocal at
            for action in actions:
                at += 20 + int(longest_us * draw())
                lines.append(("nginx_10.0.0.1.log", self._proxy(action, at, request_id, slot)))
                if draw() < NOISE:
                    text = PROXY_NOISE[slot % len(PROXY_NOISE)].format(slot=slot, node=prefill)
                    second = self._nginx.text(at)
                    lines.append(("nginx_10.0.0.1.log", f"{second} [info] 71#71: {text}\n"))

        def node(role: str, number: int, actions: tuple[tuple[str, str], ...], us: int) -> None:
            nonlocal at
            host = f"10.0.{1 if role == 'prefill' else 2}.{number + 1}"
            for process, action in actions:
                at += 20 + int(us * draw())
                file = f"logs_{host}/log_pid_{FILES[process]}_tid_1.log"
                stamp = f"{self._python.text(at)},{at // 1000 % 1000:03d}"
                lines.append(
                    (
                        file,
                        f"{stamp} - <<<Action: {action}; Timestamp:{at / 1e6}; "
                        f"RequestID:chatcmpl-{request_id}; Role:{role}_{host}\n",
                    )
                )
                if draw() < NOISE:
                    text = NODE_NOISE[slot % len(NODE_NOISE)].format(slot=slot, node=number)
                    lines.append((file, f"{stamp} - {text}\n"))

        proxy(PROXY_BEFORE, 400)
        node("prefill", prefill, PREFILL, 9_000)
        proxy(PROXY_BETWEEN, 300)
        node("decode", decode, DECODE, 12_000)
        node("prefill", prefill, FREED, 500)
        proxy(PROXY_AFTER, 20_000)
        return lines

    def _proxy(self, action: str, at: int, request_id: str, slot: int) -> str:
        stamp = at
        if self._boot_clock and action != "Start to schedule":
            stamp -= BOOT_US
        connection, trailer = f" *{slot}", GLUED.get(action, "") + TRAILER
        if action in SCHEDULER:
            connection, trailer = "", ""
        return (
            f"{self._nginx.text(at)} [info] 71#71:{connection} <<<Action: {action}; "
            f"Timestamp:{stamp // 1_000_000}.{stamp % 1_000_000:06d}; "
            f"RequestID:{request_id}{trailer}\n"
        )


NOISE = 0.43
"""Of the lines with an action this share is followed by another: 30 % of all."""

FILES = {"api": 100, "engine": 200, "worker": 300, "rank0": 400, "rank1": 500}
"""Process ids by kind."""


def write(folder: Path, requests: int, seed: int = 1, boot_clock: bool = False) -> int:
    """Writes the logs of so many requests below `folder`; the answer is their size in bytes."""
    pending: dict[str, list[str]] = {}
    generator = Generator(seed, boot_clock)
    total = 0

    def flush() -> None:
        nonlocal total
        for name, lines in pending.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8", newline="") as file:
                total += file.write("".join(lines))
        pending.clear()

    for number, lines in enumerate(generator.requests(requests)):
        for name, line in lines:
            pending.setdefault(name, []).append(line)
        if number % 5_000 == 4_999:
            flush()
    flush()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("requests", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--boot-clock", action="store_true", help="the proxy's stamps are seconds since boot"
    )
    options = parser.parse_args()
    total = write(options.folder, options.requests, options.seed, options.boot_clock)
    print(f"{options.requests} requests, {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
