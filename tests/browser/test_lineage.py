"""Charts of attempts that were resumed, and of forks."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.seeds import Seeds
from tests.browser.test_charts import LOSS, described_as
from tests.factories import NOW_NS, Sender, drain
from trainwire.schemas.wire.messages import Metrics, Progress
from trainwire.workers.resources import Resources


@pytest.fixture
def seeds(sender: Sender, resources: Resources) -> Seeds:
    """Stores the jobs of a test."""
    return Seeds(sender, resources)


def resume(sender: Sender, resources: Resources, attempt: int, step: int, job: int = 51) -> None:
    """Store that an attempt was resumed from a step."""
    sender.send(
        Metrics(ts=NOW_NS, progress=Progress(resume_step=step)), job=job, source=f"0-{attempt}", attempt=attempt
    )
    drain(resources, "metrics", job)


def test_the_line_goes_on_and_the_rest_is_dim(
    gateway_page: Page, seeds: Seeds, sender: Sender, resources: Resources
) -> None:
    """The line of the newest attempt begins with the others up to their steps; what they had after it is dim."""
    seeds.points(51, lambda step: {"loss": 100.0 - step}, range(61), name="resumed")
    resume(sender, resources, 2, 40)
    seeds.points(51, lambda step: {"loss": 200.0 - step}, range(41, 81), attempt=2)
    resume(sender, resources, 3, 20)
    seeds.points(51, lambda step: {"loss": 300.0 - step}, range(21, 31), attempt=3)
    gateway_page.goto("/#/jobs/51")
    expect(gateway_page.locator(f"{LOSS} .legend-entry")).to_have_text(
        ["attempt 3 270", "attempt 2 · rolled back after step 20 120", "attempt 1 · rolled back after step 20 40"],
        use_inner_text=True,
    )
    # 31 of the line (0 to 20 of attempt 1, 21 to 30 of attempt 3), 40 of attempt 2 and 40 of attempt 1
    described_as(gateway_page, "loss", "111 points")
    dim = gateway_page.locator(f"{LOSS} .legend-entry.is-dim")
    expect(dim).to_have_count(2)
    expect(gateway_page.locator(".job-state")).to_contain_text("Attempt 3, resumed from step 20.")
    gateway_page.get_by_role("button", name=re.compile("^attempt 2$")).click()
    expect(gateway_page.locator(f"{LOSS} .legend-entry")).to_have_count(2)


def test_a_fork_begins_with_the_line_of_its_parent(
    gateway_page: Page, seeds: Seeds, sender: Sender, resources: Resources
) -> None:
    """The chart of a fork has the dim line of its parent up to the step; each page has a link to the other."""
    seeds.points(52, lambda step: {"loss": 100.0 - step, "unused": 1.0}, range(61), name="origin")
    sender.send(Metrics(ts=NOW_NS, parent_id=52, fork_step=40, name="branch"), job=53, source="0-1")
    drain(resources, "metrics", 53)
    seeds.points(53, lambda step: {"loss": 500.0 - step}, range(41, 51), name="branch")
    gateway_page.goto("/#/jobs/53")
    expect(gateway_page.locator(f"{LOSS} .legend-entry")).to_have_text(
        ["450", "origin up to step 40 60"], use_inner_text=True
    )
    described_as(gateway_page, "loss", r"\b51 points")
    expect(gateway_page.locator("figure[data-title=unused]")).to_have_count(0)
    expect(gateway_page.locator(".lineage")).to_have_text("Forked from job 52 at step 40.")
    gateway_page.get_by_role("link", name="job 52").click()
    expect(gateway_page.locator(".lineage")).to_have_text("Forks: job 53.")
    expect(gateway_page.locator(f"{LOSS} .legend-entry")).to_have_count(1)
