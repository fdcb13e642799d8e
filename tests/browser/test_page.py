"""The page in a real browser, against a real stack and real trainings."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.browser.page_waits import lines_are_loaded, wait_in_page
from tests.browser.stack import Stack

STEADY = """
    import pathlib, time
    from trainwire import Run
    stop = pathlib.Path(__file__).with_suffix(".stop")
    with Run.from_env(total_epochs=4, params={"lr": 0.001}) as run:
        step = 0
        while not stop.exists():
            step += 1
            print(f"step {step}", flush=True)
            run.metric(epoch=1, step=step, loss=1 / step)
            time.sleep(0.1)
        run.metric(epoch=2, step=step + 1, loss=0.5, last_step=step)
"""
LOSS_LABEL = "document.querySelector('figure[data-title=loss] .plot').ariaLabel"
HOSTILE = "<img src=x onerror=window.pwned=1><script>window.pwned=1</script>"


def stop(stack: Stack, job_id: int) -> None:
    """Let a steady training end."""
    (stack.home / f"job-{job_id}.stop").touch()


def shown_lines(page: Page) -> list[tuple[int, str]]:
    """Return the numbers and texts of the log's rows."""
    rows = page.evaluate(
        "[...document.querySelectorAll('.line:not(.is-coming)')].map((row) =>"
        " [Number(row.dataset.seq), row.querySelector('.text').textContent])"
    )
    return [(seq, text) for seq, text in rows]


def go_to_line(page: Page, number: int) -> None:
    """Type a line's number, and wait until it is shown."""
    page.get_by_label("Go to line or time").fill(str(number))
    page.keyboard.press("Enter")
    expect(page.locator(f".line.is-selected[data-seq='{number}'] .text")).to_be_visible()
    lines_are_loaded(page)


def points_of(page: Page, metric: str) -> int:
    """Return the number of points that the label of a metric's chart states; 0 without a label."""
    label = page.locator(f".plot[aria-label^='{metric} ']").get_attribute("aria-label") or ""
    found = re.search(r"([\d,]+) points?", label)
    return int(found[1].replace(",", "")) if found else 0


def test_a_training_appears_and_moves(page: Page, stack: Stack) -> None:
    """Without a reload a new job appears in the list, and its page shows new lines and points."""
    page.goto("/")
    page.locator("#connection[data-state=live]").wait_for()
    stack.train(1, STEADY, name="steady")
    row = page.locator("tr.job[data-id='1']")
    expect(row.get_by_text("running")).to_be_visible()
    expect(row.get_by_text("loss")).to_be_visible()
    row.get_by_role("link", name="steady").click()
    expect(page.get_by_role("heading", name="steady")).to_be_visible()
    page.locator(".plot[aria-label^='loss ']").wait_for()
    drawn, pixels = points_of(page, "loss"), page.locator(".plot canvas").first.screenshot()
    last = shown_lines(page)[-1][0] if shown_lines(page) else 0
    page.wait_for_function(
        "(last) => Number([...document.querySelectorAll('.line')].at(-1)?.dataset.seq) > last + 10", arg=last
    )
    page.wait_for_function(
        f"(drawn) => Number({LOSS_LABEL}.match(/(\\d+) point/)?.[1]) > drawn",
        arg=drawn,
    )
    wait_in_page(page, lambda: page.locator(".plot canvas").first.screenshot() != pixels, "a chart drawn anew")
    assert all(text == f"step {seq}" for seq, text in shown_lines(page))
    stop(stack, 1)
    expect(page.locator(".job-head").get_by_text("completed", exact=True)).to_be_visible()


def test_a_killed_gateway_leaves_no_hole(page: Page, stack: Stack) -> None:
    """When the gateway is killed, the page shows the lost connection, reconnects, and has every line and point."""
    stack.train(2, STEADY)
    page.goto("/#/jobs/2")
    expect(page.locator(".line .text", has_text="step ").first).to_be_attached()
    stack.kill_gateway()
    expect(page.locator("#connection")).to_contain_text("Connection lost")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    stop(stack, 2)
    expect(page.locator(".job-head").get_by_text("completed", exact=True)).to_be_visible()
    page.locator(".plot[aria-label^='last_step ']").wait_for()
    last_step = int(
        page.locator("figure", has_text="last_step").locator(".legend b").inner_text().replace(",", "")
    )
    for number in range(20, last_step, 30):
        go_to_line(page, number)
        lines = shown_lines(page)
        assert [seq for seq, _ in lines] == list(range(lines[0][0], lines[-1][0] + 1))
        assert all(text == f"step {seq}" for seq, text in lines)
    page.wait_for_function(
        f"(points) => {LOSS_LABEL}.includes(`: ${{points}} points`)",
        arg=f"{last_step + 1:,}",
    )


