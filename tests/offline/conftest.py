"""What several of the tests begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

import chromium
import generate


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs of twelve requests."""
    folder = tmp_path_factory.mktemp("logs")
    generate.write(folder, 12)
    return folder


@pytest.fixture
def page() -> Iterator[Page]:
    with chromium.page() as opened:
        yield opened
