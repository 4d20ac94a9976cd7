"""A real vLLM pair, prefill and decode, behind nginx with our module."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from observed import ObservedCollector
from ports import free_ports
from stack import TARGET, Part, Stack, StackError

ROOT = TARGET / "vllm"
START_TIMEOUT = 400.0
VERSION = "0.32.0"

COMMON = [
    "--host",
    "127.0.0.1",
    "--dtype",
    "bfloat16",
    "--max-model-len",
    "1024",
    "--max-num-seqs",
    "16",
    "--enforce-eager",
    "--block-size",
    "32",
    "--no-enable-prefix-caching",
]

SENTENCE = "where does the time of a request go from the first byte to the last token "


class Vllm(Stack):
    """The nodes are vLLM's own; the rest is as in the demonstration.

    traced: whether the plugin is asked for.
    workers: names of the nodes whose model runs in a worker beside the engine; in the others
        it runs in the engine's own process, as on one GPU. Engine and worker wait for each other
        by yielding the processor without end. Linux 6.18 counts each time against them, so that
        on two cores two such nodes stand still for half a minute at a time, with or without us.
    decode_options: more of the decode node's command line.
    environment: more of both nodes' environment.
    collector: URL of a receiver in place of the real Collector and what keeps the traces.
    """

    def __init__(
        self,
        folder: Path,
        *,
        version: str = VERSION,
        traced: bool = True,
        workers: Container[str] = (),
        decode_options: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        collector: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(folder, collector=collector, **options)
        self.version = version
        self.traced = traced
        self.workers = workers
        self.decode_options = decode_options
        self.environment = dict(environment or {})
        self.side_channels = free_ports(2)
        self.collector = ObservedCollector(folder, f"http://127.0.0.1:{self.http}")
        if collector is None:
            self.endpoint = self.collector.endpoint()

    def start_receiver(self) -> None:
        """Starts what keeps the traces, and a real Collector before it."""
        super().start_receiver()
        self.collector.start()

    def start_nodes(self) -> None:
        """Starts both nodes at once: each takes a minute or more."""
        for number, role in enumerate(("prefill", "decode")):
            transfer = {
                "kv_connector": "NixlConnector",
                "kv_role": {"prefill": "kv_producer", "decode": "kv_consumer"}[role],
                "kv_buffer_device": "cpu",
            }
            more = ["--kv-transfer-config", json.dumps(transfer)]
            more += self.decode_options if role == "decode" else ()
            nixl = {
                "UCX_TLS": "tcp,self,sm",
                "UCX_NET_DEVICES": "lo",
                "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
                "VLLM_NIXL_SIDE_CHANNEL_PORT": str(self.side_channels[number]),
            }
            self.start_node(role, getattr(self, role), more, nixl, core=number)
        for role in ("prefill", "decode"):
            self.wait_for_node(role, getattr(self, role))

    def start_node(
        self,
        name: str,
        port: int,
        options: list[str],
        environment: Mapping[str, str] | None = None,
        core: int = 0,
    ) -> None:
        """Starts one `vllm serve`; `core` is where it computes."""
        binaries = ROOT / self.version / "bin"
        program = [str(binaries / "vllm"), "serve", str(ROOT / "model"), "--port", str(port)]
        variables = {**self.variables(core, name in self.workers), **(environment or {})}
        self._start(
            name, [*program, *COMMON, "--served-model-name", "standin", *options], variables
        )

    def run(self, program: Path, *, in_process: bool) -> int:
        """Runs a program that uses vLLM by itself: its exit status."""
        python = ROOT / self.version / "bin" / "python"
        command = [str(python), str(program), str(ROOT / "model")]
        self._start("program", command, self.variables(core=0, has_worker=not in_process))
        return self.parts["program"].process.wait(START_TIMEOUT)

    def variables(self, core: int, has_worker: bool) -> dict[str, str]:
        """A process of vLLM's environment; `core` is where it computes."""
        binaries = ROOT / self.version / "bin"
        return {
            **{k: v for k, v in self._environment().items() if k != "PYTHONPATH"},
            # Two cores have a lot to do.
            "OTEL_BSP_EXPORT_TIMEOUT": "30000",
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_METRIC_EXPORT_INTERVAL": "2000",
            "OMNITRACE": "1" if self.traced else "0",
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": str(core),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if has_worker else "0",
            "OMP_NUM_THREADS": "1",
            **self.environment,
        }

    def wait_for_node(self, name: str, port: int) -> None:
        """Until it answers."""
        part: Part = self.parts[name]
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if part.process.poll() is not None:
                raise StackError(f"{name} ended at once:\n{part.tail()}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.5)
        raise StackError(f"{name} does not answer:\n{part.tail()}")

    def close(self) -> None:
        """Ends everything; a worker may outlive those who started it."""
        groups = [part.process.pid for part in self.parts.values()]
        super().close()
        self.collector.stop()
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def processes(self, name: str) -> dict[str, int]:
        """A node's processes by vLLM's names for them."""
        group = self.parts[name].process.pid
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                pid = int(folder.name)
                if os.getpgid(pid) == group:
                    title = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
                    found[title if title.startswith("VLLM::") else "API"] = pid
        return found

    def messages(self, name: str) -> list[str]:
        """What omnitrace has said in a node's log, and what has gone wrong with it."""
        lines = self.parts[name].log.read_text(errors="replace").splitlines()
        return [line for line in lines if "omnitrace" in line and "/omnitrace/" not in line]


@dataclass
class Said:
    """What a client got of one request."""

    number: int
    request_id: str = ""
    text: str = ""
    chunks: int = 0
    """With choices: the first has the role, the others tokens."""
    is_whole: bool = False
    was_left: bool = False
    error: str = ""


def unfinished(answers: Iterable[Said]) -> list[Said]:
    """Those without an end whose clients have waited for it."""
    return [said for said in answers if not (said.is_whole or said.was_left)]


@dataclass
class Load:
    """Chat requests, a few at a time, some of whose clients leave."""

    port: int
    count: int
    at_once: int = 4
    tokens: int = 24
    leaves: frozenset[int] = frozenset()
    """Numbers of the requests whose clients leave after three chunks."""
    answers: list[Said] = field(default_factory=list)

    def run(self) -> list[Said]:
        """The answers, in the order of the requests."""
        numbers = iter(range(self.count))
        lock = threading.Lock()

        def client() -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                answer = self.ask(number)
                with lock:
                    self.answers.append(answer)

        clients = [threading.Thread(target=client) for _ in range(self.at_once)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        return sorted(self.answers, key=lambda answer: answer.number)

    def ask(self, number: int) -> Said:
        """One request."""
        said = Said(number)
        body = {
            "model": "standin",
            "messages": [{"role": "user", "content": f"{number} {SENTENCE * 4}"}],
            # Enough for vLLM to notice that nobody wants the rest.
            "max_tokens": self.tokens * (5 if number in self.leaves else 1),
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                said.error = f"{response.status} {response.read()!r}"
                return said
            for raw in response:
                line = raw.decode().strip()
                if line == "data: [DONE]":
                    said.is_whole = True
                elif line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    said.request_id = str(event["id"]).removeprefix("chatcmpl-")
                    text = event["choices"][0]["delta"].get("content") if event["choices"] else None
                    said.text += text or ""
                    said.chunks += bool(event["choices"])
                if number in self.leaves and said.chunks == 3:
                    said.was_left = True
                    return said
        finally:
            connection.close()
        return said
