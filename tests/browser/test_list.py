"""The list of jobs: thousands of jobs, sort orders, filters, columns, and changes of jobs."""

from __future__ import annotations

import re

from playwright.sync_api import Page, Route, expect
from sqlalchemy import text

from trainwire.workers.resources import Resources

JOBS = 2_000
TICK_MS = 5_000
"""How often the list draws its running jobs anew."""
SCROLL_TO_THE_END = """
async (timeoutMs) => {
    const deadline = performance.now() + timeoutMs;
    const rows = () => [...document.querySelectorAll("tr.job")];
    const isEnd = () => rows().at(-1).dataset.id === "1";
    const seen = [];
    for (;;) {
        seen.push(rows().map((row) => Number(row.dataset.id)));
        if (isEnd()) return seen;
        scrollBy(0, 600);
        // Rows are drawn a moment after the window was scrolled, and their page may have to be read first.
        while (!isEnd() && rows().at(-1).getBoundingClientRect().bottom < innerHeight) {
            if (performance.now() > deadline) throw new Error(`no row after ${rows().at(-1).dataset.id}`);
            await new Promise(requestAnimationFrame);
        }
    }
}
"""
"""Scrolls from the first to the last job, and returns the numbers of the rows that were elements at each step."""
_VALUES = """(9, 'new', '{"lr"\\: 4.5}'), (8, 'low', '{"lr"\\: 0}')"""


def insert_jobs(resources: Resources, number: int, *changes: str) -> None:
    """Make jobs 1 to `number`, the last one the newest; `lr` of job n is n modulo 10.

    Each of `changes` is then executed after `UPDATE training_jobs SET`.
    """
    columns = "id, name, status, attempt, created_at, started_at, completed_at, params, tags, best_metrics"
    made = (
        "SELECT n, 'job ' || n, CASE WHEN n % 4 = 0 THEN 'failed' ELSE 'completed' END, 1, began, began, now(), "
        "jsonb_build_object('lr', n % 10, 'batch size', 8), jsonb_build_object('team', 't' || n % 3), "
        f"jsonb_build_object('loss', n) FROM (SELECT n, now() - ({number} - n) * interval '1 minute' AS began "
        f"FROM generate_series(1, {number}) n) AS numbered"
    )
    with resources.engine.begin() as connection:
        connection.execute(text(f"INSERT INTO training_jobs ({columns}) {made}"))
        for change in changes:
            connection.execute(text(f"UPDATE training_jobs SET {change}"))


def shown(page: Page) -> list[int]:
    """Return the numbers of the rows that are elements."""
    found = page.evaluate("[...document.querySelectorAll('tr.job')].map((row) => Number(row.dataset.id))")
    return [int(number) for number in found]


def first_is(page: Page, number: int) -> None:
    """Wait until the first row is that of this job."""
    expect(page.locator("tr.job").first).to_have_attribute("data-id", str(number))


def test_thousands_of_jobs_scroll(gateway_page: Page, resources: Resources) -> None:
    """Scrolling to the end shows all jobs in order, and only rows near the window are elements."""
    insert_jobs(resources, JOBS)
    gateway_page.goto("/")
    first_is(gateway_page, JOBS)
    expect(gateway_page.locator("h1")).to_have_text(re.compile(r"Jobs\s*2,000"))
    steps: list[list[int]] = gateway_page.evaluate(SCROLL_TO_THE_END, 120_000)
    for numbers in steps:
        assert len(numbers) < 120
        assert numbers == list(range(numbers[0], numbers[0] - len(numbers), -1))
    assert {number for numbers in steps for number in numbers} == set(range(1, JOBS + 1))


def test_a_page_that_fails_is_read_again_where_it_failed(gateway_page: Page, resources: Resources) -> None:
    """A later page that fails is requested again by itself; the rows before it and the scroll position stay."""
    insert_jobs(resources, 300)
    cursors: list[str] = []

    def refuse(route: Route) -> None:
        cursors.append(route.request.url.partition("cursor=")[2])
        if len(cursors) in (2, 3):
            route.fulfill(status=503, json={"title": "Busy", "detail": "Too many requests."})
        else:
            route.continue_()

    gateway_page.route("**/jobs?*cursor=*", refuse)
    gateway_page.goto("/")
    first_is(gateway_page, 300)
    scroll = "(end) => { scrollTo(0, document.body.scrollHeight); return document.querySelector(end); }"
    gateway_page.wait_for_function(scroll, arg="tr.job[data-id='101']")
    expect(gateway_page.locator(".list-said")).to_contain_text("Too many requests.")
    expect(gateway_page.locator("tr.job[data-id='100']")).to_be_attached()
    assert cursors[1] == cursors[2] == cursors[3]
    assert cursors.count(cursors[0]) == 1


