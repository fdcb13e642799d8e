"""The charts of a job's page: ranks, comparisons, many metrics, backoff, the address, files, and keys."""

from __future__ import annotations

import csv
import math
import re
import time
from itertools import pairwise

import pytest
from playwright.sync_api import Page, Route, expect
from sqlalchemy import text

from tests.browser.page_waits import STILL_MS, wait_in_page
from tests.browser.seeds import Seeds
from tests.factories import Sender
from tests.gateway_server import GatewayServer
from trainwire.workers.resources import Resources

LONG_PAUSE_S = 3.8
LOSS = "figure[data-title=loss]"
TILE = ".head-metrics .tile"
SCROLL_TO_ALL = """
(figures) => {
    const panels = document.querySelector(".panels");
    panels.scrollTo(0, panels.scrollHeight);
    return document.querySelectorAll("figure").length === figures;
}
"""


@pytest.fixture
def seeds(sender: Sender, resources: Resources) -> Seeds:
    """Stores the jobs of a test."""
    return Seeds(sender, resources)


def described(page: Page, metric: str) -> str:
    """Return the label of a chart once its points are drawn."""
    plot = page.locator(f"figure[data-title='{metric}'] .plot")
    expect(plot).to_have_attribute("aria-label", re.compile(r": [1-9][\d,]* point"))
    return plot.get_attribute("aria-label") or ""


def described_as(page: Page, metric: str, label: str) -> None:
    """Wait until the label of a chart has this pattern: its points may arrive one after the other."""
    plot = page.locator(f"figure[data-title='{metric}'] .plot")
    expect(plot).to_have_attribute("aria-label", re.compile(label))


def test_ranks_are_told_apart(gateway_page: Page, seeds: Seeds) -> None:
    """Each rank has a colour and a name; the mean with its range is a choice; tiles name their ranks."""
    seeds.ranks(11)
    seeds.points(11, lambda _: {"only": 5.0}, [40], rank=3)
    gateway_page.goto("/#/jobs/11")
    described_as(gateway_page, "loss", "rank 0 last 1, rank 1 last 2, rank 2 last 3, rank 3 last 4$")
    entries = gateway_page.locator(f"{LOSS} .legend-entry")
    expect(entries).to_have_text([re.compile(f"^rank {rank}") for rank in range(4)])
    colors = entries.locator("line").evaluate_all("(all) => all.map((each) => each.getAttribute('stroke'))")
    assert len(set(colors)) == 4
    expect(gateway_page.locator(TILE, has_text="loss")).to_have_text("loss 2.5 mean of 4 ranks")
    expect(gateway_page.locator(TILE, has_text="only")).to_have_text("only 5 rank 3")
    gateway_page.get_by_role("button", name="Mean of ranks").click()
    expect(entries).to_have_text("mean of 4 ranks2.5 (1 to 4)")
    gateway_page.get_by_role("button", name="Mean of ranks").click()
    gateway_page.get_by_role("group", name="Ranks").get_by_role("button", name="rank 2").click()
    expect(entries).to_have_count(3)


def test_ranks_without_a_new_value_are_counted(gateway_page: Page, seeds: Seeds) -> None:
    """A mean without a rank whose last value is older than the newest 500 rows says so; a lone rank is named."""
    seeds.points(17, lambda _: {"loss": 9.0}, range(3), rank=2)
    seeds.points(17, lambda _: {"loss": 1.0}, range(300), rank=1)
    seeds.points(17, lambda _: {"loss": 2.0, "only": 3.0}, range(300), rank=0)
    gateway_page.goto("/#/jobs/17")
    tile = gateway_page.locator(TILE, has_text="loss")
    expect(tile).to_have_text("loss 1.5 mean of 2 of 3 ranks")
    expect(gateway_page.locator(TILE, has_text="only")).to_have_text("only 3 rank 0")
    seeds.points(17, lambda _: {"loss": 4.5}, [300], rank=2, attempt=1)
    expect(tile).to_have_text("loss 2.5 mean of 3 ranks")


