"""Workers come and go, the Collector fails: no request suffers and no span is lost."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from nginx_peers import Answer, Collector, Received, StartUpstream
from nginx_server import Nginx, get, tracing
from nginx_trees import root, trees
from test_nginx_tokens import TOKENS


def site(nginx: Nginx, directives: str) -> str:
    return f"""{directives}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ return 200; }}
        }}"""


def exporting_to(url: str, log: object, mode: str = "fallback") -> str:
    return (
        f"omnitrace on; omnitrace_legacy_log {mode} {log};"
        f"omnitrace_exporter {{ endpoint {url}; interval 50ms; timeout 500ms; }}"
    )


def logged_ids(directory: Path) -> Counter[str]:
    """How often each request's end is in the legacy log."""
    lines = [line for file in directory.iterdir() for line in file.read_text().splitlines()]
    ends = [line for line in lines if "Action: Received all tokens;" in line]
    return Counter(re.findall(r"RequestID:(\S+);", line)[0] for line in ends)


def exported_ids(collector: Collector) -> Counter[str]:
    return Counter(s.attributes["gen_ai.request.id"] for s in collector.spans)


def total(nginx: Nginx, name: str) -> int:
    return sum(books[name] for books in nginx.books())


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGTERM, signal.SIGINT])
def test_every_way_to_stop_delivers_what_is_there(
    how: signal.Signals, nginx: Nginx, collector: Collector
) -> None:
    nginx.start(site(nginx, tracing(collector).replace("interval 100ms", "interval 1h")))
    for n in range(10):
        get(nginx, headers={"X-Request-Id": str(n)})
    nginx.stop(how)
    assert exported_ids(collector) == {str(n): 1 for n in range(10)}


def waiting(nginx: Nginx) -> socket.socket:
    """A client that has got the beginning of an answer which does not end."""
    connection = socket.create_connection(("127.0.0.1", nginx.port), timeout=10)
    connection.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
    while b"begin" not in connection.recv(65536):
        pass
    return connection


def endless(handler: BaseHTTPRequestHandler, _: Received) -> None:
    keep_sending(handler, "text/plain", b"begin")


def endless_stream(handler: BaseHTTPRequestHandler, _: Received) -> None:
    keep_sending(handler, "text/event-stream", b'data: {"content":"begin"}\n\n')


