"""Reads filtered pages of a job's log in the order of `seq`; the number of lines scanned per page is limited."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, collate, func, text

from trainwire.schemas.events import LogLine
from trainwire.schemas.tables import training_logs
from trainwire.stores.rows.event_rows import lines_within, log_line, select_lines

SCAN_ROWS: Final = 50_000
"""Number of lines that one SQL query scans if there are conditions."""
MOST_SCANNED: Final = 100_000
"""Largest number of lines that are scanned for one page; this takes Postgres about 0.2 s."""
PIECE_LINES: Final = 5000
PAGE_BYTES: Final = 8 * 1024 * 1024
"""Largest total size of the texts in one page; a page has at least one line."""
CUT_CHARS: Final = 64 * 1024
"""Number of characters to which a line is cut, unless a page of one line is requested."""
PROBES: Final = 15
"""Number of places that one query of `seq_at` looks at: six queries for ten million lines."""
_L: Final = training_logs.c
_NEXT_LINES: Final = text(
    "SELECT place, seq, logged_at >= :at FROM unnest(CAST(:places AS bigint[])) AS place LEFT JOIN LATERAL ("
    "SELECT seq, logged_at FROM training_logs WHERE job_id = :job_id AND seq >= place ORDER BY seq LIMIT 1"
    ") AS line ON true ORDER BY place"
)


class LineFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on a job's lines; None is no condition. `text` must occur in the line."""

    job_id: int
    log_type: str | None = None
    level: str | None = None
    rank: int | None = None
    attempt: int | None = None
    text: str | None = None
    ignores_case: bool = True
    """Whether the case of letters in `text` is ignored."""

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        """The conditions as SQL expressions."""
        wanted = {"log_type": self.log_type, "level": self.level, "rank": self.rank, "attempt": self.attempt}
        found: list[ColumnElement[bool]] = [
            _L[name] == value for name, value in wanted.items() if value is not None
        ]
        if self.text is not None and self.ignores_case:
            found.append(_contains(self.text))
        elif self.text is not None:
            found.append(_L.content.contains(self.text, autoescape=True))
        return found


class LinePage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of log lines, oldest first.

    If a limit (MOST_SCANNED lines or PAGE_BYTES of text) ended the search, `scanned` is the range of `seq` that
    was searched.
    """

    lines: list[LogLine]
    scanned: tuple[int, int] | None = None


def newest_page(
    connection: Connection, wanted: LineFilter, before: int, limit: int, *, is_cut: bool = True
) -> LinePage:
    """Return the last matching lines with `seq` < `before`, at most `limit`; see `LinePage` for the other limits.

    Lines longer than CUT_CHARS are cut, unless `is_cut` is False or `limit` is 1.
    """
    found: list[LogLine] = []
    room = PAGE_BYTES
    end = before - 1
    while end > 0:
        begin = max(1, end - _step(wanted) + 1)
        query = select_lines(wanted.job_id, _L.seq.between(begin, end), *wanted.conditions)
        query = query.order_by(_L.seq.desc()).limit(limit - len(found))
        cut_chars = _cut_chars(limit) if is_cut else None
        room -= _read(connection, lines_within(query, room, cut_chars, newest_first=True), found)
        if len(found) == limit:
            break
        if room <= 0:
            return LinePage(lines=found[::-1], scanned=(found[-1].seq, before - 1))
        end = begin - 1
        if before - begin >= MOST_SCANNED and end > 0:
            return LinePage(lines=found[::-1], scanned=(begin, before - 1))
    return LinePage(lines=found[::-1])


def next_page(
    connection: Connection, wanted: LineFilter, after: int, last: int, limit: int, *, is_cut: bool = True
) -> LinePage:
    """Return the first matching lines with `after` < `seq` <= `last`, at most `limit`.

    `LinePage` describes the other limits. Lines longer than CUT_CHARS are cut, unless `is_cut` is False or `limit`
    is 1.
    """
    found: list[LogLine] = []
    room = PAGE_BYTES
    begin = after + 1
    while begin <= last:
        end = min(last, begin + _step(wanted) - 1)
        query = select_lines(wanted.job_id, _L.seq.between(begin, end), *wanted.conditions)
        query = query.order_by(_L.seq).limit(limit - len(found))
        room -= _read(connection, lines_within(query, room, _cut_chars(limit) if is_cut else None), found)
        if len(found) == limit:
            break
        if room <= 0:
            return LinePage(lines=found, scanned=(after + 1, found[-1].seq))
        begin = end + 1
        if end - after >= MOST_SCANNED and begin <= last:
            return LinePage(lines=found, scanned=(after + 1, end))
    return LinePage(lines=found)


def next_piece(connection: Connection, wanted: LineFilter, after: int, last: int) -> tuple[list[LogLine], int]:
    """Return the next matching lines after the row `after`, and the `seq` to pass as `after` in the next call.

    There are at most PIECE_LINES, and they are not cut. The list may be empty before the row `last` is reached,
    because each call searches a limited number of rows.
    """
    page = next_page(connection, wanted, after, last, PIECE_LINES, is_cut=False)
    if page.scanned is not None:
        return page.lines, page.scanned[1]
    return page.lines, page.lines[-1].seq if len(page.lines) == PIECE_LINES else last


def seq_at(connection: Connection, job_id: int, at: datetime, last: int) -> int:
    """Return the lowest `seq` from which on lines have the time `at` or a later one; `last` + 1 if there are none.

    It is found by a search like a binary one, which looks at PROBES places at once. Times increase with `seq`,
    except for lines that arrived late.
    """
    low, high = 1, last + 1
    while low < high:
        places = sorted({low + (high - low) * number // (PROBES + 1) for number in range(1, PROBES + 1)})
        wanted = {"places": places, "job_id": job_id, "at": at}
        for place, seq, is_later in connection.execute(_NEXT_LINES, wanted):
            if seq is None or is_later:
                high = place
                break
            low = seq + 1
    return low


def _contains(text: str) -> ColumnElement[bool]:
    """Return the condition that a line contains `text`, ignoring case."""
    if not text.isascii():
        return _L.content.icontains(text, autoescape=True)
    # Only ASCII letters can match, whose case the collation "C" knows: it lowers a text in half of the time that a
    # locale takes, and strpos() searches faster than ILIKE.
    return func.strpos(func.lower(collate(_L.content, "C")), text.lower()) > 0


def _read(connection: Connection, query: Select[Any], found: list[LogLine]) -> int:
    """Append the lines of a query to `found`; return the total size of their texts."""
    rows = connection.execute(query).all()
    found += [log_line(row) for row in rows]
    return int(rows[-1].upto) if rows else 0


def _cut_chars(limit: int) -> int | None:
    return CUT_CHARS if limit > 1 else None


def _step(wanted: LineFilter) -> int:
    return SCAN_ROWS if wanted.conditions else MOST_SCANNED
