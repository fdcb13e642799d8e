"""The button that stops a training, from the page to the trainer and back."""

from __future__ import annotations

from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import GATEWAY_PATIENCE_S, open_page
from tests.browser.stack import PATIENCE_S, Stack
from tests.gateway_server import GatewayServer
from trainwire.gateway.auth.tokens import create_token
from trainwire.schemas.tables import training_jobs
from trainwire.workers.resources import Resources

LOOP = """
    import time
    from trainwire import Run
    with Run.from_env() as run:
        for step in range(100_000):
            run.metric(step=step, loss=1 / (1 + step))
            time.sleep(0.05)
            if run.should_stop:
                print("saved", flush=True)
                break
"""


def test_the_button_stops_a_training(page: Page, stack: Stack) -> None:
    """After a confirmation with a reason the training ends by itself; page and list name who stopped it."""
    process = stack.train(60, LOOP, name="stop 50")
    page.goto("/#/jobs/60")
    button = page.get_by_role("button", name="Stop…")
    button.click()
    dialog = page.get_by_role("dialog", name="Stop job “stop 50”?")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    assert process.poll() is None
    button.click()
    dialog.get_by_label("Reason").fill("loss is NaN")
    dialog.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_text("Stopped by a user of the page after")).to_be_visible()
    expect(page.get_by_text("loss is NaN").first).to_be_visible()
    expect(button).to_be_hidden()
    assert process.wait(3 * PATIENCE_S) == 0
    page.goto("/")
    expect(page.locator("tr.job[data-id='60']").get_by_text("stopped by a user of the page")).to_be_visible()


def test_only_admins_have_the_button(chromium: Browser, guarded: GatewayServer, resources: Resources) -> None:
    """With a viewer's token the page of a running job has no button."""
    with resources.engine.begin() as connection:
        connection.execute(training_jobs.insert().values(id=61, name="shared", status="running"))
        token = create_token(connection, "viewers", "viewer")[1]
    with open_page(chromium, guarded.url, GATEWAY_PATIENCE_S) as page:
        page.goto("/#/jobs/61")
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="shared")).to_be_visible()
        expect(page.get_by_role("button", name="Stop…")).to_be_hidden()
