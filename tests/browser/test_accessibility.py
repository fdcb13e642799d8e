"""axe-core finds nothing serious on the pages, in both themes."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import text

from tests.browser.conftest import GATEWAY_PATIENCE_S, open_page
from tests.browser.seeds import Seeds, add_alerts
from tests.factories import Sender
from tests.gateway_server import GatewayServer
from trainwire.stores.postgres.alerts import ALERT_STATES
from trainwire.workers.resources import Resources

TABS = ("Charts", "Checkpoints", "Parameters", "Compare", "Delivery")
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def check(page: Page, theme: Literal["light", "dark"], where: str) -> None:
    """Fail on the serious and critical findings of axe."""
    page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    found: dict[str, Any] = page.evaluate(AXE_SCRIPT + "\naxe.run({ resultTypes: ['violations'] })")
    serious = [
        f"{where}, {theme}: {finding['id']} at {node['target']}: {node['html'][:200]} {node['failureSummary']}"
        for finding in found["violations"]
        if finding["impact"] in ("serious", "critical")
        for node in finding["nodes"]
    ]
    assert serious == []
    assert found["passes"] or found["inapplicable"]


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing_serious(
    gateway_page: Page, sender: Sender, resources: Resources, theme: Literal["light", "dark"]
) -> None:
    """Without jobs, with jobs of each status, with ticked rows, on each tab of a job, in dialogs and on errors."""
    page, seeds = gateway_page, Seeds(sender, resources)
    page.goto("/")
    expect(page.get_by_text("No runs yet")).to_be_visible()
    check(page, theme, "empty list")
    seeds.ranks(11)
    seeds.many(12, ["loss", "val/loss", "lr"])
    seeds.lines(11, "a line", "\x1b[31mred\x1b[0m", "WARNING: careful", "ERROR: broken", "Traceback (most recent")
    seeds.end(12)
    statuses = ("stalled", "lost", "failed", "pending", "ended")
    with resources.engine.begin() as connection:
        for number, status in enumerate(statuses):
            job = {"id": 20 + number, "status": status, "name": f"a {status} job", "note": "a note"}
            columns = "id, status, name, note, error_message, params, tags, created_at"
            values = (
                """:id, :status, :name, :note, 'out of memory', '{"lr"\\: 0.1}', '{"team"\\: "vision"}', now()"""
            )
            connection.execute(text(f"INSERT INTO training_jobs ({columns}) VALUES ({values})"), job)
    page.goto("/#/")
    expect(page.locator("tr.job")).to_have_count(7)
    check(page, theme, "list")
    page.locator("tr.job input").first.check()
    page.get_by_label("Filter jobs").fill("parms.lr < 1")
    expect(page.locator(".filter-problem")).to_be_visible()
    check(page, theme, "list with a wrong filter")
    page.get_by_role("button", name="Columns").click()
    check(page, theme, "columns")
    page.keyboard.press("Escape")
    for view, query in (
        ("groups", "by=status&unfold=failed"),
        ("scatter plot", "view=scatter&x=started&y=metrics.loss.min&color=status"),
        ("parallel coordinates", "view=parallel&axes=started,status,metrics.loss.min"),
    ):
        page.goto(f"/#/?{query}")
        drawn = page.locator("tr.job" if view == "groups" else ".plot-host .mark")
        expect(drawn.first).to_be_attached()
        check(page, theme, view)
    page.goto("/#/jobs/11?compare=12")
    expect(page.locator("figure[data-title=loss] .uplot")).to_be_visible()
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        page.wait_for_load_state("networkidle")
        check(page, theme, tab)
    page.keyboard.press("?")
    check(page, theme, "keyboard shortcuts")
    page.goto("/#/jobs/22")
    expect(page.locator(".failure-message")).to_be_visible()
    check(page, theme, "failed job")
    page.goto("/#/alerts")
    expect(page.get_by_text("No alerts yet")).to_be_visible()
    check(page, theme, "no alerts")
    add_alerts(resources.engine)
    expect(page.locator("tr.alert")).to_have_count(len(ALERT_STATES))
    check(page, theme, "alerts")
    page.goto("/#/jobs/99")
    expect(page.get_by_text("No job 99 yet.")).to_be_visible()
    check(page, theme, "unknown job")


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing_serious_at_the_sign_in(
    chromium: Browser, guarded: GatewayServer, theme: Literal["light", "dark"]
) -> None:
    """The form, and its answer to an invalid token."""
    with open_page(chromium, guarded.url, GATEWAY_PATIENCE_S) as page:
        page.goto("/")
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_have_text("Invalid, expired or revoked token.")
        check(page, theme, "sign-in")
