"""Reading back from Loki, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from urllib3 import BaseHTTPResponse

from trainwire.stores.loki.http import LokiHttp, LokiUnavailable, unavailable, words_of

OK: Final = 200
PAGE_LINES: Final = 5000
"""Loki's `max_entries_limit_per_query` by default."""
LONG_LINES: Final = 10
"""Lines of a page where they are long: Loki's parts send one another 4 MB at once by default."""
TOO_MUCH: Final = "message larger than max"
"""What Loki says where a page's lines are too long to be sent at once."""
MOST_SEQ_DIGITS: Final = 19
LONGEST_RANGE_NS: Final = 30 * 24 * 3600 * 10**9
"""Just below Loki's `max_query_length` of 30 days and an hour."""


@dataclass(frozen=True, slots=True)
class LokiLine:
    """One entry as Loki gives it back: `labels` holds the stream's labels and the structured metadata."""

    ts_ns: int
    line: str
    labels: tuple[tuple[str, str], ...]

    def label(self, name: str) -> str | None:
        """Return one label, None where the entry has none of that name."""
        return next((value for key, value in self.labels if key == name), None)


def read_lines(http: LokiHttp, job_id: int, start_ns: int, end_ns: int, extra: str = "") -> Iterator[LokiLine]:
    """Yield a job's lines with times from `start_ns` to `end_ns`, both included, by time.

    `extra` is more of a label selector, such as `, log_type="stderr"`. Raises `LokiUnavailable`.
    """
    selector = f'{{job="training", job_id="{job_id}"{extra}}}'
    while start_ns <= end_ns:
        until_ns = min(end_ns, start_ns + LONGEST_RANGE_NS)
        yield from _range(http, selector, start_ns, until_ns)
        start_ns = until_ns + 1


def read_newest(http: LokiHttp, job_id: int, start_ns: int, end_ns: int, limit: int) -> list[LokiLine]:
    """Return a job's last lines in a range of times, by time; at most a page of them, of the last 30 days.

    Raises `LokiUnavailable`.
    """
    selector = f'{{job="training", job_id="{job_id}"}}'
    first_ns = max(start_ns, end_ns - LONGEST_RANGE_NS)
    limit = min(limit, PAGE_LINES)
    return _lines_of(http, _ask(http, selector, first_ns, end_ns + 1, limit=limit, direction="backward"))


def _range(http: LokiHttp, selector: str, start_ns: int, end_ns: int) -> Iterator[LokiLine]:
    while True:
        page, is_last = _page(http, selector, start_ns, end_ns + 1)
        if is_last:
            yield from page
            return
        # A page may have cut the lines of its last time in two, in any order: the next one begins with them.
        last_ns = page[-1].ts_ns
        if last_ns > start_ns:
            yield from (line for line in page if line.ts_ns < last_ns)
            start_ns = last_ns
        else:  # more lines in one nanosecond than a page holds
            yield from sorted({*page, *_one_time(http, selector, start_ns)}, key=_order)
            start_ns += 1


def _one_time(http: LokiHttp, selector: str, ts_ns: int, last_digits: str = "") -> Iterator[LokiLine]:
    """Yield the lines of one nanosecond whose `seq` ends with these digits, in pages by the digit before them.

    Those without a `seq`, which are not ours, come as far as one page holds them.
    """
    page, is_last = _page(http, f'{selector} | seq="{last_digits}"', ts_ns, ts_ns + 1)
    yield from page if is_last else _parts(http, f'{selector} | seq="{last_digits}"', page)
    for digits in (f"{digit}{last_digits}" for digit in range(10)):
        # ".*7" would be a search for a 7 anywhere.
        page, is_last = _page(http, f'{selector} | seq=~"[0-9]*{digits}"', ts_ns, ts_ns + 1)
        if is_last or len(digits) == MOST_SEQ_DIGITS:
            yield from page
        else:
            yield from _one_time(http, selector, ts_ns, digits)


def _parts(http: LokiHttp, one_row: str, page: list[LokiLine]) -> Iterator[LokiLine]:
    """Yield all parts of a row that is too long for a page, of which `page` has some."""
    ts_ns = page[0].ts_ns
    count = _number((page[0].label("part") or "").partition("/")[2])
    yield from page if count == 0 else ()
    for number in range(1, count + 1):
        yield from _page(http, f'{one_row} | part="{number}/{count}"', ts_ns, ts_ns + 1)[0]


def _page(http: LokiHttp, selector: str, start_ns: int, end_ns: int) -> tuple[list[LokiLine], bool]:
    """Return the first lines of [start, end), and whether these are all."""
    for limit in (PAGE_LINES, LONG_LINES):
        answer = _ask(http, selector, start_ns, end_ns, limit=limit, direction="forward")
        if answer.status == OK or TOO_MUCH not in words_of(answer):
            break
    lines = _lines_of(http, answer)
    return lines, len(lines) < limit


def _ask(
    http: LokiHttp, selector: str, start_ns: int, end_ns: int, *, limit: int, direction: str
) -> BaseHTTPResponse:
    asked = {"query": selector, "start": str(start_ns), "end": str(end_ns)}
    return http.get("/loki/api/v1/query_range", asked | {"limit": str(limit), "direction": direction})


def _lines_of(http: LokiHttp, answer: BaseHTTPResponse) -> list[LokiLine]:
    if answer.status != OK:
        raise unavailable(answer)
    try:
        streams: list[dict[str, Any]] = answer.json()["data"]["result"]
    except (ValueError, KeyError, TypeError) as exc:
        wrong = f"what answers at {http.url} is not Loki: set LOKI_URL to Loki's own address"
        raise LokiUnavailable(wrong) from exc
    lines = [
        LokiLine(int(value[0]), value[1], tuple(sorted(stream["stream"].items())))
        for stream in streams
        for value in stream["values"]
    ]
    return sorted(lines, key=_order)


def _order(line: LokiLine) -> tuple[int, int, int]:
    """Time, row and part; a label that somebody else gave another meaning counts as none."""
    part = (line.label("part") or "").partition("/")[0]
    return line.ts_ns, _number(line.label("seq")), _number(part)


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0
