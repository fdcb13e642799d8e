"""What has room on the page, at the widths of a laptop and of a phone, and the words and colours of jobs."""

from __future__ import annotations

from itertools import pairwise

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import insert

from tests.browser.seeds import Seeds
from tests.factories import Sender
from trainwire.schemas.tables import stop_requests, training_jobs
from trainwire.workers.resources import Resources

MADE = 281_739_091_596_204_748
CUT = """
(inside) => [...document.querySelectorAll(`${inside} *`)]
    .filter((element) => element.checkVisibility() && !element.matches("option"))
    .filter((element) => {
        const [own, frame] = [element, document.querySelector(inside)].map((each) => each.getBoundingClientRect());
        return own.right > frame.right + 1 || own.left < frame.left - 1;
    })
    .map((element) => element.outerHTML.slice(0, 100))
"""
TIGHT = """
() => {
    const context = document.createElement("canvas").getContext("2d");
    const needed = (element) => {
        context.font = getComputedStyle(element).font;
        const words = element.selectedOptions?.[0].text ?? element.placeholder ?? element.textContent;
        return context.measureText(words).width;
    };
    return [...document.querySelectorAll(".log-bar select, .log-bar button, .log-bar .log-goto")]
        .filter((element) => element.checkVisibility() && element.clientWidth < needed(element))
        .map((element) => element.ariaLabel ?? element.textContent);
}
"""


@pytest.fixture
def several(sender: Sender, resources: Resources) -> Seeds:
    """A job with two attempts and lines of both and of two ranks."""
    seeds = Seeds(sender, resources)
    for attempt in (1, 2):
        seeds.points(5, lambda step: {"loss": 1 / (1 + step)}, range(20), attempt=attempt, rank=attempt - 1)
    seeds.lines(5, *(f"line {number}" for number in range(9)))
    return seeds


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("width", [390, 1000, 1300, 1700])
def test_the_bar_of_the_log_has_room_for_all_words(gateway_page: Page, width: int) -> None:
    """With a menu of attempts it takes a second row instead of cutting its menus."""
    page = gateway_page
    page.set_viewport_size({"width": width, "height": 800})
    page.goto("/#/jobs/5?tab=log" if width < 720 else "/#/jobs/5")
    expect(page.get_by_label("Attempt", exact=True)).to_be_visible()
    expect(page.locator(".line .text").first).to_be_visible()
    assert page.evaluate(CUT, ".log-bar") == []
    assert page.evaluate(TIGHT) == []


@pytest.mark.usefixtures("several")
def test_the_head_of_a_phone_has_room(gateway_page: Page, resources: Resources) -> None:
    """Long numbers are cut at their beginning, and nothing overlaps or leaves the window."""
    with resources.engine.begin() as connection:
        connection.execute(insert(training_jobs).values(id=MADE, status="running"))
    page = gateway_page
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"/#/jobs/{MADE}")
    expect(page.locator("#connection[data-state=live]")).to_be_visible()
    assert page.evaluate(CUT, ".bar") == []
    boxes = page.evaluate(
        "() => [...document.querySelectorAll('.bar > :not(.tools), .tools > *')]"
        ".filter((element) => element.checkVisibility())"
        ".map((element) => element.getBoundingClientRect()).map(({left, right}) => [left, right])"
    )
    assert all(right <= left for (_, right), (left, _) in pairwise(boxes))
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_made_numbers_show_their_ends(gateway_page: Page, resources: Resources) -> None:
    """The cell has the whole number, for copies and on hover, and is cut at its beginning."""
    with resources.engine.begin() as connection:
        for number in (MADE, MADE + 10**6 + 1):
            connection.execute(insert(training_jobs).values(id=number, status="completed"))
    page = gateway_page
    page.goto("/")
    cell = page.locator(f"tr.job[data-id='{MADE}'] .c-id")
    expect(cell).to_have_text(str(MADE))
    expect(cell).to_have_attribute("title", str(MADE))
    expect(cell).to_have_css("direction", "rtl")
    page.get_by_label("Search jobs").fill(str(MADE)[-6:])
    expect(page.locator("tr.job")).to_have_count(1)
    expect(cell).to_be_visible()


