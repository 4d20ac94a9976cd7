"""Starts a prefill and a decode node of a real vLLM, joined by NIXL, and nginx before them.

    python start_pair.py MODEL         on GPUs: prefill on the first, decode on the second
    python start_pair.py --cpu         without any, with a tiny model of random weights

Runs until Ctrl-C, then ends everything. To be run by the Python that vLLM is installed in.
Spans go where OTEL_EXPORTER_OTLP_ENDPOINT says, else to the legacy log. What comes after `--`
goes to both nodes: options of vLLM's.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
NGINX_CONF = HERE.parent / "nginx"
BUILT_MODULE = HERE.parents[1] / "target" / "nginx" / "ngx_http_omnitrace_module.so"
DEBIAN_MODULES = Path("/usr/lib/nginx/modules")
END_TIMEOUT = 20.0
"""Seconds that a part may take to end by itself."""

CPU_OPTIONS = ["--dtype", "bfloat16", "--max-model-len", "1024", "--max-num-seqs", "16"]
CPU_OPTIONS += ["--enforce-eager", "--block-size", "32", "--no-enable-prefix-caching"]
# One machine's loopback is all that NIXL has to cross.
CPU_ENVIRONMENT = {
    "UCX_TLS": "tcp,self,sm",
    "UCX_NET_DEVICES": "lo",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
# A proxy of the environment is not meant for loopback.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class PairError(Exception):
    """Something is missing or has ended; the message says what to do."""


class Part:
    """A process with all that it starts."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], folder: Path):
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A group of its own: Ctrl-C is for us, and its workers can be found again.
                start_new_session=True,
                env=os.environ | environment,
            )

    def check(self) -> None:
        """Raises PairError if it has ended."""
        if (status := self.process.poll()) is not None:
            last = self.log.read_text(errors="replace").splitlines()[-12:]
            tail = "\n".join(f"    {line}" for line in last)
            raise PairError(f"{self.name} has ended with status {status}; {self.log}:\n{tail}")

    def end(self) -> None:
        """Ends it, in good order if it can, and whatever it has left behind."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.terminate()
            self.process.wait(END_TIMEOUT)
        # vLLM's workers may outlive those who started them.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def main() -> int:
    """Starts all, says where, and waits."""
    options, for_vllm = _options()
    # As Ctrl-C: everything is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parts: list[Part] = []
    try:
        _check(options)
        for part in _start(options, for_vllm):
            parts.append(part)
        while True:
            for part in parts:
                part.check()
            time.sleep(1)
    except (PairError, OSError) as error:
        print(f"start_pair.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nending all", flush=True)
        return 0
    finally:
        # A second Ctrl-C must not leave anything behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for part in reversed(parts):
            part.end()


def _options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] (MODEL | --cpu [MODEL]) [-- vLLM's options]",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder, or name on Hugging Face")
    parser.add_argument("--cpu", action="store_true", help="without GPUs")
    parser.add_argument(
        "--prefill-gpus", default="0", metavar="LIST", help="of CUDA_VISIBLE_DEVICES (0)"
    )
    parser.add_argument("--decode-gpus", default="1", metavar="LIST", help="likewise (1)")
    parser.add_argument(
        "--port",
        type=int,
        default=8000,
        help="of nginx (8000); the nodes' and NIXL's are this plus 100, 200, 300 and 400",
    )
    parser.add_argument("--nginx-module", type=Path, metavar="FILE", help="omnitrace's for nginx")
    parser.add_argument(
        "--folder", type=Path, default=Path("vllm-pair"), help="for logs (vllm-pair)"
    )
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    options, for_vllm = parser.parse_args(given[:end]), given[end + 1 :]
    if not options.model and not options.cpu:
        parser.error("name a MODEL, or say --cpu")
    options.folder = options.folder.resolve()
    if options.nginx_module is None:
        installed = DEBIAN_MODULES / BUILT_MODULE.name
        options.nginx_module = installed if installed.exists() else BUILT_MODULE
    return options, for_vllm


def _check(options: argparse.Namespace) -> None:
    """Raises PairError for the first thing that is missing."""
    python = sys.executable
    for module, cure in (
        ("vllm", f"{python} -m pip install vllm, or run this by the Python that has it"),
        ("nixl", f"{python} -m pip install nixl"),
        ("omnitrace", f"{python} -m pip install omnitrace-sdk"),
    ):
        if importlib.util.find_spec(module) is None:
            raise PairError(f"{module} is missing here: {cure}")
    if not _beside_python("vllm").exists():
        raise PairError(f"{_beside_python('vllm')} is missing: run this by the Python of vLLM")
    if _nginx() is None:
        raise PairError("nginx is missing: apt-get install nginx libnginx-mod-http-js")
    if not (DEBIAN_MODULES / "ngx_http_js_module.so").exists():
        raise PairError("nginx's JavaScript is missing: apt-get install libnginx-mod-http-js")
    if not options.nginx_module.exists():
        raise PairError(f"{options.nginx_module} is missing: make module, or --nginx-module FILE")
    if not options.cpu and shutil.which("nvidia-smi") is None:
        raise PairError("there is no nvidia-smi here, so no GPU: --cpu does without")
    for port in range(options.port, options.port + 401, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError) as error:
                raise PairError(
                    f"port {port} cannot be used: {error}; try another --port"
                ) from None


def _start(options: argparse.Namespace, for_vllm: list[str]) -> Iterator[Part]:
    """Each part as soon as it is started."""
    folder: Path = options.folder
    (folder / "traces").mkdir(parents=True, exist_ok=True)
    model = name = options.model
    if model is None:
        model, name = str(folder / "model"), "tiny"
        for_vllm = ["--served-model-name", name, *for_vllm]
        if not (folder / "model" / "config.json").exists():
            maker = [sys.executable, str(HERE / "make_model.py"), model]
            if subprocess.run(maker, check=False).returncode != 0:
                raise PairError(f"the model could not be made in {model}: name a MODEL")
    traces = _traces(folder)
    nodes = {}
    for number, role in enumerate(("prefill", "decode")):
        port = options.port + 100 * (number + 1)
        command, environment = _node(options, model, role, port, number)
        nodes[role] = Part(role, command + for_vllm, environment | traces, folder)
        yield nodes[role]
        print(f"{role}: port {port}, log {nodes[role].log}", flush=True)
    print("waiting for both: a minute at least", flush=True)
    for port in options.port + 100, options.port + 200:
        _wait(list(nodes.values()), f"http://127.0.0.1:{port}/health")
    proxy = Part("nginx", _proxy(options), traces, folder)
    yield proxy
    _wait([*nodes.values(), proxy], f"http://127.0.0.1:{options.port}/v1/models")
    body = {"model": name, "max_tokens": 16, "stream": True}
    body |= {"messages": [{"role": "user", "content": "Where does the time go?"}]}
    print(
        f"all is up; Ctrl-C ends it. Ask by\n\n"
        f"    curl -N http://127.0.0.1:{options.port}/v1/chat/completions \\\n"
        f"        -H 'Content-Type: application/json' -d '{json.dumps(body)}'\n\n"
        f"{_where(traces)}",
        flush=True,
    )


def _node(
    options: argparse.Namespace, model: str, role: str, port: int, number: int
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a `vllm serve`."""
    transfer = {
        "kv_connector": "NixlConnector",
        "kv_role": {"prefill": "kv_producer", "decode": "kv_consumer"}[role],
    }
    environment = {
        "PATH": f"{_beside_python('')}{os.pathsep}{os.environ['PATH']}",
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port + 200),
    }
    more: list[str] = []
    if options.cpu:
        transfer["kv_buffer_device"] = "cpu"
        # Half of the cores each.
        cores = sorted(os.sched_getaffinity(0))
        half = max(len(cores) // 2, 1)
        mine = cores[-half:] if number else cores[:half]
        environment |= CPU_ENVIRONMENT
        environment["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, mine))
        if half == 1:
            # A worker beside the engine would wait for its core by yielding it without end,
            # which Linux 6.18 counts against it: the nodes would stand still for half a minute.
            environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
        more += CPU_OPTIONS
    else:
        gpus = options.decode_gpus if number else options.prefill_gpus
        environment["CUDA_VISIBLE_DEVICES"] = gpus
        more += ["--tensor-parallel-size", str(len(gpus.split(",")))]
    command = [str(_beside_python("vllm")), "serve", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--kv-transfer-config", json.dumps(transfer), *more]
    return command, environment


def _proxy(options: argparse.Namespace) -> list[str]:
    """Writes nginx's configuration; returns its command."""
    folder: Path = options.folder
    paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"    {path}_temp_path {folder}/tmp_{path};" for path in paths)
    conf = folder / "nginx.conf"
    conf.write_text(f"""\
# Where spans go, the environment says.
{"user root;" if os.getuid() == 0 else ""}
load_module {DEBIAN_MODULES}/ngx_http_js_module.so;
load_module {options.nginx_module.resolve()};
pid {folder}/nginx.pid;
error_log stderr notice;
events {{}}
http {{
    access_log {folder}/access.log;
{temporary}
    omnitrace on;
    omnitrace_request_id on;
    omnitrace_context propagate;
    upstream prefill {{ server 127.0.0.1:{options.port + 100}; keepalive 64; keepalive_timeout 4s; }}
    upstream decode {{ server 127.0.0.1:{options.port + 200}; keepalive 64; keepalive_timeout 4s; }}
    js_path {NGINX_CONF};
    server {{
        listen 127.0.0.1:{options.port};
        include {NGINX_CONF}/pd_proxy.conf;
    }}
}}
""")
    return [str(_nginx()), "-p", f"{folder}/", "-c", str(conf), "-e", "stderr", "-g", "daemon off;"]


def _traces(folder: Path) -> dict[str, str]:
    """Where all of them send their spans."""
    variables = {"OMNITRACE": "1"}
    if not os.environ.get("TRACE_OUTPUT_DIRECTORY"):
        variables["TRACE_OUTPUT_DIRECTORY"] = str(folder / "traces")
    if not any(os.environ.get(f"OTEL_EXPORTER_OTLP_{of}ENDPOINT") for of in ("", "TRACES_")):
        variables["OTEL_TRACES_EXPORTER"] = "none"
        variables["OMNITRACE_LEGACY_LOG"] = "always"
    return variables


def _where(traces: dict[str, str]) -> str:
    log = traces.get("TRACE_OUTPUT_DIRECTORY") or os.environ["TRACE_OUTPUT_DIRECTORY"]
    if "OTEL_TRACES_EXPORTER" in traces:
        return f"and then: omnitrace convert {log} trace.json"
    return f"Spans go to the Collector; what it does not take is in {log}."


def _wait(parts: list[Part], url: str) -> None:
    """Until it answers, for as long as all of them run."""
    while True:
        for part in parts:
            part.check()
        try:
            with _DIRECT.open(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)


def _beside_python(program: str) -> Path:
    return Path(sys.executable).parent / program


def _nginx() -> str | None:
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


if __name__ == "__main__":
    sys.exit(main())
