"""Zooming into a chart of many points, in a real browser."""

from __future__ import annotations

import re

from playwright.sync_api import Page, Route, expect

from tests.browser.page_waits import wait_in_page
from tests.browser.stack import PATIENCE_S, Stack
from tests.browser.test_page import points_of, stop
from tests.processes import wait_until

POINTS = 20_000
FINER = re.compile(r"/jobs/20/metrics\?.*from=")
LONG = f"""
    import pathlib, time
    from trainwire import Run
    stop = pathlib.Path(__file__).with_suffix(".stop")
    with Run.from_env() as run:
        for step in range({POINTS}):
            run.metric(step=step, loss=step * 7919 % 1000)
        while not stop.exists():
            step += 1
            run.metric(step=step, loss=step * 7919 % 1000)
            time.sleep(0.1)
"""


def zoom(page: Page, first: float, last: float) -> None:
    """Drag over a part of the chart of the loss, from one fraction of its width to another."""
    box = page.locator("figure[data-title=loss] .u-over").bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * first, y)
    page.mouse.down()
    for part in (0.5, 1.0):
        page.mouse.move(box["x"] + box["width"] * (first + (last - first) * part), y)
    page.mouse.up()


def drawn_more_than(page: Page, points: int) -> None:
    """Wait until the chart of the loss has more points than these."""
    page.wait_for_function(
        "(least) => Number(document.querySelector(\".plot[aria-label^='loss ']\")?.ariaLabel"
        ".match(/([\\d,]+) point/)?.[1].replaceAll(',', '')) > least",
        arg=points,
    )


def shown_step(page: Page) -> int:
    """Return the step under the mouse that the chart of the loss shows."""
    return int(page.locator("figure[data-title=loss] .at").inner_text().removeprefix("step ").replace(",", ""))


def test_zooming_shows_every_point_and_later_ones(page: Page, stack: Stack) -> None:
    """Zooming in loads finer points, down to every point; live points arrive; a reset restores the first view."""
    stack.train(20, LONG)

    def is_stored() -> bool:
        answer = page.request.get("/jobs/20")
        return answer.ok and answer.json()["rows"]["metrics"] > POINTS

    wait_until(is_stored, "all points are stored", 4 * PATIENCE_S)
    page.goto("/#/jobs/20")
    drawn_more_than(page, 500)
    before = points_of(page, "loss")
    assert before < POINTS / 2
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route(FINER, hold)
    canvas = page.locator("figure[data-title=loss] canvas")
    zoom(page, 0.5, 0.51)
    expect(page.get_by_role("button", name="Reset zoom")).to_be_visible()
    wait_in_page(page, lambda: held, "a request for finer points")
    coarse = canvas.screenshot()
    with page.expect_response(FINER) as response:
        held[0].continue_()
    answer = response.value.json()
    steps = [point[0] for point in answer["series"][0]["points"]]
    assert answer["downsampled"] is False
    assert steps == list(range(steps[0], steps[-1] + 1))
    assert 100 < len(steps) < 1000
    drawn_more_than(page, before + len(steps) // 2)
    wait_in_page(page, lambda: canvas.screenshot() != coarse, "a finer chart")
    middle = steps[len(steps) // 4 : -len(steps) // 4]  # where the mouse is, now that this is all that is shown
    wait_in_page(page, lambda: shown_step(page) in middle, "the step under the mouse")
    fine = points_of(page, "loss")
    drawn_more_than(page, fine + 10)
    page.unroute(FINER)
    page.get_by_role("button", name="Reset zoom").click()
    page.wait_for_function(
        "(most) => Number(document.querySelector(\".plot[aria-label^='loss ']\").ariaLabel"
        ".match(/([\\d,]+) point/)[1].replaceAll(',', '')) < most",
        arg=fine - 50,
    )
    stop(stack, 20)
