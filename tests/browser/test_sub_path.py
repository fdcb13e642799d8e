"""The page below a path of a real nginx, as docs/deploy.md sets it up."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.stack import PATIENCE_S, Stack
from tests.nginx import Nginx

SCRIPT = """
    import time
    from trainwire import Run
    with Run.from_env() as run:
        for epoch in range(3):
            print(f"epoch {epoch} below a path", flush=True)
            run.metric(epoch=epoch, step=epoch, loss=1 / (epoch + 1))
            time.sleep(0.2)
"""


def test_the_page_works_below_a_path_of_nginx(page: Page, stack: Stack, tmp_path: Path) -> None:
    """Login, list, live feed, charts, log and download: no request leaves the path, and none fails."""
    asked: list[tuple[int, str]] = []
    page.on("response", lambda answer: asked.append((answer.status, answer.url)))
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    with Nginx(tmp_path, stack.guarded_gateway()) as nginx:
        page.goto(nginx.url.rstrip("/"))
        page.get_by_label("Token").fill(stack.new_token())
        page.get_by_role("button", name="Sign in").click()
        training = stack.train(7_007, SCRIPT, name="below-a-path")
        page.get_by_text("below-a-path").first.click()
        expect(page.get_by_text("epoch 2 below a path")).to_be_visible()
        assert training.wait(3 * PATIENCE_S) == 0
        expect(page.locator("canvas").first).to_be_visible()
        page.reload()
        expect(page.get_by_text("epoch 2 below a path")).to_be_visible()
        failed = [(status, url) for status, url in asked if status >= 400 and status != 401]
        assert failed == []
        assert {url for _, url in asked if not url.startswith(nginx.url)} <= {nginx.url.rstrip("/")}
        assert sockets
        assert all(url.startswith(f"ws{nginx.url.removeprefix('http')}jobs/") for url in sockets)
        page.goto("about:blank")
