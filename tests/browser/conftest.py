"""A headless Chromium and a running stack, one of each for all browser tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.stack import PATIENCE_S, Stack
from tests.gateway_server import GatewayServer

GATEWAY_PATIENCE_S = 60
expect.set_options(timeout=PATIENCE_S * 1000)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.blockedURI));
"""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium: Playwright's own browser is not needed."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        reason = "no Chromium on the PATH (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def stack(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:  # noqa: ARG001
    """A running stack, started only if a browser is installed."""
    home: Path = tmp_path_factory.mktemp("browser")
    with Stack(home) as started:
        yield started


@pytest.fixture
def page(chromium: Browser, stack: Stack) -> Iterator[Page]:
    """A page of the stack, where trainings can run."""
    with open_page(chromium, stack.url, PATIENCE_S) as page:
        yield page


@pytest.fixture
def gateway_page(chromium: Browser, gateway: GatewayServer) -> Iterator[Page]:
    """A page of a gateway alone, whose jobs a test stores itself."""
    with open_page(chromium, gateway.url, GATEWAY_PATIENCE_S) as page:
        yield page


@contextmanager
def open_page(chromium: Browser, url: str, timeout_s: float) -> Iterator[Page]:
    """Open a page; fails on an error of a script or a violation of the content-security policy."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, base_url=url)
    context.add_init_script(WATCH)
    page = context.new_page()
    page.set_default_timeout(timeout_s * 1000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Security Policy" in message.text else None)
    try:
        yield page
        violations = page.evaluate("window.violations")
    finally:
        context.close()  # the page of a test that fails would go on reading
    assert (errors, violations) == ([], [])
