"""A Collector for each test, and programs that send to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from program import Program
from sink import Sink


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()
    yield sink
    sink.close()


@pytest.fixture
def program(sink: Sink, tmp_path: Path) -> Program:
    return Program(sink.url, tmp_path / "log", tmp_path)
