"""Waits for conditions on a page that no locator can state."""

from __future__ import annotations

import time
from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.browser.stack import PATIENCE_S

STILL_MS = 500


def wait_in_page(page: Page, condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait until the condition holds, while routes and other events of the page are handled."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        page.wait_for_timeout(50)


def lines_are_loaded(page: Page) -> None:
    """Wait until no row of the log is a placeholder for a line that is being read."""
    expect(page.locator(".line").first).to_be_attached()
    expect(page.locator(".line.is-coming")).to_have_count(0)
