"""A real nginx with the module, and requests to it.

The module is target/nginx/ngx_http_omnitrace_module.so, or what OMNITRACE_NGINX_MODULE names;
nginx is the one on the PATH, or what OMNITRACE_NGINX names. njs is Debian's, or what OMNITRACE_NJS
names: it too must be built for that nginx.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nginx_peers import Collector

from ports import hold_port, port_of

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = os.environ.get(
    "OMNITRACE_NGINX_MODULE", str(REPOSITORY / "target/nginx/ngx_http_omnitrace_module.so")
)
NGINX = os.environ.get("OMNITRACE_NGINX") or shutil.which(
    "nginx", path=f"{os.environ['PATH']}:/usr/sbin"
)
VENDORED = REPOSITORY / "target/nginx-vendored/nginx"
# The arguments that it was configured with: not every nginx has every module.
ARGUMENTS = (
    subprocess.run([NGINX, "-V"], capture_output=True, text=True, check=True).stderr
    if NGINX
    else ""
)
# One that the module is not built for, if there is any.
OTHER_NGINX = (
    shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if "OMNITRACE_NGINX" in os.environ
    else str(VENDORED)
    if VENDORED.exists()
    else None
)
NJS = os.environ.get(
    "OMNITRACE_NJS",
    "" if "OMNITRACE_NGINX" in os.environ else "/usr/lib/nginx/modules/ngx_http_js_module.so",
)


@dataclass
class Response:
    """An answer to `get`; `body` is what came of it if the connection broke."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def get(
    nginx: Nginx,
    path: str = "/",
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    body: bytes | None = None,
) -> Response:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"User-Agent": "test", **(headers or {})})
        answer = connection.getresponse()
        try:
            return Response(answer.status, answer.read())
        except http.client.IncompleteRead as broken:
            return Response(answer.status, broken.partial)


def raw(nginx: Nginx, request: bytes) -> bytes:
    """The answer to these bytes, until nginx closes the connection."""
    with socket.create_connection(("127.0.0.1", nginx.port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


def tracing(collector: Collector) -> str:
    """The directives that most tests need."""
    return (
        "omnitrace on; omnitrace_legacy_log off;"
        f"omnitrace_exporter {{ endpoint {collector.url}; interval 100ms; }}"
    )


@dataclass
class Nginx:
    """An nginx of its own, in a directory of its own."""

    directory: Path
    held: socket.socket = field(default_factory=hold_port)
    process: subprocess.Popen[bytes] | None = None
    expected: str = r"$^"
    """Alerts that the test itself causes."""

    @property
    def port(self) -> int:
        """Where its sites are to listen."""
        return port_of(self.held)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def names(self) -> dict[object, str]:
        """What stands for its port in a tree."""
        return {self.port: "<proxy>"}

    def configure(
        self, http: str, main: str = "", modules: tuple[str, ...] = (MODULE,), user: bool = True
    ) -> None:
        loads = "".join(f"load_module {module};\n" for module in modules)
        # Workers of root's nginx would run as nobody, who may not enter a test's directory.
        account = "user root;\n" if user and os.geteuid() == 0 else ""
        temporary = "".join(
            f"{kind}_temp_path {self.directory}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.directory / "nginx.conf").write_text(
            f"{loads}{account}error_log {self.directory}/error.log info;\n"
            f"pid {self.directory}/nginx.pid;\n{main}\n"
            f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{http}\n}}\n",
            errors="surrogateescape",
        )

    def command(self, *arguments: str) -> list[str]:
        return [
            str(NGINX), "-p", str(self.directory), "-c", str(self.directory / "nginx.conf"),
            "-e", str(self.directory / "error.log"), *arguments,
        ]  # fmt: skip

    def test(self, environment: dict[str, str] | None = None, program: str | None = None) -> str:
        """What `nginx -t` says, without nginx's own success lines."""
        result = subprocess.run(
            [program or str(NGINX), *self.command("-t")[1:-3], "-e", "stderr", "-t"],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, **(environment or {})},
        )
        lines = [
            re.sub(r"^nginx: |\d{4}/\d\d/\d\d \S+ |\d+#\d+: ", "", line)
            for line in result.stderr.splitlines()
            if not line.endswith(("syntax is ok", "test is successful", "test failed"))
        ]
        return "\n".join(dict.fromkeys(lines)).replace(str(self.directory), "<dir>")

    def start(
        self,
        http: str,
        main: str = "",
        modules: tuple[str, ...] = (MODULE,),
        environment: dict[str, str] | None = None,
        user: bool = True,
    ) -> Nginx:
        self.configure(http, f"daemon off;\n{main}", modules, user)
        self.process = subprocess.Popen(
            self.command(), env={**os.environ, **(environment or {})}, stderr=subprocess.DEVNULL
        )
        self.wait_for(lambda: self.answers(), "nginx does not listen")
        # The master listens before there is a worker.
        if "master_process off" not in main:
            self.wait_for(lambda: bool(self.workers()), "nginx has no workers")
        return self

    def answers(self) -> bool:
        assert self.process and self.process.poll() is None, self.log()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def wait_for(self, condition: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, f"{complaint}\n{self.log()}"
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def workers(self) -> set[int]:
        assert self.process
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return {int(pid) for pid in children.split()}

    def reload(self) -> None:
        before = self.workers()
        self.send(signal.SIGHUP)
        configured = re.search(
            r"worker_processes (\d+)", (self.directory / "nginx.conf").read_text()
        )
        count = int(configured[1]) if configured else 1
        self.wait_for(
            lambda: len(self.workers() - before) >= count, "no new workers after a reload"
        )

    def stop(self, number: signal.Signals = signal.SIGQUIT) -> None:
        """Ends nginx: everything recorded is delivered after this."""
        if self.process and self.process.poll() is None:
            self.send(number)
            assert self.process.wait(timeout=30) == 0

    def log(self) -> str:
        path = self.directory / "error.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def messages(self) -> list[str]:
        """The module's own lines in the error log, with their levels."""
        found = re.findall(r"\[(\w+)\] \d+#\d+: (?:\*\d+ )?(omnitrace: .*)", self.log())
        return [f"{level}: {text}" for level, text in found]

    def books(self) -> list[dict[str, int]]:
        """The books of each worker that has ended."""
        lines = re.findall(r"omnitrace: (created=.*)", self.log())
        return [
            {name: int(count) for name, count in re.findall(r"([a-z][a-z ]*)=(\d+)", line)}
            for line in lines
        ]

    def assert_healthy(self) -> None:
        bad = [
            line
            for line in self.log().splitlines()
            if re.search(r"\[(alert|emerg|crit)\]|panicked|internal error|exited on signal", line)
            and not re.search(self.expected, line)
        ]
        assert bad == []