def keep_sending(handler: BaseHTTPRequestHandler, content_type: str, piece: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", content_type)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(0.05)


def test_a_worker_that_is_told_to_leave_ends_its_requests_spans(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    server = upstream(endless)
    nginx.start(
        f"""{tracing(collector)} proxy_buffering off;
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ proxy_pass http://{server.address}; }}
        }}""",
        main="worker_shutdown_timeout 200ms;",
    )
    [old] = nginx.workers()
    with waiting(nginx):
        nginx.reload()
        nginx.wait_for(lambda: old not in nginx.workers(), "the old worker lingers")
    [book] = nginx.books()
    assert (book["created"], book["exported"]) == (2, 2)
    names = {**nginx.names, server.port: "<upstream>"}
    [(name, _, _, _, _, [call])] = trees(collector.spans, names)
    assert (name, call[0], call[2]) == ("Trace for Omni Proxy", "Upstream request", True)


@pytest.mark.parametrize(("answer", "events"), [(endless, []), (endless_stream, TOKENS[:1])])
def test_what_is_open_when_nginx_stops_at_once_is_marked_incomplete(
    nginx: Nginx, collector: Collector, upstream: StartUpstream, answer: Answer, events: list[str]
) -> None:
    server = upstream(answer)
    nginx.start(
        f"""{tracing(collector)} proxy_buffering off;
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ proxy_pass http://{server.address}; }}
        }}"""
    )
    with waiting(nginx):
        nginx.stop(signal.SIGTERM)
    names = {**nginx.names, server.port: "<upstream>"}
    [(name, _, _, attributes, seen, [call])] = trees(collector.spans, names)
    assert (name, call[0]) == ("Trace for Omni Proxy", "Upstream request")
    # More tokens may have come meanwhile.
    assert seen[: len(events)] == events and bool(seen) == bool(events)
    assert attributes["omnitrace.incomplete"] and call[3]["omnitrace.incomplete"]


def test_a_worker_that_dies_is_followed_by_one_that_traces(
    nginx: Nginx, collector: Collector
) -> None:
    nginx.expected = "exited on signal 9"
    nginx.start(site(nginx, tracing(collector)))
    get(nginx, headers={"X-Request-Id": "first"})
    nginx.wait_for(lambda: len(collector.spans) == 1, "no span")
    [old] = nginx.workers()
    os.kill(old, signal.SIGKILL)
    nginx.wait_for(lambda: bool(nginx.workers() - {old}), "no new worker")
    get(nginx, headers={"X-Request-Id": "second"})
    nginx.stop()
    assert exported_ids(collector) == {"first": 1, "second": 1}


def test_another_binary_takes_over_without_losing_a_span(
    nginx: Nginx, collector: Collector
) -> None:
    # A master that is its starter's child ignores the signal.
    nginx.configure(site(nginx, tracing(collector)), main="daemon on;")
    subprocess.run(nginx.command(), check=True)
    pid_file, old_pid_file = (nginx.directory / f"nginx.pid{end}" for end in ("", ".oldbin"))
    nginx.wait_for(lambda: pid_file.exists() and bool(pid_file.read_text()), "no master")
    old = int(pid_file.read_text())
    get(nginx, headers={"X-Request-Id": "old"})
    os.kill(old, signal.SIGUSR2)
    nginx.wait_for(
        lambda: old_pid_file.exists() and pid_file.exists() and bool(pid_file.read_text()),
        "no new master",
    )
    new = int(pid_file.read_text())
    children = Path(f"/proc/{new}/task/{new}/children")
    nginx.wait_for(lambda: bool(children.read_text()), "the new master has no worker")
    get(nginx, headers={"X-Request-Id": "both"})
    os.kill(old, signal.SIGQUIT)
    nginx.wait_for(lambda: not old_pid_file.exists(), "the old master does not end")
    get(nginx, headers={"X-Request-Id": "new"})
    os.kill(new, signal.SIGQUIT)
    nginx.wait_for(lambda: not pid_file.exists(), "the new master does not end")
    assert exported_ids(collector) == {"old": 1, "both": 1, "new": 1}
    assert total(nginx, "created") == total(nginx, "exported") == 3


def test_a_collector_whose_name_nobody_knows_costs_no_request(nginx: Nginx) -> None:
    log = nginx.directory / "log"
    nginx.start(site(nginx, exporting_to("http://collector.invalid:4318", log)))
    for n in range(5):
        assert get(nginx, headers={"X-Request-Id": str(n)}).status == 200
    nginx.stop()
    assert logged_ids(log) == {str(n): 1 for n in range(5)}


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json", "grpc"])
def test_a_collector_behind_a_socket_of_the_file_system_is_reached(
    protocol: str, nginx: Nginx, collector: Collector
) -> None:
    path = nginx.directory / "collector.sock"
    taken = forwarded(path, collector)
    log = nginx.directory / "log"
    directives = exporting_to(f"unix:{path}", log).replace("{ ", f"{{ protocol {protocol}; ", 1)
    nginx.start(site(nginx, directives))
    get(nginx, headers={"X-Request-Id": "x"})
    nginx.stop()
    if protocol == "http/protobuf":
        assert exported_ids(collector) == {"x": 1}
    # The Collector here speaks protobuf over HTTP alone; that the others come is what counts.
    assert taken[0].startswith({"grpc": b"PRI * HTTP/2.0"}.get(protocol, b"POST /v1/traces"))


def forwarded(path: Path, collector: Collector) -> list[bytes]:
    """Passes what comes to a socket on to a Collector; the first bytes of each connection."""
    taken: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    path.chmod(0o666)

    def copy(source: socket.socket, target: socket.socket, noted: list[bytes]) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                noted.append(piece)
                target.sendall(piece)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                onward = socket.create_connection(("127.0.0.1", collector.server.server_port))
                for ends in ((connection, onward, taken), (onward, connection, [])):
                    threading.Thread(target=copy, args=ends, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return taken


def test_one_process_is_enough(nginx: Nginx, collector: Collector) -> None:
    nginx.start(site(nginx, tracing(collector)), main="master_process off;")
    get(nginx, headers={"X-Request-Id": "x"})
    nginx.stop()
    assert trees(collector.spans, nginx.names) == [root("/", "/", id="x")]
    assert total(nginx, "exported") == 1


def test_the_exporter_survives_becoming_a_daemon(nginx: Nginx, collector: Collector) -> None:
    nginx.configure(site(nginx, tracing(collector)), main="daemon on;")
    subprocess.run(nginx.command(), check=True)
    get(nginx, headers={"X-Request-Id": "x"})
    subprocess.run(nginx.command("-s", "quit"), check=True)
    nginx.wait_for(lambda: not (nginx.directory / "nginx.pid").exists(), "nginx does not end")
    assert trees(collector.spans, nginx.names) == [root("/", "/", id="x")]


def test_a_worker_that_only_waits_has_one_thread_more(nginx: Nginx, collector: Collector) -> None:
    nginx.start(
        site(nginx, f"{tracing(collector)} proxy_cache_path {nginx.directory}/c keys_zone=z:1m;")
    )
    get(nginx)
    names = {pid: Path(f"/proc/{pid}/cmdline").read_text().strip("\0") for pid in nginx.workers()}
    threads = {names[pid]: len(os.listdir(f"/proc/{pid}/task")) for pid in names}
    assert threads.pop("nginx: worker process") == 2
    assert set(threads.values()) <= {1}


def test_nothing_is_started_where_nothing_is_traced(nginx: Nginx, collector: Collector) -> None:
    nginx.start(site(nginx, tracing(collector).replace("omnitrace on", "omnitrace off")))
    get(nginx)
    assert [len(os.listdir(f"/proc/{pid}/task")) for pid in nginx.workers()] == [1]
    nginx.stop()
    assert (collector.spans, nginx.messages()) == ([], [])


def silent() -> socket.socket:
    """Takes connections and says nothing."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    return listener


@pytest.mark.parametrize("state", ["refusing", "silent", "failing", "rejecting"])
def test_what_no_collector_takes_is_in_the_legacy_log(
    state: str, nginx: Nginx, collector: Collector, nobody: str
) -> None:
    listener = silent()
    collector.status = {"failing": 503, "rejecting": 400}.get(state, 200)
    url = {
        "refusing": nobody,
        "silent": f"http://127.0.0.1:{listener.getsockname()[1]}",
    }.get(state, collector.url)
    log = nginx.directory / "log"
    nginx.start(site(nginx, exporting_to(url, log)), main="worker_processes 2;")
    for n in range(50):
        get(nginx, headers={"X-Request-Id": str(n)})
    nginx.stop()
    listener.close()
    assert logged_ids(log) == {str(n): 1 for n in range(50)}
    assert (total(nginx, "created"), total(nginx, "logged")) == (50, 50)
    assert collector.spans == []


def test_a_collector_that_comes_back_gets_the_rest(nginx: Nginx, collector: Collector) -> None:
    collector.status = 503
    log = nginx.directory / "log"
    nginx.start(site(nginx, exporting_to(collector.url, log)))
    for n in range(20):
        get(nginx, headers={"X-Request-Id": str(n)})
    collector.status = 200
    for n in range(20, 40):
        get(nginx, headers={"X-Request-Id": str(n)})
    nginx.stop()
    logged = logged_ids(log) if log.exists() else Counter()
    assert exported_ids(collector) + logged == {str(n): 1 for n in range(40)}
    assert total(nginx, "created") == 40


def test_a_log_that_cannot_be_written_costs_spans_but_no_request(nginx: Nginx) -> None:
    (nginx.directory / "log").mkdir()
    # Root may write anywhere, but not into a directory that is gone.
    nginx.start(site(nginx, exporting_to("http://127.0.0.1:1", nginx.directory / "log")))
    (nginx.directory / "log").rmdir()
    (nginx.directory / "log").write_text("in the way")
    assert get(nginx).status == 200
    nginx.stop()
    assert [(b["created"], b["dropped"]) for b in nginx.books()] == [(1, 1)]
    assert any("cannot be written" in line for line in nginx.messages())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's nginx has workers of another user")
def test_a_log_that_workers_may_not_write_is_named_at_the_start(nginx: Nginx) -> None:
    log = nginx.directory / "log"
    log.mkdir(mode=0o700)
    directives = exporting_to("http://127.0.0.1:1", log)
    nginx.start(site(nginx, directives), main="user nobody nogroup;", user=False)
    nginx.wait_for(lambda: bool(nginx.messages()), "no message")
    assert nginx.messages() == [
        f"warn: omnitrace: the legacy log cannot be written to {log}: "
        "Permission denied (os error 13)"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's nginx has workers of another user")
def test_nginx_makes_the_logs_directory_for_its_workers(nginx: Nginx) -> None:
    log = nginx.directory / "log"
    nginx.configure(
        site(nginx, exporting_to("http://127.0.0.1:1", log)),
        main="user nobody nogroup;",
        user=False,
    )
    assert nginx.test() == ""
    assert log.stat().st_uid == pwd.getpwnam("nobody").pw_uid


def test_the_exporters_directives_reach_the_collector(nginx: Nginx, collector: Collector) -> None:
    block = (
        f"endpoint {collector.url}/own/path; header X-Token secret; compression gzip; batch_size 1;"
    )
    nginx.start(
        site(
            nginx,
            f"omnitrace on; omnitrace_legacy_log off; omnitrace_exporter {{ {block} }}"
            "omnitrace_service_name my-proxy; omnitrace_resource_attr deployment.environment test;",
        )
    )
    get(nginx)
    nginx.stop()
    assert collector.paths == ["/own/path"]
    assert (collector.headers[0]["x-token"], collector.headers[0]["content-encoding"]) == (
        "secret",
        "gzip",
    )
    [resource] = collector.resources
    assert resource["service.name"] == "my-proxy"
    assert resource["deployment.environment"] == "test"


def test_the_environment_configures_what_directives_leave_out(
    nginx: Nginx, collector: Collector
) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-from=environment",
        "OTEL_SERVICE_NAME": "from-environment",
        "OMNITRACE_LEGACY_LOG": "off",
    }
    nginx.start(site(nginx, "omnitrace on;"), environment=environment)
    get(nginx)
    nginx.stop()
    assert {span.service for span in collector.spans} == {"from-environment"}
    assert collector.headers[0]["x-from"] == "environment"


def test_a_client_may_repeat_its_id(nginx: Nginx, collector: Collector) -> None:
    nginx.start(site(nginx, tracing(collector)))
    for _ in range(2):
        get(nginx, headers={"X-Request-Id": "same"})
    nginx.stop()
    assert trees(collector.spans, nginx.names) == [root("/", "/", id="same")] * 2


def test_a_client_may_repeat_its_context(nginx: Nginx, collector: Collector) -> None:
    nginx.start(site(nginx, tracing(collector)))
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for id in ("one", "two"):
        get(nginx, headers={"X-Request-Id": id, "traceparent": parent})
    nginx.stop()
    expected = [root("/", "/", id=id) for id in ("one", "two")]
    assert trees(collector.spans, nginx.names) == expected