def test_any_name_has_its_points(gateway_page: Page, seeds: Seeds) -> None:
    """Metrics whose names have white space at their ends, backslashes and commas have charts."""
    names = (" lead trail ", "\\", "a\\,b", "\n", "new\nline", "loss")
    seeds.points(18, lambda step: dict.fromkeys(names, step), range(9))
    gateway_page.goto("/#/jobs/18")
    expect(gateway_page.locator(".plot[aria-label*=' 9 points']")).to_have_count(6)


def test_a_metric_has_one_tile(gateway_page: Page, seeds: Seeds, resources: Resources) -> None:
    """The final value of `acc` is that of the points `accuracy`, and is shown once."""
    seeds.points(16, lambda _: {"acc": 0.5, "constructor": 1.0}, range(3))
    seeds.end(16)
    with resources.engine.begin() as connection:
        final = 'UPDATE training_jobs SET final_metrics = \'{"acc"\\: 0.75, "constructor"\\: 1}\' WHERE id = 16'
        connection.execute(text(final))
    gateway_page.goto("/#/jobs/16")
    expect(gateway_page.locator(TILE)).to_have_text(["accuracy 0.75", "constructor 1"])


def test_a_chart_of_nan_has_whole_labels(gateway_page: Page, seeds: Seeds) -> None:
    """Without a vertical axis the first label of the horizontal axis has room at the left."""
    seeds.points(19, lambda _: {"loss": math.nan}, range(9))
    gateway_page.goto("/#/jobs/19")
    described(gateway_page, "loss")
    over = gateway_page.locator(f"{LOSS} .u-over")
    assert over.evaluate("(over) => over.offsetLeft") >= 20


def test_the_final_values_of_ranks_name_their_rank(gateway_page: Page, seeds: Seeds, resources: Resources) -> None:
    """After the end a tile names the rank that has the final value, or that it is final if none has it."""
    seeds.ranks(12)
    seeds.end(12)
    with resources.engine.begin() as connection:
        final = 'UPDATE training_jobs SET final_metrics = \'{"loss"\\: 3, "accuracy"\\: 0.7}\''
        connection.execute(text(final))
    gateway_page.goto("/#/jobs/12")
    expect(gateway_page.locator(TILE, has_text="loss").first).to_have_text("loss 3 rank 2")
    expect(gateway_page.locator(TILE, has_text="accuracy").first).to_have_text("accuracy 0.7 final")


def test_a_comparison_is_whole_and_live(gateway_page: Page, seeds: Seeds) -> None:
    """All metrics of the compared jobs are listed, ranks stay apart, and a compared job that runs goes on."""
    names = [f"m{number:02}" for number in range(29)]
    seeds.many(21, names)
    seeds.many(22, names)
    seeds.ranks(22, steps=10)
    gateway_page.goto("/#/jobs/21?compare=22")
    expect(gateway_page.locator(".metrics-menu summary")).to_have_text("31 metrics")
    described_as(gateway_page, "loss", "^(?:(?!rank ).)*(?:rank (?:(?!rank ).)*){4}$")
    described(gateway_page, "m00")
    plot = gateway_page.locator("figure[data-title=m00] .plot")
    expect(plot).to_have_attribute("aria-label", re.compile("last .* last "))  # of both jobs
    seeds.points(22, lambda _: {"m00": 77.0}, [30, 31])
    expect(plot).to_have_attribute("aria-label", re.compile("last 77"))
    gateway_page.get_by_label("Compare with a job").fill("23")
    gateway_page.keyboard.press("Enter")
    expect(gateway_page.locator(".chart-status")).to_have_text("No job 23 yet.")


