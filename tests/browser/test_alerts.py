"""The log of alerts on the page."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, Page, expect
from sqlalchemy import update

from tests.browser.conftest import GATEWAY_PATIENCE_S, open_page
from tests.browser.seeds import add_alerts
from tests.gateway_server import GatewayServer
from trainwire.gateway.auth.tokens import create_token
from trainwire.schemas.tables import alerts
from trainwire.stores.postgres.alerts import ALERT_STATES
from trainwire.workers.resources import Resources


def test_the_log_shows_what_was_sent_and_why_others_wait(gateway_page: Page, resources: Resources) -> None:
    """New alerts and states appear by themselves; an outage names the destination, its error and what waits."""
    page = gateway_page
    page.goto("/")
    page.get_by_role("link", name="Alerts").click()
    expect(page.get_by_role("heading", name="No alerts yet")).to_be_visible()
    add_alerts(resources.engine)
    rows = page.locator("tr.alert")
    expect(rows).to_have_count(len(ALERT_STATES))
    expect(rows.last).to_contain_text("Job 7 is waiting <b>")
    expect(rows.last).to_contain_text("Not sent in 2 attempts: the webhook answered 503")
    expect(page.locator(".outages")).to_have_text(
        re.compile(r"^ops has accepted no alert since .*: the webhook answered 503\. 2 alerts waiting\.$")
    )
    with resources.engine.begin() as connection:
        connection.execute(update(alerts).where(alerts.c.state == "waiting").values(state="sent"))
    expect(rows.last.locator(".status")).to_have_text("sent")
    expect(rows.last.locator(".why")).to_have_count(0)


def test_states_and_jobs_are_chosen_in_the_address(gateway_page: Page, resources: Resources) -> None:
    """A reload shows the same choice; the empty answer has a button that clears it."""
    add_alerts(resources.engine)
    page = gateway_page
    page.goto("/#/alerts")
    page.get_by_role("button", name="Failed", exact=True).click()
    expect(page.locator("tr.alert .status")).to_have_text(["failed"])
    page.wait_for_url("**/#/alerts?state=failed")
    page.reload()
    expect(page.locator("tr.alert .status")).to_have_text(["failed"])
    page.goto("/#/alerts?job=8")
    expect(page.get_by_text("No matching alerts.")).to_be_visible()
    page.get_by_role("button", name="Clear filters").click()
    expect(page.locator("tr.alert")).to_have_count(len(ALERT_STATES))


def test_older_alerts_follow_page_by_page(gateway_page: Page, resources: Resources) -> None:
    """The button shows older ones below, and the refresh keeps them."""
    add_alerts(resources.engine, times=10)
    page = gateway_page
    page.goto("/#/alerts")
    expect(page.locator("tr.alert")).to_have_count(50)
    page.get_by_role("button", name="Show older alerts").click()
    expect(page.locator("tr.alert")).to_have_count(60)
    with page.expect_response("**/alerts?limit=60"):
        pass
    expect(page.locator("tr.alert")).to_have_count(60)
    expect(page.get_by_role("button", name="Show older alerts")).to_be_hidden()


def test_a_viewer_reads_the_log(chromium: Browser, guarded: GatewayServer, resources: Resources) -> None:
    """With tokens the role viewer is enough, as for all that is read."""
    add_alerts(resources.engine)
    with resources.engine.begin() as connection:
        _, token = create_token(connection, "reader", "viewer")
    with open_page(chromium, guarded.url, GATEWAY_PATIENCE_S) as page:
        page.goto("/#/alerts")
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("tr.alert")).to_have_count(len(ALERT_STATES))