def test_a_click_on_a_head_sorts(gateway_page: Page, resources: Resources) -> None:
    """The first click sorts, the second reverses, the third ends it; the address has the order and the columns."""
    insert_jobs(resources, 300)
    gateway_page.goto('/#/?columns=id,name,params.lr,params."batch size",metrics.loss.best,tags.team')
    first_is(gateway_page, 300)
    head = gateway_page.get_by_role("button", name="best loss")
    head.click()
    first_is(gateway_page, 300)
    expect(gateway_page.locator("th[aria-sort=descending]")).to_have_text(re.compile("best loss"))
    head.click()
    first_is(gateway_page, 1)
    assert "sort=metrics.loss.best" in gateway_page.url
    gateway_page.get_by_role("button", name="lr", exact=True).click()
    first_is(gateway_page, 300)
    gateway_page.reload()
    expect(gateway_page.locator("th[aria-sort=ascending]")).to_have_text(re.compile("lr"))
    cells = gateway_page.locator("tr.job[data-id='300'] td")
    expect(cells).to_have_text(["", "300", "job 300", "0", "8", "300", "t0"])
    gateway_page.get_by_role("button", name="lr", exact=True).click()
    first_is(gateway_page, 299)
    gateway_page.get_by_role("button", name="lr", exact=True).click()
    expect(gateway_page.locator("th[aria-sort=ascending], th[aria-sort=descending]")).to_have_count(0)


def test_a_filter_is_completed_applied_and_corrected(gateway_page: Page, resources: Resources) -> None:
    """A field is completed by Tab; a wrong field is underlined; without a match a button clears the filters."""
    insert_jobs(resources, 40)
    gateway_page.goto("/")
    first_is(gateway_page, 40)
    box = gateway_page.get_by_label("Filter jobs")
    box.click()
    gateway_page.wait_for_function("fetch('/jobs/fields').then((answer) => answer.ok)")
    box.press_sequentially("params.l")
    expect(gateway_page.get_by_role("option", name="params.lr")).to_be_visible()
    box.press("Tab")
    expect(box).to_have_value("params.lr ")
    box.press_sequentially("= 3 and status = completed")
    box.press("Enter")
    first_is(gateway_page, 33)
    assert shown(gateway_page) == [33, 23, 13, 3]
    box.fill("params.lr = 3 and parms.lr < 4")
    box.press("Enter")
    expect(gateway_page.get_by_role("alert")).to_contain_text(
        "unknown field `parms.lr` at column 19; did you mean params.lr?"
    )
    expect(gateway_page.locator(".filter-problem mark")).to_have_text("parms.lr")
    assert shown(gateway_page) == [33, 23, 13, 3]
    box.fill("params.lr = 77")
    box.press("Enter")
    expect(gateway_page.get_by_text("No matching jobs.")).to_be_visible()
    gateway_page.get_by_role("button", name="Clear filters").click()
    first_is(gateway_page, 40)
    gateway_page.get_by_label("Search jobs").fill("job 17")
    first_is(gateway_page, 17)


def test_columns_are_chosen(gateway_page: Page, resources: Resources) -> None:
    """A column that is ticked in the dialog appears, and stays in the address."""
    insert_jobs(resources, 3)
    gateway_page.goto("/")
    first_is(gateway_page, 3)
    gateway_page.wait_for_function("fetch('/jobs/fields').then((answer) => answer.ok)")
    gateway_page.get_by_role("button", name="Columns").click()
    gateway_page.get_by_role("checkbox", name="batch size").check()
    gateway_page.get_by_role("checkbox", name="Progress").uncheck()
    gateway_page.get_by_role("button", name="Done").click()
    expect(gateway_page.locator("tr.job").first.locator("td").last).to_have_text("8")
    expect(gateway_page.locator("th.h-progress")).to_have_count(0)
    gateway_page.reload()
    expect(gateway_page.locator("tr.job").first.locator("td").last).to_have_text("8")