def test_all_of_many_metrics_are_listed(gateway_page: Page, seeds: Seeds) -> None:
    """Of 150 metrics all are listed, in sections; charts are read as they come into view; a filter finds any."""
    names = [f"train/layer{number:03}/grad" for number in range(120)] + [f"eval/f{number}" for number in range(30)]
    seeds.many(31, [*names, "loss", "a,b"])
    asked: list[str] = []
    gateway_page.on(
        "request", lambda request: asked.append(request.url) if "/metrics?names=" in request.url else None
    )
    gateway_page.goto("/#/jobs/31?fold=system")
    described(gateway_page, "loss")
    described(gateway_page, "a,b")
    expect(gateway_page.locator(".metrics-menu summary")).to_have_text("152 metrics")
    assert 0 < len(set(asked)) < 8
    assert not any("layer119" in url for url in asked)
    heads = gateway_page.locator(".section-fold")
    expect(heads.first).to_have_text("eval30")
    search = gateway_page.get_by_label("Filter metrics")
    search.fill("layer11[89]")
    expect(gateway_page.locator("figure")).to_have_count(2)
    described(gateway_page, "train/layer119/grad")
    search.fill("layer(")
    expect(gateway_page.locator(".chart-status")).to_contain_text("Not a regular expression")
    expect(search).to_have_attribute("aria-invalid", "true")
    search.fill("nothing like this")
    expect(gateway_page.get_by_text("No matching metrics.")).to_be_visible()
    search.fill("eval")
    gateway_page.locator("figure[data-title='eval/f7']").hover()
    gateway_page.get_by_role("button", name="Pin: eval/f7").click()
    expect(gateway_page.locator("figure").first).to_have_attribute("data-title", "eval/f7")
    gateway_page.locator("figure[data-title='eval/f7']").hover()
    gateway_page.get_by_role("button", name="Full screen: eval/f7").click()
    box = gateway_page.locator("figure.is-full").bounding_box()
    assert box is not None
    assert (box["width"], box["height"]) == (1280, 800)
    gateway_page.keyboard.press("Escape")
    expect(gateway_page.locator("figure.is-full")).to_have_count(0)
    search.fill("")
    gateway_page.wait_for_function(SCROLL_TO_ALL, arg=152)
    expect(gateway_page.locator("figure")).to_have_count(152)


def test_an_average_that_nobody_chose_is_named(gateway_page: Page, seeds: Seeds) -> None:
    """A series that would fill its chart is drawn as its local average, and the card has a note of that."""
    seeds.points(41, lambda step: {"loss": float(step % 2), "size": float(step)}, range(1000))
    gateway_page.goto("/#/jobs/41")
    described(gateway_page, "size")
    expect(gateway_page.locator(f"{LOSS} .note")).to_have_text("solid: local average")
    expect(gateway_page.locator("figure[data-title=size] .note")).to_have_text("")
    gateway_page.goto("/#/jobs/41?smooth=0.6")
    described(gateway_page, "size")
    expect(gateway_page.locator(f"{LOSS} .note")).to_have_text("")


def test_a_slow_chart_is_asked_for_less_and_less(gateway_page: Page, seeds: Seeds) -> None:
    """After 503 the pauses grow, the chart shows the reason, and it appears once the gateway answers."""
    seeds.many(41, ["loss"])
    times: list[float] = []

    def refuse(route: Route) -> None:
        times.append(time.monotonic())
        route.fulfill(status=503, json={"title": "Postgres", "detail": "Postgres took too long"})

    gateway_page.route(re.compile(r"/metrics\?names="), refuse)
    gateway_page.goto("/#/jobs/41")
    note = gateway_page.locator(f"{LOSS} .note")
    expect(note).to_have_text("This chart is taking too long to load. Retrying…")

    def has_waited() -> bool:
        return any(after - before > LONG_PAUSE_S for before, after in pairwise(times))

    # Pauses of 1, 2 and 4 s; a layout that changes begins anew.
    wait_in_page(gateway_page, has_waited, "a long pause")
    assert len(times) <= 10
    gateway_page.unroute(re.compile(r"/metrics\?names="))
    described(gateway_page, "loss")
    expect(note).to_have_text("")


def test_pauses_grow_to_a_minute(gateway_page: Page, gateway: GatewayServer) -> None:
    """The pause after a failure doubles from one second up to a minute."""
    gateway_page.goto(gateway.url)
    script = (
        "async (tries) => { const { backoff } = await import('/page/js/backoff.js');"
        " return tries.map((number) => backoff(number)); }"
    )
    assert gateway_page.evaluate(script, [1, 2, 3, 6, 7, 50]) == [1000, 2000, 4000, 32000, 60000, 60000]


