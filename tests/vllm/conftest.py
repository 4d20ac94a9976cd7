"""These tests start a real vLLM: some gigabytes and some minutes. `make test-vllm` runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from stack import Stack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("OMNITRACE_TEST_VLLM") != "1":
        skip = pytest.mark.skip(reason="make test-vllm runs it")
        for item in items:
            if "tests/vllm" in str(item.path):
                item.add_marker(skip)


@pytest.fixture
def stacks() -> Iterator[list[Stack]]:
    """Stacks that are closed afterwards, whatever happens."""
    opened: list[Stack] = []
    yield opened
    for each in opened:
        each.close()
