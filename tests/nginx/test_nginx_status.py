"""omnitrace_status: the books of all workers, whoever is asked."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from nginx_peers import Collector, Received, StartUpstream, reply
from nginx_server import Nginx, Response, get, raw, tracing

NOTHING: dict[str, Any] = {
    "spans": {
        "created": 0,
        "exported": 0,
        "in_flight": 0,
        "logged": 0,
        "dropped": {
            "queue_full": 0,
            "not_delivered": 0,
            "rejected": 0,
            "legacy_log_failed": 0,
            "worker_ended": 0,
            "other": 0,
        },
        "unsampled": 0,
        "contradictory": 0,
    },
    "events": {"recorded": 0, "lost": 0, "loose": 0},
    "open_requests": 0,
    "workers": 0,
}


def site(nginx: Nginx, directives: str) -> str:
    return f"""{directives}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ return 200; }}
            location = /status {{ omnitrace off; omnitrace_status; }}
            location = /json {{ omnitrace off; omnitrace_status json; }}
            location = /prometheus {{ omnitrace off; omnitrace_status prometheus; }}
        }}"""


def status(nginx: Nginx) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(get(nginx, "/json").text)
    spans = found["spans"]
    accounted = spans["exported"] + spans["in_flight"] + spans["logged"]
    assert spans["created"] == accounted + sum(spans["dropped"].values())
    return found


def wait_for_spans(nginx: Nginx, **numbers: int) -> dict[str, Any]:
    """The books, once they show these numbers."""

    def shown() -> bool:
        spans = status(nginx)["spans"]
        return all(spans[name] == number for name, number in numbers.items())

    nginx.wait_for(shown, f"the books never show {numbers}")
    return status(nginx)


def renew_workers(nginx: Nginx) -> None:
    """Reloads, and waits until the old workers are gone and the new ones are counted."""
    old = nginx.workers()
    nginx.reload()
    nginx.wait_for(lambda: not old & nginx.workers(), "the old worker does not end")
    nginx.wait_for(lambda: status(nginx)["workers"] == len(old), "workers are missing")


def test_the_books_of_all_workers_are_one(nginx: Nginx, collector: Collector) -> None:
    nginx.start(site(nginx, tracing(collector)), main="worker_processes 3;")
    nginx.wait_for(lambda: status(nginx)["workers"] == 3, "workers are missing")
    for _ in range(30):
        assert get(nginx).status == 200
    books = wait_for_spans(nginx, exported=30)
    expected = {
        **NOTHING,
        "spans": {**NOTHING["spans"], "created": 30, "exported": 30},
        # Arrived, its id made, over.
        "events": {"recorded": 90, "lost": 0, "loose": 0},
        "workers": 3,
    }
    assert {**books, "open_requests": 0} == expected


def test_a_reload_changes_no_number_but_the_workers(nginx: Nginx, collector: Collector) -> None:
    nginx.start(site(nginx, tracing(collector)))
    for _ in range(5):
        get(nginx)
    before = wait_for_spans(nginx, exported=5)
    renew_workers(nginx)
    assert status(nginx) == {**before, "open_requests": 0}
    get(nginx)
    after = wait_for_spans(nginx, exported=6)
    assert after["events"]["recorded"] == before["events"]["recorded"] + 3


def test_a_worker_that_still_ends_is_counted(nginx: Nginx, collector: Collector) -> None:
    nginx.start(site(nginx, tracing(collector)) + "keepalive_timeout 30s;")
    get(nginx)
    wait_for_spans(nginx, exported=1)
    # A request that has not been sent whole keeps the old worker.
    request = b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", nginx.port), timeout=10) as connection:
        connection.sendall(request)
        [old] = nginx.workers()
        nginx.wait_for(lambda: bool(get(nginx).status), "no answer")
        nginx.send(signal.SIGHUP)
        nginx.wait_for(lambda: len(nginx.workers() - {old}) == 1, "no new worker")
        nginx.wait_for(lambda: status(nginx)["workers"] == 2, "the old worker is not counted")
        connection.sendall(b"\r\n")
        while connection.recv(4096):
            pass
    nginx.wait_for(lambda: status(nginx)["workers"] == 1, "the old worker does not end")
    assert wait_for_spans(nginx, exported=3)["spans"]["created"] == 3


def test_a_request_is_open_until_it_has_its_answer(
    nginx: Nginx, collector: Collector, upstream: StartUpstream
) -> None:
    release = threading.Event()

    def wait(handler: BaseHTTPRequestHandler, request: Received) -> None:
        release.wait(10)
        reply()(handler, request)

    server = upstream(wait)
    nginx.start(
        f"""{tracing(collector)}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ proxy_pass http://{server.address}; }}
            location = /json {{ omnitrace off; omnitrace_status json; }}
        }}"""
    )
    client = threading.Thread(target=get, args=(nginx,))
    client.start()
    nginx.wait_for(lambda: status(nginx)["open_requests"] == 1, "the request is not counted")
    release.set()
    client.join()
    books = wait_for_spans(nginx, exported=2)
    assert (books["open_requests"], books["events"]["recorded"]) == (0, 5)


def test_what_a_killed_worker_held_is_lost_and_said_so(nginx: Nginx, nobody: str) -> None:
    # Spans wait for a Collector that does not answer.
    directives = (
        "omnitrace on; omnitrace_legacy_log off;"
        f"omnitrace_exporter {{ endpoint {nobody}; interval 1h; }}"
    )
    nginx.start(site(nginx, directives))
    for _ in range(4):
        get(nginx)
    wait_for_spans(nginx, created=4, in_flight=4)
    [worker] = nginx.workers()
    os.kill(worker, signal.SIGKILL)
    nginx.wait_for(lambda: bool(nginx.workers() - {worker}), "no new worker")
    books = wait_for_spans(nginx, created=4, in_flight=0)
    assert books["spans"]["dropped"] == {**NOTHING["spans"]["dropped"], "worker_ended": 4}
    assert books["workers"] == 1
    (nginx.directory / "error.log").write_text("")


def test_what_is_logged_and_what_is_lost_are_told_apart(nginx: Nginx, collector: Collector) -> None:
    collector.status = 400
    directives = (
        f"omnitrace on; omnitrace_legacy_log fallback {nginx.directory}/log;"
        f"omnitrace_exporter {{ endpoint {collector.url}; interval 50ms; }}"
    )
    nginx.start(site(nginx, directives))
    get(nginx)
    wait_for_spans(nginx, created=1, logged=1)
    silent = directives.replace(f"fallback {nginx.directory}/log", "off")
    nginx.configure(site(nginx, silent), "daemon off;")
    renew_workers(nginx)
    get(nginx)
    books = wait_for_spans(nginx, created=2, logged=1, in_flight=0)
    assert books["spans"]["dropped"]["not_delivered"] == 1


METRICS = """\
# HELP omnitrace_spans_created_total Spans made.
# TYPE omnitrace_spans_created_total counter
omnitrace_spans_created_total 2
# HELP omnitrace_spans_exported_total Spans that a Collector has taken.
# TYPE omnitrace_spans_exported_total counter
omnitrace_spans_exported_total 2
# HELP omnitrace_spans_in_flight Spans that wait or are on the wire.
# TYPE omnitrace_spans_in_flight gauge
omnitrace_spans_in_flight 0
# HELP omnitrace_spans_logged_total Spans that are in the legacy log and that no Collector has taken.
# TYPE omnitrace_spans_logged_total counter
omnitrace_spans_logged_total 0
# HELP omnitrace_spans_dropped_total Spans lost.
# TYPE omnitrace_spans_dropped_total counter
omnitrace_spans_dropped_total{reason="queue_full"} 0
omnitrace_spans_dropped_total{reason="not_delivered"} 0
omnitrace_spans_dropped_total{reason="rejected"} 0
omnitrace_spans_dropped_total{reason="legacy_log_failed"} 0
omnitrace_spans_dropped_total{reason="worker_ended"} 0
omnitrace_spans_dropped_total{reason="other"} 0
# HELP omnitrace_spans_unsampled_total Spans not made because their trace is not sampled.
# TYPE omnitrace_spans_unsampled_total counter
omnitrace_spans_unsampled_total 0
# HELP omnitrace_spans_contradictory_total Spans not made because they would end before they start.
# TYPE omnitrace_spans_contradictory_total counter
omnitrace_spans_contradictory_total 0
# HELP omnitrace_events_total Events recorded.
# TYPE omnitrace_events_total counter
omnitrace_events_total 6
# HELP omnitrace_events_lost_total Events lost to a full queue.
# TYPE omnitrace_events_lost_total counter
omnitrace_events_lost_total 0
# HELP omnitrace_events_loose_total Events that are part of no span.
# TYPE omnitrace_events_loose_total counter
omnitrace_events_loose_total 0
# HELP omnitrace_open_requests Requests that may still get events.
# TYPE omnitrace_open_requests gauge
omnitrace_open_requests 0
# HELP omnitrace_workers Workers that trace, those that are about to end included.
# TYPE omnitrace_workers gauge
omnitrace_workers 1
"""


def test_prometheus_gets_its_own_format(nginx: Nginx, collector: Collector) -> None:
    nginx.start(site(nginx, tracing(collector)))
    get(nginx)
    get(nginx)
    wait_for_spans(nginx, exported=2)
    assert get(nginx, "/prometheus").text == METRICS


def kind(nginx: Nginx, path: str, accept: str | None) -> str:
    header = f"Accept: {accept}\r\n" if accept is not None else ""
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n"
    answer = raw(nginx, request.encode()).decode()
    found = re.search(r"Content-Type: (.*)\r\n", answer)
    assert found, answer
    return found[1]


JSON = "application/json"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
# What Prometheus 3 sends.
SCRAPE = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "text/plain;version=0.0.4;q=0.4,*/*;q=0.1"
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, JSON),
        ("*/*", JSON),
        ("", JSON),
        (BROWSER, JSON),
        ("application/json", JSON),
        ("text/plain;q=0.5, application/json", JSON),
        ("text/html", JSON),
        (SCRAPE, TEXT),
        ("text/plain", TEXT),
        ("TEXT/PLAIN", TEXT),
        ("text/*", TEXT),
        ("application/json;q=0.2, text/plain;q=0.3", TEXT),
        ("application/json;q=0, */*", TEXT),
    ],
)
def test_the_client_chooses_the_format_where_the_directive_does_not(
    accept: str | None, expected: str, nginx: Nginx
) -> None:
    nginx.start(site(nginx, "omnitrace off;"))
    assert kind(nginx, "/status", accept) == expected
    assert kind(nginx, "/json", accept) == JSON
    assert kind(nginx, "/prometheus", accept) == TEXT


def test_without_any_tracing_there_is_nothing_to_count(nginx: Nginx) -> None:
    nginx.start(site(nginx, "omnitrace off;"))
    assert status(nginx) == NOTHING


def test_head_and_other_methods_are_answered_as_everywhere(nginx: Nginx) -> None:
    nginx.start(site(nginx, "omnitrace off;"))
    assert get(nginx, "/json", method="HEAD") == Response(200, b"")
    assert get(nginx, "/json", method="POST", body=b"x").status == 405


@pytest.mark.parametrize(
    ("directives", "message"),
    [
        (
            "server { omnitrace_status yaml; }",
            'invalid value "yaml" in "omnitrace_status" directive, '
            'it must be "json" or "prometheus"',
        ),
        (
            "server { omnitrace_status; omnitrace_status json; }",
            '"omnitrace_status" directive is duplicate',
        ),
        ("omnitrace_status;", '"omnitrace_status" directive is not allowed here'),
    ],
)
def test_a_wrong_directive_is_named(directives: str, message: str, nginx: Nginx) -> None:
    nginx.configure(directives)
    assert nginx.test().startswith(f"[emerg] {message} in <dir>")