def test_the_address_has_the_whole_view(gateway_page: Page, seeds: Seeds) -> None:
    """A reload and the back button give the same axis, scale, smoothing, zoom, pins, and place in the log."""
    seeds.many(51, ["loss", "eval/f1", "eval/f2"], steps=100)
    seeds.lines(51, *(f"line {number}" for number in range(1, 3001)))
    gateway_page.goto("/#/jobs/51")
    described(gateway_page, "loss")
    gateway_page.get_by_role("button", name="relative").click()
    gateway_page.get_by_role("button", name="Log scale").click()
    gateway_page.get_by_role("button", name="Ignore outliers").click()
    gateway_page.get_by_label("Smoothing, a number").fill("0.6")
    gateway_page.get_by_label("Smoothing, a number").press("Enter")
    gateway_page.locator("figure[data-title='eval/f2']").hover()
    gateway_page.get_by_role("button", name="Pin: eval/f2").click()
    gateway_page.locator(".metrics-menu summary").click()
    gateway_page.get_by_role("checkbox", name="eval/f1").uncheck()
    gateway_page.keyboard.press("Escape")
    expect(gateway_page.locator("figure")).to_have_count(2)
    over = gateway_page.locator(f"{LOSS} .u-over")
    box = over.bounding_box()
    assert box is not None
    gateway_page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 40)
    gateway_page.mouse.down()
    gateway_page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 40, steps=4)
    gateway_page.mouse.up()
    expect(gateway_page.get_by_role("button", name="Reset zoom")).to_be_visible()
    gateway_page.get_by_label("Go to line or time").fill("1500")
    gateway_page.keyboard.press("Enter")
    expect(gateway_page.locator(".line[data-seq='1500'] .text")).to_be_visible()
    gateway_page.wait_for_function("() => /line=14\\d\\d/.test(location.hash)")
    view = still_view_of(gateway_page)
    assert view["axis"] == "Relative"
    assert view["pressed"] == ["Relative", "Log scale", "Ignore outliers", "★"]
    assert view["smoothing"] == "0.6"
    assert view["titles"] == ["eval/f2", "loss"]
    address = gateway_page.url
    gateway_page.reload()
    described(gateway_page, "loss")
    gateway_page.locator(f".line[data-seq='{view['line']}'] .text").wait_for()
    assert (gateway_page.url, still_view_of(gateway_page)) == (address, view)
    gateway_page.goto("/#/")
    gateway_page.get_by_role("heading", name="Jobs").wait_for()
    gateway_page.go_back()
    described(gateway_page, "loss")
    gateway_page.locator(f".line[data-seq='{view['line']}'] .text").wait_for()
    assert still_view_of(gateway_page) == view
    gateway_page.get_by_label("Search the log").fill("line 29")
    gateway_page.get_by_role("tab", name="Parameters").click()
    gateway_page.wait_for_function(
        "() => location.hash.includes('search=') && location.hash.includes('tab=facts')"
    )
    gateway_page.reload()
    expect(gateway_page.get_by_label("Search the log")).to_have_value("line 29")
    expect(gateway_page.get_by_role("tab", name="Parameters")).to_have_attribute("aria-selected", "true")
    expect(gateway_page.locator(".log-said")).to_contain_text("111 of")


def view_of(page: Page) -> dict[str, object]:
    """Return what is shown."""
    found: dict[str, object] = page.evaluate(
        """() => ({
            axis: document.querySelector(".segments [aria-pressed=true]").textContent,
            pressed: [...document.querySelectorAll(".charts [aria-pressed=true]")].map((each) => each.textContent),
            smoothing: document.querySelector(".smoothing input[type=number]").value,
            titles: [...document.querySelectorAll("figure")].map((each) => each.dataset.title),
            zoom: new URLSearchParams(location.hash.split("?")[1]).get("zoom"),
            line: new URLSearchParams(location.hash.split("?")[1]).get("line"),
        })"""
    )
    return found


