"""Reloads under load: no request fails, no span is lost, no worker stays, memory does not grow.

`make reloads` does a hundred of them for each state of the Collector.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest
from nginx_peers import Collector
from nginx_server import Nginx, get
from test_nginx_life_cycle import exporting_to, logged_ids, total

RELOADS = int(os.environ.get("RELOADS", "4"))
WORKERS = 4
CLIENTS = 4


def resident(pid: int) -> int:
    """Memory of a process in kB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


@pytest.mark.parametrize("state", ["taking", "refusing", "silent", "failing"])
def test_reloads_under_load_lose_nothing(
    state: str, nginx: Nginx, collector: Collector, nobody: str
) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    collector.status = 503 if state == "failing" else 200
    url = {
        "refusing": nobody,
        "silent": f"http://127.0.0.1:{listener.getsockname()[1]}",
    }.get(state, collector.url)
    log = nginx.directory / "log"
    directives = exporting_to(url, log)
    if state == "taking":
        directives = directives.replace("timeout 500ms", "timeout 10s")
    nginx.start(
        f"""{directives}
        server {{
            listen 127.0.0.1:{nginx.port};
            location / {{ return 200; }}
            location /proxied {{ proxy_pass http://unix:{nginx.directory}/inner.sock; }}
        }}
        server {{ listen unix:{nginx.directory}/inner.sock; omnitrace off; return 200; }}""",
        main=f"worker_processes {WORKERS};",
    )
    assert nginx.process
    stop = threading.Event()
    sent = [0] * CLIENTS
    failures: list[str] = []

    def load(client: int) -> None:
        path = "/proxied" if client % 2 else "/"
        while not stop.is_set():
            try:
                status = get(nginx, path, {"X-Request-Id": f"{client}-{sent[client]}"}).status
            except OSError as error:
                failures.append(repr(error))
                return
            sent[client] += 1
            if status != 200:
                failures.append(str(status))

    clients = [threading.Thread(target=load, args=(client,)) for client in range(CLIENTS)]
    for client in clients:
        client.start()
    # What a configuration takes for good is taken by then.
    warm_up = max(2, RELOADS // 10)
    memory = 0
    for number in range(RELOADS):
        nginx.reload()
        if number == warm_up:
            memory = resident(nginx.process.pid)
    grown = resident(nginx.process.pid) - memory
    stop.set()
    for client in clients:
        client.join()
    assert failures == []
    nginx.wait_for(lambda: len(nginx.workers()) == WORKERS, "workers linger")
    nginx.stop()
    listener.close()

    expected = {f"{client}-{n}": 1 for client in range(CLIENTS) for n in range(sent[client])}
    logged = logged_ids(log) if log.exists() else Counter()
    roots = collector.named("Trace for Omni Proxy")
    exported = Counter(span.attributes["gen_ai.request.id"] for span in roots)
    assert set((exported + logged).values()) <= {1, 2}
    # What a Collector takes and confirms too late is in the log too, by the same ids.
    assert exported | logged == expected
    if state != "taking":
        assert exported == {}
    spans = sum(sent) + sum(sent[1::2])
    assert total(nginx, "created") == spans
    assert total(nginx, "exported") + total(nginx, "logged") == spans
    assert total(nginx, "events lost") == total(nginx, "dropped") == 0
    # A configuration that is not given back would be some hundred kB for each reload.
    assert grown < 1000 + 20 * RELOADS, f"{grown} kB"
