"""A browser without a window."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

PATIENCE_MS = 60_000.0
"""How long the browser waits for what a page is to show."""


@contextlib.contextmanager
def page() -> Iterator[Page]:
    """An empty page of the machine's browser, high enough for a trace of fifty spans."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    program = next(filter(None, found), None)
    if program is None:
        pytest.skip("no browser: .ci/packages browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        try:
            opened = browser.new_page(viewport={"width": 1600, "height": 2400})
            opened.set_default_timeout(PATIENCE_MS)
            yield opened
        finally:
            browser.close()