def still_view_of(page: Page) -> dict[str, object]:
    """Return what is shown, once it no longer changes: the address follows scrolls and drags a moment later."""
    seen: list[dict[str, object]] = [view_of(page)]

    def is_still() -> bool:
        page.wait_for_timeout(STILL_MS)
        seen.append(view_of(page))
        return seen[-1] == seen[-2]

    wait_in_page(page, is_still, "a view that does not change")
    return seen[-1]


def test_charts_as_files(gateway_page: Page, seeds: Seeds) -> None:
    """A chart is downloaded as CSV with all its points and as PNG; all metrics as one CSV."""
    seeds.points(61, lambda step: {"loss": step / 2, "=f": float("nan")}, range(3), name="files")
    gateway_page.goto("/#/jobs/61")
    described(gateway_page, "loss")
    gateway_page.locator(LOSS).hover()
    with gateway_page.expect_download() as download:
        gateway_page.get_by_role("button", name="Download as CSV: loss").click()
    assert download.value.suggested_filename == "job-61.loss.csv"
    rows = list(csv.DictReader(download.value.path().read_text().splitlines()))
    assert [(row["step"], row["value"]) for row in rows] == [("0", "0"), ("1", "0.5"), ("2", "1")]
    with gateway_page.expect_download() as download:
        gateway_page.get_by_role("button", name="Download as PNG: loss").click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")
    gateway_page.get_by_text("Share", exact=True).click()
    with gateway_page.expect_download() as download:
        gateway_page.get_by_role("button", name="Download all as CSV").click()
    rows = list(csv.DictReader(download.value.path().read_text().splitlines()))
    assert [row["metric"] for row in rows] == ["loss"] * 3 + ["'=f"] * 3
    assert rows[-1]["value"] == "NaN"


def test_all_charts_as_one_image(gateway_page: Page, seeds: Seeds) -> None:
    """The image has the charts that are not in view too, in two columns."""
    seeds.many(62, [f"layer/{number}/norm" for number in range(31)])
    gateway_page.goto("/#/jobs/62")
    expect(gateway_page.locator(".section-head")).to_have_text("layer31")
    gateway_page.get_by_text("Share", exact=True).click()
    with gateway_page.expect_download() as download:
        gateway_page.get_by_role("button", name="Download all as PNG").click()
    assert download.value.suggested_filename == "job-62.png"
    head = download.value.path().read_bytes()[:24]
    width, height = (int.from_bytes(head[at : at + 4]) for at in (16, 20))
    assert width > 2 * 500
    assert height > 16 * 260
    expect(gateway_page.locator(".charts-apart")).to_have_count(0)


def test_a_chart_is_used_with_keys(gateway_page: Page, seeds: Seeds) -> None:
    """Arrow keys move from point to point and announce the values; Enter shows the log of that moment."""
    seeds.many(71, ["loss"], steps=5)
    seeds.lines(71, "first", "second")
    gateway_page.goto("/#/jobs/71")
    described(gateway_page, "loss")
    gateway_page.locator(f"{LOSS} .plot").focus()
    for key in ("Home", "ArrowRight", "ArrowRight"):
        gateway_page.keyboard.press(key)
    expect(gateway_page.locator(f"{LOSS} [role=status]")).to_have_text("step 2: 0.8007")
    with gateway_page.expect_request(re.compile(r"/logs\?at=")):
        gateway_page.keyboard.press("Enter")


def test_a_job_with_lines_alone_shows_them_on_the_whole_width(gateway_page: Page, seeds: Seeds) -> None:
    """Without metrics the log is as wide as the page; with the first metric the charts take their place."""
    seeds.lines(81, "only a line")
    gateway_page.goto("/#/jobs/81")
    gateway_page.locator(".line .text", has_text="only a line").wait_for()
    expect(gateway_page.locator(".log")).to_have_js_property("clientWidth", 1280)
    gateway_page.get_by_role("tab", name="Charts").click()
    expect(
        gateway_page.get_by_text("No metrics logged yet. Call run.metric(loss=…) to see charts here.")
    ).to_be_visible()
    gateway_page.get_by_role("tab", name="Log").click()
    seeds.points(81, lambda _: {"loss": 1.0}, [1])
    described(gateway_page, "loss")
    expect(gateway_page.locator(".log .line")).to_have_count(1)


