"""Tests of a job that is deleted while its page and the list of jobs are open."""

from __future__ import annotations

from playwright.sync_api import Browser, expect
from sqlalchemy import text

from tests.gateway_server import GatewayServer
from trainwire.stores.postgres.deletion import Choice, begin_deletion, publish_deletion
from trainwire.workers.resources import Resources


def test_a_deleted_job_leaves_the_pages(chromium: Browser, gateway: GatewayServer, resources: Resources) -> None:
    """The other job stays in the list; the page of the deleted job reports the deletion, also after a reload."""
    with resources.engine.begin() as connection:
        made = "INSERT INTO training_jobs (id, name, status, attempt) VALUES "
        connection.execute(text(f"{made}(7, 'secret', 'completed', 1), (8, 'other', 'completed', 1)"))
    listed, page = chromium.new_page(), chromium.new_page()
    try:
        listed.goto(gateway.url)
        expect(listed.locator("tr.job")).to_have_count(2)
        page.goto(f"{gateway.url}/#/jobs/7")
        expect(page.locator(".job-head h1")).to_have_text("secret")
        with resources.engine.begin() as connection:
            deletion = begin_deletion(connection, 7, Choice(), by="a test")
        publish_deletion(resources.redis, deletion)
        expect(listed.locator("tr.job")).to_have_count(1)
        expect(listed.locator("tr.job .name")).to_have_text("other")
        heading = page.get_by_role("heading", name="Job 7 was deleted")
        expect(heading).to_be_visible()
        page.reload()
        expect(heading).to_be_visible()
    finally:
        listed.close()
        page.close()