def test_jobs_are_grouped(gateway_page: Page, resources: Resources) -> None:
    """Groups have the number of their jobs; one unfolds into its jobs, in the list's order; the address has it."""
    insert_jobs(resources, 30)
    gateway_page.goto("/")
    first_is(gateway_page, 30)
    gateway_page.get_by_label("Group by").select_option("tags.team")
    groups = gateway_page.locator("tr.group")
    expect(groups).to_have_text([re.compile(f"t{team}.*10 jobs") for team in (0, 2, 1)])
    gateway_page.get_by_role("button", name="t2", exact=True).click()
    first_is(gateway_page, 29)
    assert shown(gateway_page)[-10:] == list(range(29, 0, -3))
    gateway_page.get_by_role("button", name="ID", exact=True).click()
    gateway_page.get_by_role("button", name="ID", exact=True).click()
    first_is(gateway_page, 2)
    gateway_page.get_by_label("Filter jobs").fill("params.lr = 5")
    expect(groups).to_have_count(3)
    expect(groups.filter(has_text="t2")).to_contain_text("1 job")
    expect(gateway_page.locator("tr.job")).to_have_count(1)
    first_is(gateway_page, 5)
    gateway_page.reload()
    first_is(gateway_page, 5)
    expect(gateway_page.get_by_role("button", name="t2", exact=True)).to_have_attribute("aria-expanded", "true")
    gateway_page.get_by_role("button", name="t2", exact=True).click()
    expect(gateway_page.locator("tr.job")).to_have_count(0)
    assert "unfold" not in gateway_page.evaluate("new Promise((now) => setTimeout(() => now(location.hash), 400))")


def test_a_large_group_shows_more_at_a_press(gateway_page: Page, resources: Resources) -> None:
    """Of a group with more jobs than a page the rest is a press away; jobs without a value are a group, too."""
    insert_jobs(resources, 250)
    gateway_page.goto("/#/?by=project&unfold=~none")
    expect(gateway_page.locator("tr.group").first).to_contain_text("No value")
    first_is(gateway_page, 250)
    gateway_page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    gateway_page.get_by_role("button", name="Show more").click()
    expect(gateway_page.locator("tr.job[data-id='150']")).to_be_attached()


def test_jobs_are_plotted(gateway_page: Page, resources: Resources) -> None:
    """Ticked jobs are plotted in two ways, for pointer and keys; the view is in the address."""
    insert_jobs(resources, 30)
    gateway_page.goto("/")
    first_is(gateway_page, 30)
    for number in (11, 22, 30):
        gateway_page.locator(f"tr.job[data-id='{number}'] input").check()
    gateway_page.get_by_role("button", name="Plot").click()
    plot = gateway_page.get_by_role("group", name=re.compile("^Scatter plot of "))
    expect(plot).to_be_visible()
    expect(gateway_page.locator("table.jobs")).to_be_hidden()
    gateway_page.get_by_label("X", exact=True).select_option("params.lr")
    gateway_page.get_by_label("Y", exact=True).select_option("metrics.loss.best")
    gateway_page.get_by_label("Color").select_option("tags.team")
    logarithmic = gateway_page.get_by_role("button", name="Log Y")
    logarithmic.click()
    expect(logarithmic).to_have_attribute("aria-pressed", "true")
    expect(gateway_page.locator(".axis-title").last).to_have_text("best loss (log)")
    logarithmic.click()
    expect(gateway_page.locator(".axis-title").last).to_have_text("best loss")
    expect(gateway_page).to_have_url(re.compile("log=y-linear"))
    expect(plot).to_have_attribute("aria-label", re.compile("of lr, best loss, team: 3 jobs"))
    plot.press("Home")
    plot.press("ArrowRight")
    expect(gateway_page.locator(".plots > .unseen")).to_have_text("job 11: lr 1, best loss 11, team t2")
    gateway_page.reload()
    expect(plot).to_have_attribute("aria-label", re.compile("of lr, best loss, team: 3 jobs"))
    gateway_page.get_by_label("View").select_option("parallel")
    lines = gateway_page.get_by_role("group", name=re.compile("^Parallel coordinates of .*: 3 jobs"))
    expect(lines).to_be_visible()
    gateway_page.get_by_role("button", name="Axes…").click()
    gateway_page.get_by_role("checkbox", name="best loss").check()
    gateway_page.get_by_role("button", name="Done").click()
    expect(lines).to_have_attribute("aria-label", re.compile("best loss: 3 jobs"))
    expect(gateway_page).to_have_url(re.compile(r"axes=[^&]*metrics\.loss\.best"))
    gateway_page.get_by_label("View").select_option("scatter")
    gateway_page.locator("circle.mark").nth(1).hover()
    expect(gateway_page.locator(".plot-tip strong")).to_have_text(re.compile("job (11|22|30)"))
    name = gateway_page.locator(".plot-tip strong").inner_text()
    gateway_page.mouse.down()
    gateway_page.mouse.up()
    expect(gateway_page.locator(".job-head h1")).to_have_text(name)
    gateway_page.go_back()
    expect(plot).to_be_visible()