def test_the_log_has_no_tab_beside_the_charts(gateway_page: Page, seeds: Seeds) -> None:
    """A link to the tab Log from a phone, the key 6 and a wider window leave the charts beside the log."""
    seeds.points(86, lambda _: {"loss": 1.0}, [1])
    seeds.lines(86, "a line")
    charts = gateway_page.get_by_role("tab", name="Charts")
    gateway_page.goto("/#/jobs/86?tab=log")
    expect(charts).to_have_attribute("aria-selected", "true")
    gateway_page.keyboard.press("6")
    expect(gateway_page.locator(".log-view")).to_be_focused()
    expect(charts).to_have_attribute("aria-selected", "true")
    gateway_page.set_viewport_size({"width": 390, "height": 800})
    gateway_page.keyboard.press("6")
    expect(gateway_page.get_by_role("tab", name="Log")).to_have_attribute("aria-selected", "true")
    gateway_page.set_viewport_size({"width": 1280, "height": 800})
    expect(charts).to_have_attribute("aria-selected", "true")
    described(gateway_page, "loss")


def test_a_job_without_lines_expects_them_until_it_has_ended(gateway_page: Page, seeds: Seeds) -> None:
    """The log shows that there is no output yet; after the end the charts have its place, until a line comes."""
    seeds.points(85, lambda _: {"loss": 1.0}, [1])
    gateway_page.goto("/#/jobs/85")
    empty = gateway_page.locator(".log-empty")
    expect(empty).to_have_text("No output yet.")
    hint = gateway_page.locator(".chart-hint")
    expect(hint).to_have_text("Click a point to see the log at that moment. Drag to zoom.")
    seeds.end(85)
    expect(gateway_page.locator(".log")).to_be_hidden()
    expect(hint).to_have_text("Drag to zoom.")
    expect(gateway_page.locator(".side")).to_have_js_property("clientWidth", 1280)
    gateway_page.get_by_role("tab", name="Log").click()
    expect(empty).to_have_text("No output.")
    seeds.lines(85, "a late line")
    expect(gateway_page.locator(".log .line")).to_have_count(1)
    described(gateway_page, "loss")


NAMES = """
() => {
  const problems = [];
  const isShown = (element) => element.checkVisibility();
  const named = (element) =>
    (element.getAttribute("aria-label") || element.getAttribute("title") || element.textContent ||
      [...(element.labels ?? [])].map((label) => label.textContent).join("")).trim();
  const controls = "button, a[href], input, select, summary, [role=tab], [role=group]";
  for (const element of document.querySelectorAll(controls))
    if (isShown(element) && !named(element)) problems.push(`no name: ${element.outerHTML.slice(0, 120)}`);
  let level = 0;
  for (const heading of document.querySelectorAll("h1, h2, h3, h4")) {
    if (!isShown(heading)) continue;
    const own = Number(heading.tagName[1]);
    if (own > level + 1) problems.push(`${heading.tagName} after H${level}: ${heading.textContent.slice(0, 60)}`);
    level = own;
  }
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) problems.push(`two elements #${id}`);
  for (const cell of document.querySelectorAll("th")) if (!cell.textContent.trim()) problems.push("an empty th");
  for (const attribute of ["aria-controls", "aria-labelledby"])
    for (const element of document.querySelectorAll(`[${attribute}]`))
      if (!document.getElementById(element.getAttribute(attribute))) problems.push(`${attribute} of nothing`);
  return problems;
}
"""


def test_everything_has_a_name_and_headings_are_in_order(gateway_page: Page, seeds: Seeds) -> None:
    """Each control of the job's page has a name, headings skip no level, and ids are unique, on each tab."""
    seeds.ranks(91)
    seeds.many(92, ["loss", "train/a", "train/b"])
    seeds.lines(91, "a line")
    gateway_page.goto("/#/jobs/91?compare=92")
    described(gateway_page, "train/a")
    for tab in ("Charts", "Checkpoints", "Parameters", "Delivery"):
        gateway_page.get_by_role("tab", name=tab).click()
        gateway_page.wait_for_load_state("networkidle")
        assert gateway_page.evaluate(NAMES) == []