def test_a_stopped_job_is_neutral(gateway_page: Page, resources: Resources) -> None:
    """Somebody wanted it to end: its status and reason have no colour of errors or warnings."""
    with resources.engine.begin() as connection:
        connection.execute(insert(training_jobs).values(id=3, status="stopped", attempt=1))
        connection.execute(insert(stop_requests).values(job_id=3, attempt=1, requested_by="anna"))
    page = gateway_page
    page.goto("/")
    quiet = page.locator(".total").evaluate("(total) => getComputedStyle(total).color")
    for part in (".status", ".why"):
        expect(page.locator(f"tr.job {part}")).to_have_css("color", quiet)


def test_a_preempted_job_is_neutral(gateway_page: Page, resources: Resources) -> None:
    """Its scheduler starts it again: status and reason are grey, in the list and in the sentence of its page."""
    with resources.engine.begin() as connection:
        values = {"id": 3, "status": "preempted", "attempt": 1, "error_message": "SIGTERM in Slurm job 812"}
        connection.execute(insert(training_jobs).values(**values))
    page = gateway_page
    page.goto("/")
    quiet = page.locator(".total").evaluate("(total) => getComputedStyle(total).color")
    for part in (".status", ".why"):
        expect(page.locator(f"tr.job {part}")).to_have_css("color", quiet)
    expect(page.locator("tr.job .why")).to_have_text("SIGTERM in Slurm job 812")
    page.goto("/#/jobs/3")
    expect(page.get_by_text(": SIGTERM in Slurm job 812.")).to_be_visible()


def test_one_metric_is_no_plural(gateway_page: Page, sender: Sender, resources: Resources) -> None:
    """A job with a single metric has "1 metric"."""
    Seeds(sender, resources).many(4, ["loss"])
    gateway_page.goto("/#/jobs/4")
    expect(gateway_page.locator(".metrics-menu summary")).to_have_text("1 metric")


def test_compared_values_name_their_ranks(gateway_page: Page, sender: Sender, resources: Resources) -> None:
    """A job on several ranks is compared by the mean of its ranks, and the table says so."""
    seeds = Seeds(sender, resources)
    seeds.ranks(6)
    seeds.many(7, ["loss"])
    gateway_page.goto("/#/jobs/7?compare=6&tab=compare")
    row = gateway_page.locator(".differences tr", has_text="loss").first
    expect(row.locator("td").nth(1)).to_have_text("2.5 mean of 4 ranks")
    expect(row.locator("td").first).not_to_contain_text("rank")


def test_statuses_have_their_colours_in_plots(gateway_page: Page, resources: Resources) -> None:
    """A point of a failed job is as red as its status in the list."""
    with resources.engine.begin() as connection:
        for number, status in enumerate(("failed", "completed"), 1):
            job = {"id": number, "status": status, "params": {"lr": number}, "exit_code": number}
            connection.execute(insert(training_jobs).values(job))
    page = gateway_page
    page.goto("/")
    # A row that is drawn anew at this moment has no style.
    badge = "document.querySelector('.status.is-failed')"
    red = page.wait_for_function(f"() => {badge} && getComputedStyle({badge}).color").json_value()
    page.goto("/#/?view=scatter&x=params.lr&y=exit_code&color=status")
    expect(page.locator(".plot-host .mark").first).to_be_attached()
    fills = page.locator(".plot-host .mark").evaluate_all(
        "(marks) => marks.map((mark) => getComputedStyle(mark).fill)"
    )
    assert red in fills
    assert len(set(fills)) == 2


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("width", [390, 1280])
def test_no_menu_of_the_charts_is_cut(gateway_page: Page, width: int) -> None:
    """An open menu lies within the pane, at its right end too."""
    page = gateway_page
    page.set_viewport_size({"width": width, "height": 800})
    page.goto("/#/jobs/5")
    for menu in (".share", ".metrics-menu"):
        page.locator(f"{menu} summary").click()
        expect(page.locator(f"{menu} .menu-body")).to_be_visible()
        page.wait_for_function(f"!({CUT})('.side').some((each) => each.includes('menu-body'))")
        page.keyboard.press("Escape")  # an open menu may lie over the next one
        expect(page.locator(f"{menu} .menu-body")).to_be_hidden()