def test_the_colours_of_a_plot_are_explained(gateway_page: Page, resources: Resources) -> None:
    """The legend names the colour of each value, and the grey of jobs without one only where there are some."""
    insert_jobs(resources, 4, "tags = '{}' WHERE id = 2", "params = params - 'batch size' WHERE id = 3")
    gateway_page.goto("/#/?view=scatter&x=params.lr&y=metrics.loss.best&color=tags.team")
    legend = gateway_page.locator(".plot-legend")
    expect(legend).to_have_text("team t0 t1 no value")
    color = gateway_page.get_by_label("Color")
    color.select_option('params."batch size"')
    expect(legend).to_have_text("batch size88 no value")
    color.select_option("params.lr")
    expect(legend).to_have_text("lr14")
    color.select_option("exit_code")
    expect(legend).to_have_text("Exit code no value")


def test_the_ends_of_axes_are_those_of_drawn_jobs(gateway_page: Page, resources: Resources) -> None:
    """A job that lacks one of the two values is not drawn, and does not stretch the other axis."""
    insert_jobs(resources, 4)
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET params = '{}' WHERE id = 4"))
    gateway_page.goto("/#/?view=scatter&x=params.lr&y=metrics.loss.best&color=")
    expect(gateway_page.locator("circle.mark")).to_have_count(3)
    expect(gateway_page.locator("svg text.tick")).to_have_text(["1", "2", "3", "1", "2", "3"])
    expect(gateway_page.get_by_text("1 job not drawn, for lack of a value.")).to_be_visible()


def test_a_name_in_a_question_is_quoted(gateway_page: Page, resources: Resources) -> None:
    """A dialog quotes the name of a job, which may read like a part of its question."""
    insert_jobs(resources, 2, "name = 'Delete 50 jobs' WHERE id = 1", "name = NULL WHERE id = 2")
    gateway_page.goto("/")
    for label, question in (
        ("Select job “Delete 50 jobs”", "Delete job “Delete 50 jobs”?"),
        ("Select job 2", "Delete job 2?"),
    ):
        box = gateway_page.get_by_label(label, exact=True)
        box.check()
        gateway_page.get_by_role("button", name="Delete…").click()
        gateway_page.get_by_role("dialog", name=question, exact=True).get_by_role("button", name="Cancel").click()
        box.uncheck()


def test_jobs_are_compared_and_changed(gateway_page: Page, resources: Resources) -> None:
    """Ticked jobs can be renamed, tagged, archived and compared, with a table of what differs."""
    insert_jobs(resources, 5)
    gateway_page.goto("/")
    first_is(gateway_page, 5)
    gateway_page.get_by_label("Select job “job 5”", exact=True).check()
    gateway_page.get_by_role("button", name="Edit…").click()
    gateway_page.get_by_role("textbox", name="Name Empty").fill("<b>best</b>")
    gateway_page.get_by_role("textbox", name="Tags").fill("team=vision baseline")
    gateway_page.get_by_role("button", name="Save").click()
    expect(gateway_page.locator("tr.job[data-id='5'] .name")).to_have_text("<b>best</b>")
    gateway_page.get_by_label("Search jobs").fill("vision")
    expect(gateway_page.locator("tr.job")).to_have_count(1)
    gateway_page.get_by_label("Search jobs").fill("")
    expect(gateway_page.locator("tr.job")).to_have_count(5)
    for name in ("job 1", "job 2"):
        gateway_page.get_by_label(f"Select job “{name}”", exact=True).check()
    gateway_page.get_by_role("button", name="Archive", exact=True).click()
    expect(gateway_page.locator("tr.job")).to_have_count(3)
    gateway_page.get_by_role("button", name="archived").click()
    expect(gateway_page.locator("tr.job")).to_have_count(5)
    for number in (3, 4):
        gateway_page.locator(f"tr.job[data-id='{number}'] input").check()
    gateway_page.get_by_role("button", name="Compare").click()
    gateway_page.get_by_role("tab", name="Compare").click()
    row = gateway_page.locator(".differences tr", has=gateway_page.get_by_role("rowheader", name="lr", exact=True))
    expect(row.locator("td")).to_have_text(["3", "4"])
    expect(gateway_page.locator(".differences")).not_to_contain_text("batch size")
    gateway_page.get_by_label("Show equal values too").check()
    expect(gateway_page.locator(".differences")).to_contain_text("batch size")


