"""Starts and stops the parts of a traced prefill/decode service on loopback."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ports import free_ports

REPOSITORY = Path(__file__).resolve().parents[2]
TARGET = REPOSITORY / "target"
COMMAND = TARGET / "release" / "omnitrace"
MODULE = TARGET / "nginx" / "ngx_http_omnitrace_module.so"
NJS = Path("/usr/lib/nginx/modules/ngx_http_js_module.so")

START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0


class StackError(Exception):
    """A part could not be started or stopped; the message says which and why."""


@dataclass
class Answer:
    """What a client got."""

    status: int
    request_id: str
    tokens: list[str] = field(default_factory=list)
    body: str = ""
    done: bool = False


@dataclass
class Part:
    """One process that was started here."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-8:]
        return "\n".join(f"    {line}" for line in lines)


class Stack:
    """A receiver, a prefill node, a decode node and nginx, in one folder.

    folder: gets logs/ (legacy logs), books/ (each node process's final
        omnitrace.stats()), nginx/ and one .out file per process.
    collector: OTLP/HTTP base endpoint of a Collector to use instead of
        `omnitrace serve`.
    legacy_log: off, fallback or always.
    """

    def __init__(
        self,
        folder: Path,
        *,
        collector: str | None = None,
        legacy_log: str = "fallback",
        protocol: str = "http/protobuf",
    ) -> None:
        self.folder = folder
        self.legacy_log = legacy_log
        self.protocol = protocol
        self.logs = folder / "logs"
        self.books = folder / "books"
        for each in (self.logs, self.books, folder / "nginx"):
            each.mkdir(parents=True, exist_ok=True)
        ports = free_ports(7)
        self.grpc, self.http, self.ui = ports[0], ports[1], ports[2]
        self.prefill, self.decode, self.side_channel, self.proxy = ports[3:]
        otlp = self.grpc if protocol == "grpc" else self.http
        self.endpoint = collector or f"http://127.0.0.1:{otlp}"
        self.parts: dict[str, Part] = {}

    @property
    def ui_url(self) -> str:
        return f"http://127.0.0.1:{self.ui}"

    # ---- parts

    def start_receiver(self) -> None:
        """Starts `omnitrace serve`; a restarted one has the same addresses."""
        arguments = [str(COMMAND), "serve"]
        for option, port in (
            ("--otlp-grpc-endpoint", self.grpc),
            ("--otlp-http-endpoint", self.http),
            ("--ui-endpoint", self.ui),
        ):
            arguments += [option, f"127.0.0.1:{port}"]
        self._start("receiver", arguments)
        self._wait("receiver", f"{self.ui_url}/health")

    def start_nodes(self) -> None:
        """Starts the prefill and the decode node (stand-ins for vLLM)."""
        common = [sys.executable, "-m", "standin", "--stats-dir", str(self.books)]
        side_channel = ["--side-channel-port", str(self.side_channel)]
        for role, port in (("prefill", self.prefill), ("decode", self.decode)):
            arguments = [*common, "--role", role, "--port", str(port)]
            if role == "prefill":
                arguments += side_channel
            self._start(role, arguments, {"ROLE": role, **self._environment()})
        for role, port in (("prefill", self.prefill), ("decode", self.decode)):
            self._wait(role, f"http://127.0.0.1:{port}/health")

    def start_proxy(self) -> None:
        """Starts nginx with the module and examples/nginx's locations."""
        nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        folder = self.folder / "nginx"
        conf = folder / "nginx.conf"
        conf.write_text(self._nginx_conf())
        (folder / "error.log").touch()
        base = [nginx, "-p", f"{folder}/", "-c", str(conf), "-e", "error.log"]
        check = subprocess.run([*base, "-t"], capture_output=True, text=True, check=False)
        if check.returncode != 0:
            raise StackError(f"nginx refuses its configuration:\n{check.stderr.strip()}")
        self._start("proxy", [*base, "-g", "daemon off;"])
        self._wait("proxy", f"http://127.0.0.1:{self.proxy}/v1/models")

    def start(self) -> None:
        """Starts the nodes and the proxy."""
        self.start_nodes()
        self.start_proxy()

    def stop(self, name: str, *, kill: bool = False) -> None:
        """Ends one part and waits for it; its exit status must be 0."""
        part = self.parts.pop(name, None)
        if part is None:
            return
        graceful = signal.SIGQUIT if name == "proxy" else signal.SIGTERM
        part.process.send_signal(signal.SIGKILL if kill else graceful)
        try:
            status = part.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            part.process.kill()
            part.process.wait()
            raise StackError(f"{name} did not end within {STOP_TIMEOUT:.0f} s") from None
        # uvicorn raises SIGTERM again once it has shut down.
        if status not in (0, -signal.SIGTERM) and not kill:
            raise StackError(f"{name} ended with status {status}:\n{part.tail()}")

    def stop_service(self) -> None:
        """Ends proxy and nodes in the order in which requests pass them."""
        for name in ("proxy", "decode", "prefill"):
            self.stop(name)

    def close(self) -> None:
        """Ends everything that still runs, whatever it says."""
        for part in self.parts.values():
            part.process.terminate()
        for part in self.parts.values():
            try:
                part.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                part.process.kill()
                part.process.wait()
        self.parts.clear()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(REPOSITORY / "examples" / "vllm"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol,
            "OTEL_RESOURCE_ATTRIBUTES": "host.ip=127.0.0.1",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_BSP_EXPORT_TIMEOUT": "1500",
            "OMNITRACE_LEGACY_LOG": self.legacy_log,
            "TRACE_OUTPUT_DIRECTORY": str(self.logs),
        }

    def _nginx_conf(self) -> str:
        user = "user root;" if os.getuid() == 0 else ""
        temporary = "\n".join(
            f"    {name}_temp_path tmp_{name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        return f"""\
{user}
load_module {NJS};
load_module {MODULE};
worker_processes 2;
pid nginx.pid;
error_log error.log notice;
events {{ worker_connections 512; }}
http {{
    access_log access.log;
{temporary}
    omnitrace on;
    omnitrace_exporter {{
        endpoint {self.endpoint};
        protocol {self.protocol};
        interval 200ms;
        retry_timeout 1500ms;
    }}
    omnitrace_service_name omni-proxy;
    omnitrace_resource_attr host.ip 127.0.0.1;
    omnitrace_request_id on;
    omnitrace_context propagate;
    omnitrace_legacy_log {self._legacy_log_directive()};

    upstream prefill {{ server 127.0.0.1:{self.prefill}; keepalive 16; keepalive_timeout 4s; }}
    upstream decode {{ server 127.0.0.1:{self.decode}; keepalive 16; keepalive_timeout 4s; }}

    js_path {REPOSITORY / "examples" / "nginx"};
    server {{
        listen 127.0.0.1:{self.proxy};
        include {REPOSITORY / "examples" / "nginx" / "pd_proxy.conf"};
    }}
}}
"""

    def _legacy_log_directive(self) -> str:
        return "off" if self.legacy_log == "off" else f"{self.legacy_log} {self.logs}"

    def _start(
        self, name: str, arguments: list[str], environment: Mapping[str, str] | None = None
    ) -> None:
        log = self.folder / f"{name}.out"
        # A proxy of this machine's environment is not meant for loopback.
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "OMNITRACE_"))}
        with log.open("ab") as output:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for us; the parts are ended in their order.
                start_new_session=True,
                env={**clean, **(environment or {})},
            )
        self.parts[name] = Part(name, process, log)

    def _wait(self, name: str, url: str) -> None:
        part = self.parts[name]
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if part.process.poll() is not None:
                raise StackError(f"{name} ended at once:\n{part.tail()}")
            try:
                with urllib.request.urlopen(url, timeout=2):
                    return
            except (urllib.error.URLError, OSError, http.client.HTTPException):
                time.sleep(0.05)
        raise StackError(f"{name} does not answer at {url}:\n{part.tail()}")

    # ---- use

    def chat(
        self,
        prompt: str,
        *,
        max_tokens: int = 12,
        stream: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One chat request through the proxy."""
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy, timeout=60)
        body = {
            "model": "standin",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "stream": stream,
        }
        try:
            connection.request(
                "POST",
                "/v1/chat/completions",
                json.dumps(body),
                {"Content-Type": "application/json", "Connection": "close", **(headers or {})},
            )
            response = connection.getresponse()
            answer = Answer(response.status, response.headers.get("X-Request-Id", ""))
            if not stream or response.status != 200:
                answer.body = response.read().decode()
                answer.done = response.status == 200
                return answer
            for line in response:
                self._take_line(answer, line.decode().strip())
            return answer
        finally:
            connection.close()

    @staticmethod
    def _take_line(answer: Answer, line: str) -> None:
        if not line.startswith("data: "):
            return
        if line == "data: [DONE]":
            answer.done = True
            return
        event: dict[str, Any] = json.loads(line[len("data: ") :])
        answer.request_id = str(event["id"]).removeprefix("chatcmpl-")
        for choice in event["choices"]:
            if content := choice["delta"].get("content"):
                answer.tokens.append(content)

    def traces(self, service: str = "omni-proxy", limit: int = 10_000) -> list[dict[str, Any]]:
        """What the receiver shows of a service."""
        url = f"{self.ui_url}/api/traces?service={service}&limit={limit}"
        with urllib.request.urlopen(url, timeout=10) as response:
            traces: list[dict[str, Any]] = json.load(response)["data"]
        return traces

    def node_books(self) -> list[dict[str, Any]]:
        """The final books of the node processes that have ended."""
        return [json.loads(each.read_text()) for each in sorted(self.books.glob("*.json"))]

    def convert(self, output: Path, *options: str) -> str:
        """Converts the legacy logs; returns what the command said."""
        return self.command("convert", str(self.logs), str(output), *options)

    def replay(self) -> str:
        """Replays the legacy logs into the receiver."""
        arguments = ["--endpoint", self.endpoint, "--protocol", self.protocol]
        return self.command("replay", str(self.logs), *arguments)

    @staticmethod
    def command(*arguments: str) -> str:
        """Runs the omnitrace command; returns its stderr."""
        done = subprocess.run(
            [str(COMMAND), *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise StackError(f"omnitrace {arguments[0]}: {done.stderr.strip()}")
        return done.stderr
