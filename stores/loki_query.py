"""Reading back from Loki, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from stores.loki_http import LokiHttp, LokiUnavailable, unavailable

OK: Final = 200
PAGE_LINES: Final = 5000
"""Loki's `max_entries_limit_per_query` by default."""
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
    return _page(http, selector, first_ns, end_ns + 1, limit=min(limit, PAGE_LINES), direction="backward")


def _range(http: LokiHttp, selector: str, start_ns: int, end_ns: int) -> Iterator[LokiLine]:
    seen: set[LokiLine] = set()
    while True:
        page = _page(http, selector, start_ns, end_ns + 1, limit=PAGE_LINES, direction="forward")
        yield from (line for line in page if line not in seen)
        if len(page) < PAGE_LINES:
            return
        # The next page begins with the last time of this one, whose lines it may have cut in two.
        last_ns = page[-1].ts_ns
        if last_ns > start_ns:
            seen = {line for line in page if line.ts_ns == last_ns}
            start_ns = last_ns
        else:  # more lines in one nanosecond than a page holds
            seen.update(page)
            yield from sorted(
                (line for line in _one_time(http, selector, start_ns) if line not in seen), key=_order
            )
            start_ns += 1


def _one_time(http: LokiHttp, selector: str, ts_ns: int, last_digits: str = "") -> Iterator[LokiLine]:
    """Yield the lines of one nanosecond whose `seq` ends with these digits, in pages by the digit before them.

    Those without a `seq`, which are not ours, come as far as one page holds them.
    """
    whole = f'{selector} | seq="{last_digits}"'
    yield from _page(http, whole, ts_ns, ts_ns + 1, limit=PAGE_LINES, direction="forward")
    for digits in (f"{digit}{last_digits}" for digit in range(10)):
        longer = f'{selector} | seq=~".*{digits}"'
        page = _page(http, longer, ts_ns, ts_ns + 1, limit=PAGE_LINES, direction="forward")
        if len(page) < PAGE_LINES or len(digits) == MOST_SEQ_DIGITS:
            yield from page
        else:
            yield from _one_time(http, selector, ts_ns, digits)


def _page(
    http: LokiHttp, selector: str, start_ns: int, end_ns: int, *, limit: int, direction: str
) -> list[LokiLine]:
    answer = http.get(
        "/loki/api/v1/query_range",
        {
            "query": selector,
            "start": str(start_ns),
            "end": str(end_ns),
            "limit": str(limit),
            "direction": direction,
        },
    )
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