def test_new_and_changed_jobs_appear_in_order(gateway_page: Page, resources: Resources) -> None:
    """A new job appears without a reload in the place that the order and the filter give it."""
    insert_jobs(resources, 5)
    gateway_page.goto("/#/?filter=params.lr > 2&sort=-params.lr")
    first_is(gateway_page, 5)
    with resources.engine.begin() as connection:
        new = "INSERT INTO training_jobs (id, name, params) VALUES "
        connection.execute(text(new + _VALUES))
    expect(gateway_page.locator("tr.job")).to_have_count(4)
    assert shown(gateway_page) == [5, 9, 4, 3]


def test_an_unknown_address_is_named(gateway_page: Page) -> None:
    """An address without a page shows it, with a way to the list."""
    gateway_page.goto("/#/nonsense<b>")
    expect(gateway_page.get_by_role("heading", name="Page not found")).to_be_visible()
    expect(gateway_page.locator(".empty")).to_contain_text("#/nonsense")
    gateway_page.get_by_role("link", name="All jobs", exact=True).click()
    expect(gateway_page.get_by_role("heading", name="Jobs")).to_be_visible()
    expect(gateway_page.get_by_text("No runs yet")).to_be_visible()


def test_a_row_that_changes_while_it_is_pressed_still_opens(gateway_page: Page, resources: Resources) -> None:
    """Between the press and the release of a button no row is replaced, so the click is not lost."""
    with resources.engine.begin() as connection:
        running = "INSERT INTO training_jobs (id, name, status, attempt) VALUES (7, 'busy', 'running', 1)"
        connection.execute(text(running))
    gateway_page.goto("/")
    gateway_page.locator("#connection[data-state=live]").wait_for()
    gateway_page.locator("tr.job a").hover()
    gateway_page.mouse.down()
    gateway_page.wait_for_timeout(TICK_MS * 1.5)
    gateway_page.mouse.up()
    expect(gateway_page.locator(".job-head h1")).to_have_text("busy")
    gateway_page.go_back()
    gateway_page.locator("tr.job a").hover()
    gateway_page.mouse.down()
    gateway_page.get_by_role("heading", name="Jobs").hover()
    gateway_page.mouse.up()
    gateway_page.locator("tr.job").evaluate("(row) => row.classList.add('before')")
    expect(gateway_page.locator("tr.job.before")).to_have_count(0)


def test_the_log_has_ranks(gateway_page: Page, resources: Resources) -> None:
    """Lines of several ranks have a column with the rank, and can be filtered by it, also after a reload."""
    with resources.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO training_jobs (id, name, status, last_log_seq) VALUES (1, 'ranks', 'running', 40)")
        )
        connection.execute(
            text(
                "INSERT INTO training_logs "
                "(job_id, seq, logged_at, attempt, rank, logged_ns, source, log_type, content) "
                "SELECT 1, n, now(), 1, n % 4, 0, n % 4 || '-x', 'stdout', 'line ' || n "
                "FROM generate_series(1, 40) n"
            )
        )
    gateway_page.goto("/#/jobs/1")
    expect(gateway_page.locator(".line[data-seq='39'] .rank")).to_have_text("3")
    expect(gateway_page.locator(".line[data-seq='39'] .rank")).to_be_visible()
    gateway_page.get_by_label("Rank", exact=True).select_option("2")
    expect(gateway_page.locator(".line[data-seq='39']")).to_have_count(0)
    expect(gateway_page.locator(".line .text").last).to_have_text("line 38")
    expect(gateway_page).to_have_url(re.compile(r"rank=2"))
    gateway_page.reload()
    expect(gateway_page.get_by_label("Rank", exact=True)).to_have_value("2")
    expect(gateway_page.locator(".line .text").last).to_have_text("line 38")
