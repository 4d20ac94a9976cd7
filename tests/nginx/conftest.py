"""The parts of a test: a Collector, upstreams and an nginx, each of its own and ended with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nginx_peers import Answer, Collector, StartUpstream, Upstream, reply
from nginx_server import MODULE, NGINX, Nginx

from ports import hold_port, port_of


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def nobody() -> Iterator[str]:
    """Where no Collector listens."""
    with hold_port() as held:
        yield f"http://127.0.0.1:{port_of(held)}"


@pytest.fixture
def upstream() -> Iterator[StartUpstream]:
    running = []

    def start(answer: Answer | None = None) -> Upstream:
        running.append(Upstream(answer or reply()))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    assert NGINX, "no nginx on the PATH: apt-get install nginx"
    assert Path(MODULE).exists(), f"{MODULE} is missing: make module"
    (tmp_path / "nginx").mkdir()
    nginx = Nginx(tmp_path / "nginx")
    yield nginx
    nginx.held.close()
    nginx.stop()
    nginx.assert_healthy()
    for books in nginx.books():
        accounted = ("exported", "logged", "dropped", "in flight")
        assert books["created"] == sum(books[name] for name in accounted)
