"""The list of jobs: more jobs than the live snapshot has, and rows that change while they are clicked."""

from __future__ import annotations

from playwright.sync_api import Browser, expect
from sqlalchemy import text

from tests.gateway_server import GatewayServer
from trainwire.workers.resources import Resources

JOBS = 500
TICK_MS = 5_000
"""How often the list draws its running jobs anew."""


def test_each_press_shows_older_jobs(chromium: Browser, gateway: GatewayServer, resources: Resources) -> None:
    """The newest 200 are shown; each press of the button adds the next 200, none twice, until all are shown."""
    with resources.engine.begin() as connection:
        made = "INSERT INTO training_jobs (id, name, status, attempt, created_at) "
        numbered = "SELECT n, 'job ' || n, 'completed', 1, now() - (500 - n) * interval '1 minute' "
        connection.execute(text(f"{made}{numbered}FROM generate_series(1, {JOBS}) n"))
    page = chromium.new_page()
    try:
        page.goto(gateway.url)
        page.locator("#connection[data-state=live]").wait_for()
        rows = page.locator("tr.job")
        for shown in (200, 400, JOBS):
            expect(rows).to_have_count(shown, timeout=20_000)
            if shown < JOBS:
                page.get_by_role("button", name="Older jobs").click()
        ids = page.evaluate("[...document.querySelectorAll('tr.job')].map((row) => Number(row.dataset.id))")
        assert ids == list(range(JOBS, 0, -1))
    finally:
        page.close()


def test_a_row_that_changes_while_it_is_pressed_still_opens(
    chromium: Browser, gateway: GatewayServer, resources: Resources
) -> None:
    """Between the press and the release of a button no row is replaced, so the click is not lost."""
    with resources.engine.begin() as connection:
        running = "INSERT INTO training_jobs (id, name, status, attempt) VALUES (7, 'busy', 'running', 1)"
        connection.execute(text(running))
    page = chromium.new_page()
    try:
        page.goto(gateway.url)
        page.locator("#connection[data-state=live]").wait_for()
        page.locator("tr.job a").hover()
        page.mouse.down()
        page.wait_for_timeout(TICK_MS * 1.5)
        page.mouse.up()
        expect(page.locator(".job-head h1")).to_have_text("busy")
        page.go_back()
        page.locator("tr.job a").hover()
        page.mouse.down()
        page.get_by_role("heading", name="Jobs").hover()
        page.mouse.up()
        page.locator("tr.job").evaluate("(row) => row.classList.add('before')")
        expect(page.locator("tr.job.before")).to_have_count(0, timeout=3 * TICK_MS)
    finally:
        page.close()
