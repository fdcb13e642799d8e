"""Tests of the page's JavaScript modules, called in the browser."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser.stack import Stack
from trainwire.schemas.filters.job_filter import parse_fields


def call(page: Page, module: str, name: str, *arguments: object) -> Any:
    """Call a function of one of the page's modules in the browser, and return its result."""
    page.goto("/")
    script = f"async (given) => (await import('/page/js/{module}')).{name}(...given)"
    return page.evaluate(script, list(arguments))


def test_terminal_colours_become_classes(page: Page) -> None:
    """Colours and styles are classes, 256 and true colours the nearest of 16; other sequences leave no trace."""
    line = (
        "\x1b[1;31mred\x1b[0m \x1b[38;5;46mgreen\x1b[39m\x1b]8;;http://x\x07link\x1b[2K\x1b[48;2;0;0;250m blue\x00"
    )
    assert call(page, "log/ansi.js", "runs", line) == [
        {"text": "red", "classes": "a-bold a-fg1"},
        {"text": " ", "classes": ""},
        {"text": "green", "classes": "a-fg10"},
        {"text": "link", "classes": ""},
        {"text": " blue\u2400", "classes": "a-bg4"},
    ]


def test_nan_and_infinities_are_gaps(page: Page) -> None:
    """NaN and infinities are gaps and counted; of equal steps the newest counts; late points find their place."""
    points = [[1, 10, 0.5, 1, 1], [3, 30, "NaN", 1, 2], [2, 40, 0.25, 1, 3], [1, 50, 4, 2, 4], [None, 60, 9, 2, 5]]
    found = call(page, "charts/curves.js", "curve", points, "step")
    assert (found["x"], found["y"], found["odd"]) == ([1, 2, 3], [4, 0.25, None], 1)


def test_smoothing_has_no_pull_to_zero(page: Page) -> None:
    """A constant series is unchanged by smoothing from its first point on, and a gap stays a gap."""
    smoothed = call(page, "charts/curves.js", "smoothed", [2, 2, None, 2], 0.9)
    assert [value and round(value, 9) for value in smoothed] == [2, 2, None, 2]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("1,234", {"seq": 1234}),
        ("#7", {"seq": 7}),
        ("14:03:11.5", {"at": 50_591_500}),
        ("1970-01-02 00:00", {"at": 86_400_000}),
        ("soon", None),
    ],
)
def test_where_to_go_in_a_log(page: Page, typed: str, found: dict[str, int] | None) -> None:
    """A number is a line number; a time without a date is of the shown day; other text is no destination."""
    offset_ms = page.evaluate("new Date(0).getTimezoneOffset() * 60000")
    result = call(page, "log/times.js", "destination", typed, offset_ms)
    assert result == ({"at": found["at"] + offset_ms} if found and "at" in found else found)


@pytest.mark.parametrize(
    ("job", "shown"),
    [
        ({"status": "completed", "total_epochs": 10, "current_epoch": None}, 100),
        ({"status": "running", "total_epochs": 10, "current_epoch": None}, None),
        ({"status": "failed", "total_epochs": 10, "current_epoch": None}, None),
        ({"status": "running", "total_epochs": 10, "current_epoch": 0}, 0),
        ({"status": "running", "total_epochs": 10, "current_epoch": 3}, 30),
        ({"status": "running", "total_epochs": 10, "current_epoch": None, "progress_percent": 12.5}, 12.5),
        ({"status": "completed", "total_epochs": None, "current_epoch": 3}, 100),
        ({"status": "completed", "total_epochs": 10, "current_epoch": 9, "progress_percent": 90.0}, 100),
    ],
)
def test_progress_that_is_not_reported_is_not_zero(page: Page, job: dict[str, Any], shown: float | None) -> None:
    """A job with `total_epochs` that has reported no epoch shows no percentage."""
    assert call(page, "words.js", "percent", job) == shown


def test_long_ids_stay_exact(page: Page) -> None:
    """A job's id beyond 2^53 is read as a string; the same digits inside a text are left alone."""
    text = json.dumps({"id": 9007199254740993, "text": 'say "id": 9007199254740993', "seq": 12})
    result = call(page, "api.js", "parse", text)
    assert result == {"id": "9007199254740993", "text": 'say "id": 9007199254740993', "seq": 12}
    fork = json.dumps({"parent_id": 9007199254740993, "forks": [9007199254740995, 7], "fork_step": 3})
    result = call(page, "api.js", "parse", fork)
    assert result == {"parent_id": "9007199254740993", "forks": ["9007199254740995", 7], "fork_step": 3}


def test_modules_are_asked_for_anew(page: Page, stack: Stack) -> None:
    """Cached files of the page are revalidated at each load, so an update never mixes old and new modules."""
    first = page.request.get(f"{stack.url}/page/js/main.js")
    again = page.request.get(f"{stack.url}/page/js/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (first.headers["cache-control"], again.status) == ("no-cache", 304)


@pytest.mark.parametrize(
    ("typed", "tags"),
    [
        ("team=vision baseline -old", {"team": "vision", "baseline": "true", "old": None}),
        ('"a b=c d" x=', {"a b": "c d", "x": ""}),
        ("-a=b", {"-a": "b"}),
        (" ", {}),
    ],
)
def test_typed_tags(page: Page, typed: str, tags: dict[str, str | None]) -> None:
    """A word sets a tag, with a value after `=`, and a minus removes one; quotes keep spaces."""
    assert call(page, "list/actions.js", "tagsOf", typed) == tags


@pytest.mark.parametrize(
    ("space", "name", "field"),
    [
        ("params", "lr", "params.lr"),
        ("params", "batch size", 'params."batch size"'),
        ("metrics", "val/loss", "metrics.val/loss"),
        ("metrics", "a.best", 'metrics."a.best"'),
        ("tags", 'say "x"\\', 'tags."say \\"x\\"\\\\"'),
    ],
)
def test_fields_of_names(page: Page, space: str, name: str, field: str) -> None:
    """A name that is no plain word is quoted, as the language of filters reads it."""
    assert call(page, "list/columns.js", "fieldText", space, name) == field
    assert field_of_text(field) == name


def field_of_text(text: str) -> str:
    """Return the name of a field."""
    (field,) = parse_fields(text).values()
    return field.name