def test_a_hundred_thousand_lines(page: Page, stack: Stack) -> None:
    """After a jump to any of 100,000 lines the right ones are shown, with few DOM elements."""
    stack.train(3, "for number in range(1, 100_001): print('line', number)")
    page.goto("/#/jobs/3")
    expect(page.locator(".log-said")).to_have_text("100,000 lines", timeout=240_000)
    for number in (54_321, 2, 99_990, 77):
        go_to_line(page, number)
        lines = shown_lines(page)
        assert (number, f"line {number}") in lines
        assert all(text == f"line {seq}" for seq, text in lines)
        assert page.locator(".line").count() < 150
    page.locator(".log-view").hover()
    page.mouse.wheel(0, 19 * 400)
    expect(page.locator(".line[data-seq='500'] .text")).to_have_text("line 500")
    page.get_by_label("Search the log").fill("line 4567")
    expect(page.locator(".line .text", has_text="line 45678")).to_be_attached()
    lines_are_loaded(page)
    assert [seq for seq, _ in shown_lines(page)] == [4567, *range(45670, 45680)]
    page.get_by_label("Search the log").fill("")
    page.get_by_role("button", name="Follow", exact=True).click()
    expect(page.locator(".line[data-seq='100000'] .text")).to_have_text("line 100000")


def test_a_failed_job_shows_its_traceback(page: Page, stack: Stack) -> None:
    """A training that raises is shown as failed, with its message and its traceback, without a reload."""
    page.goto("/#/jobs/4")
    expect(page.get_by_text("No job 4 yet.")).to_be_visible()
    stack.train(
        4,
        """
        from trainwire import Run
        with Run.from_env() as run:
            print("soon", flush=True)
            raise ValueError("the learning rate is <b>too much</b>")
        """,
    )
    expect(page.locator(".failure-message")).to_contain_text("the learning rate is <b>too much</b>")
    expect(page.locator(".failure .traceback")).to_contain_text("Traceback (most recent call last)")
    expect(page.locator(".failure .traceback")).to_contain_text("ValueError: the learning rate is <b>too much</b>")
    expect(page.locator(".job-state")).to_contain_text("exit code 1")


def test_hostile_strings_stay_text(page: Page, stack: Stack) -> None:
    """Markup in names, metrics, parameters and lines is shown as it is; no script of it runs."""
    stack.train(
        5,
        f"""
        from trainwire import Run
        hostile = {HOSTILE!r}
        with Run.from_env(params={{hostile: hostile}}, tags={{"tag": hostile}}) as run:
            run.metric(step=1, **{{"loss": 1.0, hostile: 2.0}})
            run.metric(step=2, **{{"loss": 0.5, hostile: float("nan")}})
            print(hostile, flush=True)
            print("\\x1b[31mred\\x1b[0m \\x1b]0;title\\x07end", flush=True)
        """,
        name=HOSTILE,
    )
    page.goto("/")
    expect(page.locator("tr.job[data-id='5'] .name")).to_have_text(HOSTILE)
    page.locator("tr.job[data-id='5'] a").click()
    expect(page.locator(".job-head h1")).to_have_text(HOSTILE)
    expect(page.locator(".line .text").first).to_have_text(HOSTILE)
    expect(page.locator(".line .a-fg1")).to_have_text("red")
    expect(page.locator("figure h3", has_text=HOSTILE)).to_be_visible()
    page.get_by_role("tab", name="Parameters").click()
    expect(page.locator(".pairs td").first).to_have_text(HOSTILE)
    assert page.locator("img, main script").count() == 0
    assert page.evaluate("window.pwned") is None


def test_a_token_opens_the_page(page: Page, stack: Stack) -> None:
    """A gateway that requires tokens shows a form: a wrong token is refused, a viewer's opens the list."""
    page.goto(stack.guarded_gateway())
    page.get_by_label("Token").fill("not a token")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("Invalid, expired or revoked token.")
    page.get_by_label("Token").fill(stack.new_token())
    page.get_by_role("button", name="Sign in").click()
    page.locator("#connection[data-state=live]").wait_for()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_visible()


def test_an_empty_list_shows_the_command(page: Page) -> None:
    """An empty list shows the command that makes a job, and the key `?` opens the list of keys."""
    page.route(re.compile(r"/jobs\?"), lambda route: route.fulfill(json={"items": [], "next": None}))
    page.route_web_socket(
        "**/jobs/ws?*", lambda socket: socket.send('{"event": {"type": "snapshot", "jobs": []}, "position": null}')
    )
    page.goto("/")
    expect(page.get_by_text("trainwire run -- python train.py")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Theme")
