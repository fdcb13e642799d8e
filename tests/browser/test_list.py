"""The list of more jobs than the live snapshot has."""

from __future__ import annotations

from playwright.sync_api import Browser, expect
from sqlalchemy import text

from tests.gateway_server import GatewayServer
from workers.resources import Resources

JOBS = 500


def test_each_press_shows_older_jobs(chromium: Browser, gateway: GatewayServer, resources: Resources) -> None:
    """The newest 200 are there; each press of the button brings the next 200, none twice, until all are shown."""
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
