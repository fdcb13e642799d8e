"""The page while a server of the stack is frozen: the bar never claims to be live, and all recovers by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import GATEWAY_PATIENCE_S, open_page
from tests.browser.seeds import Seeds
from tests.factories import Sender
from tests.gateway_server import GatewayServer, gateway_settings
from tests.tcp_proxy import TcpProxy, proxied
from trainwire.gateway.feed import heartbeats
from trainwire.workers.resources import Resources

CONNECTION = "#connection span"
SHORT_TIMEOUTS = (
    "((real) => { AbortSignal.timeout = (ms) => real.call(AbortSignal, ms / 6); })(AbortSignal.timeout);"
)


@pytest.fixture
def seeds(sender: Sender, resources: Resources) -> Seeds:
    """Stores the jobs of a test."""
    return Seeds(sender, resources)


@pytest.fixture
def frozen(
    chromium: Browser, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Page, TcpProxy]]:
    """A page of a gateway whose Postgres can be frozen; requests wait for a short time only."""
    monkeypatch.setattr(heartbeats, "CHECK_EVERY_S", 0.2)
    monkeypatch.setattr(heartbeats, "ANSWER_TIMEOUT_S", 1.0)
    with (
        proxied(database_url) as (proxy, url),
        GatewayServer(gateway_settings(url, redis_url)) as gateway,
        open_page(chromium, gateway.url, GATEWAY_PATIENCE_S) as page,
    ):
        page.add_init_script(SHORT_TIMEOUTS)
        try:
            yield page, proxy
        finally:
            proxy.thaw()


def test_a_frozen_postgres(frozen: tuple[Page, TcpProxy], seeds: Seeds) -> None:
    """The bar names a frozen Postgres, charts and the list stop loading, and both go on once it answers."""
    page, proxy = frozen
    seeds.many(61, ["loss", "accuracy"])
    page.goto("/#/jobs/61")
    bar = page.locator(CONNECTION)
    expect(bar).to_have_text("Live")
    expect(page.locator(".plot[aria-label*=' 30 points']")).to_have_count(2)
    proxy.freeze()
    expect(bar).to_have_text("Not live: Postgres does not answer")
    page.goto("/#/")
    expect(page.locator(".list-said")).to_contain_text(re.compile("No answer .* Retrying"))
    page.goto("/#/jobs/61")
    expect(bar).to_have_text("Not live: Postgres does not answer")
    proxy.thaw()
    expect(page.locator(".plot[aria-label*=' 30 points']")).to_have_count(2)
    expect(bar).to_have_text("Live")


def test_charts_of_a_postgres_that_freezes_between(frozen: tuple[Page, TcpProxy], seeds: Seeds) -> None:
    """Charts whose points do not arrive name the reason and are read again, until they arrive."""
    page, proxy = frozen
    seeds.many(62, ["loss"])
    page.goto("/#/jobs/62?filter=none")
    expect(page.get_by_text("No matching metrics.")).to_be_visible()
    proxy.freeze()
    page.get_by_label("Filter metrics by a regular expression").fill("")
    note = page.locator("figure[data-title=loss] .note")
    expect(note).to_contain_text(re.compile("Retrying"))
    proxy.thaw()
    expect(page.locator(".plot[aria-label*=' 30 points']")).to_have_count(1)
    expect(note).to_have_text("")


def test_a_frozen_gateway(chromium: Browser, gateway: GatewayServer, seeds: Seeds) -> None:
    """Without heartbeats the connection counts as lost, and a gateway that goes on is found again."""
    seeds.many(63, ["loss"])
    with proxied(gateway.url) as (proxy, url), open_page(chromium, url, GATEWAY_PATIENCE_S) as page:
        page.clock.install()
        page.goto("/#/jobs/63")
        expect(page.locator(CONNECTION)).to_have_text("Live")
        proxy.freeze()
        page.clock.fast_forward(30_000)
        expect(page.locator("#connection")).not_to_have_attribute("data-state", "live")
        proxy.thaw()
        expect(page.locator("#connection")).to_have_attribute("data-state", "live")
