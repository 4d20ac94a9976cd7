"""A Collector for each test, and programs that send to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from program import COMMAND, Program
from sink import Sink


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()
    yield sink
    sink.close()


@pytest.fixture
def program(sink: Sink, tmp_path: Path) -> Program:
    return Program(sink.url, tmp_path / "log", tmp_path)


@pytest.fixture
def archive() -> Iterator[Sink]:
    """A Collector that legacy logs are replayed to."""
    if not COMMAND.exists():
        pytest.skip("the command is not built")
    archive = Sink()
    yield archive
    archive.close()
