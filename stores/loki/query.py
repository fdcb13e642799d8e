"""Reads a job's lines from Loki with paged queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from urllib3 import BaseHTTPResponse

from trainwire.stores.loki.http import LokiHttp, LokiUnavailable, message_of, unavailable

OK: Final = 200
PAGE_LINES: Final = 5000
"""Lines per query: the default of Loki's `max_entries_limit_per_query`."""
LONG_LINES: Final = 10
"""Lines per query if a page of PAGE_LINES is too large: messages between Loki's components are limited to 4 MB."""
TOO_MUCH: Final = "message larger than max"
"""Part of Loki's error text for a page that exceeds its message size."""
MOST_SEQ_DIGITS: Final = 19
MOST_DIGITS: Final = 18
LONGEST_RANGE_NS: Final = 30 * 24 * 3600 * 10**9
"""Longest time range of one query: just below Loki's `max_query_length` of 30 days and an hour."""


@dataclass(frozen=True, slots=True)
class LokiLine:
    """One entry of a query result; `labels` contains the labels of its Loki stream and its structured metadata."""

    ts_ns: int
    line: str
    labels: tuple[tuple[str, str], ...]

    def label(self, name: str) -> str | None:
        """Return the value of a label; None if the entry does not have it."""
        return next((value for key, value in self.labels if key == name), None)

    @property
    def seq(self) -> int | None:
        """The `seq` of the line's row in Postgres; None for a line that trainwire did not send."""
        return number_of(self.label("seq"))

    @property
    def part(self) -> int:
        """The number of this part of a split line, counted from 1; 1 for a line that is not split."""
        return number_of((self.label("part") or "").partition("/")[0]) or 1

    @property
    def parts(self) -> int:
        """The number of parts of the split line that this entry belongs to; 1 for a line that is not split."""
        return number_of((self.label("part") or "").partition("/")[2]) or 1


def read_lines(http: LokiHttp, job_id: int, start_ns: int, end_ns: int, extra: str = "") -> Iterator[LokiLine]:
    """Yield a job's lines with times from `start_ns` to `end_ns` (inclusive), ordered by time.

    `extra` is appended to the label selector, for example `, log_type="stderr"`. Raises `LokiUnavailable` if Loki
    does not respond or reports an error.
    """
    selector = f'{{job="training", job_id="{job_id}"{extra}}}'
    while start_ns <= end_ns:
        until_ns = min(end_ns, start_ns + LONGEST_RANGE_NS)
        yield from _range(http, selector, start_ns, until_ns)
        start_ns = until_ns + 1


def read_newest(http: LokiHttp, job_id: int, start_ns: int, end_ns: int, limit: int) -> list[LokiLine]:
    """Return the last `limit` lines of a job from `start_ns` to `end_ns` (inclusive), ordered by time.

    Returns at most `PAGE_LINES` lines, and searches only the last 30 days of the range. Raises `LokiUnavailable`
    if Loki does not respond or reports an error.
    """
    selector = f'{{job="training", job_id="{job_id}"}}'
    first_ns = max(start_ns, end_ns - LONGEST_RANGE_NS)
    limit = min(limit, PAGE_LINES)
    return _lines_of(http, _request(http, selector, first_ns, end_ns + 1, limit=limit, direction="backward"))


def _range(http: LokiHttp, selector: str, start_ns: int, end_ns: int) -> Iterator[LokiLine]:
    while True:
        page, is_last = _page(http, selector, start_ns, end_ns + 1)
        if is_last:
            yield from page
            return
        # The page may lack some lines of its last nanosecond: the next page begins with that time.
        last_ns = page[-1].ts_ns
        if last_ns > start_ns:
            yield from (line for line in page if line.ts_ns < last_ns)
            start_ns = last_ns
        else:  # more lines in one nanosecond than a page holds
            yield from sorted({*page, *_one_time(http, selector, start_ns)}, key=_order)
            start_ns += 1


def _one_time(http: LokiHttp, selector: str, ts_ns: int, last_digits: str = "") -> Iterator[LokiLine]:
    """Yield the lines with the time `ts_ns` whose `seq` ends with `last_digits`.

    Used if a page cannot hold all lines of one nanosecond: there is one query for each digit that may precede
    `last_digits`. Of the lines without a `seq`, which trainwire did not send, at most one page is read.
    """
    page, is_last = _page(http, f'{selector} | seq="{last_digits}"', ts_ns, ts_ns + 1)
    yield from page if is_last else _parts(http, f'{selector} | seq="{last_digits}"', page)
    for digits in (f"{digit}{last_digits}" for digit in range(10)):
        # Loki would optimize ".*7" to a search for a 7 anywhere.
        page, is_last = _page(http, f'{selector} | seq=~"[0-9]*{digits}"', ts_ns, ts_ns + 1)
        if is_last or len(digits) == MOST_SEQ_DIGITS:
            yield from page
        else:
            yield from _one_time(http, selector, ts_ns, digits)


def _parts(http: LokiHttp, one_row: str, page: list[LokiLine]) -> Iterator[LokiLine]:
    """Yield all parts of one row's line.

    `page` is the first page of the query `one_row`, which selects this line. If the line is split, each part is
    queried separately, because the page may lack some of them.
    """
    ts_ns = page[0].ts_ns
    count = page[0].parts
    if count == 1:
        yield from page
        return
    for number in range(1, count + 1):
        yield from _page(http, f'{one_row} | part="{number}/{count}"', ts_ns, ts_ns + 1)[0]


def _page(http: LokiHttp, selector: str, start_ns: int, end_ns: int) -> tuple[list[LokiLine], bool]:
    """Return the first lines with `start_ns` <= time < `end_ns`, and whether these are all of them.

    A page has PAGE_LINES lines, or LONG_LINES if such a page exceeds Loki's message size.
    """
    for limit in (PAGE_LINES, LONG_LINES):
        answer = _request(http, selector, start_ns, end_ns, limit=limit, direction="forward")
        if answer.status == OK or TOO_MUCH not in message_of(answer):
            break
    lines = _lines_of(http, answer)
    return lines, len(lines) < limit


def _request(
    http: LokiHttp, selector: str, start_ns: int, end_ns: int, *, limit: int, direction: str
) -> BaseHTTPResponse:
    parameters = {"query": selector, "start": str(start_ns), "end": str(end_ns)}
    return http.get("/loki/api/v1/query_range", parameters | {"limit": str(limit), "direction": direction})


def _lines_of(http: LokiHttp, answer: BaseHTTPResponse) -> list[LokiLine]:
    if answer.status != OK:
        raise unavailable(answer)
    try:
        streams: list[dict[str, Any]] = answer.json()["data"]["result"]
    except (ValueError, KeyError, TypeError) as exc:
        wrong = f"the server at {http.url} is not Loki: set LOKI_URL to Loki's own address"
        raise LokiUnavailable(wrong) from exc
    lines = [
        LokiLine(int(value[0]), value[1], tuple(sorted(stream["stream"].items())))
        for stream in streams
        for value in stream["values"]
    ]
    return sorted(lines, key=_order)


def _order(line: LokiLine) -> tuple[int, int, int]:
    """Return the sort key of a line: time, row and part; a line without a `seq` counts as row 0."""
    return line.ts_ns, line.seq or 0, line.part


def number_of(text: str | None) -> int | None:
    """Parse a label as an integer; return None if it is not one or has more than MOST_DIGITS digits."""
    return int(text) if text and len(text) <= MOST_DIGITS and text.isascii() and text.isdecimal() else None
