"""What the tests start is ended, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import Stack
from third_party import Collector


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[type[Collector]]:
    """The class; whatever a test has started is stopped afterwards."""
    started: list[Collector] = []

    class Tracked(Collector):
        def start(self) -> None:
            started.append(self)
            super().start()

    yield Tracked
    for each in started:
        each.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def stacks() -> Iterator[list[Stack]]:
    """Stacks that are closed afterwards, whatever happens."""
    opened: list[Stack] = []
    yield opened
    for each in opened:
        each.close()
