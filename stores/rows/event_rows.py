"""Reads rows of a job in the form that events use (schemas/events.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, RowMapping, Select, case, func, select

from trainwire.schemas.events import LogLine
from trainwire.schemas.non_finite import Number, shown_float
from trainwire.schemas.tables import LIFTED, training_logs
from trainwire.schemas.times import to_ns

MOST_BYTES_OF_CHAR: Final = 4
_L: Final = training_logs.c
_LOG_COLUMNS: Final = (_L.seq, _L.attempt, _L.logged_at, _L.logged_ns, _L.log_type, _L.content, _L.level, _L.rank)


def select_lines(job_id: int, *conditions: ColumnElement[bool]) -> Select[Any]:
    """Return a query for log rows of a job, without an order; `log_line` converts its rows."""
    return select(*_LOG_COLUMNS).where(_L.job_id == job_id, *conditions)


def lines_within(
    wanted: Select[Any], most_bytes: int, cut_chars: int | None = None, *, newest_first: bool = False
) -> Select[Any]:
    """Limit a `select_lines` query to its first rows, up to the one with which their texts reach `most_bytes`.

    Rows are ordered by `seq`, descending if `newest_first` is True; the first one is always returned. The
    additional column `upto` is the total size of the texts up to and including the row. A text longer than
    `cut_chars` characters (None: no limit) is cut, with a note at its end, and counts as at most 4 * `cut_chars`
    bytes. Omitted rows are cheap, because Postgres gets the size of a text without reading it.
    """
    rows = wanted.subquery().c
    size: ColumnElement[int] = func.octet_length(rows.content)
    if cut_chars is not None:
        size = func.least(size, MOST_BYTES_OF_CHAR * cut_chars)
    order = rows.seq.desc() if newest_first else rows.seq
    sums = select(*rows, size.label("size"), func.sum(size).over(order_by=order).label("upto")).subquery().c
    columns = [
        _cut(sums.content, cut_chars) if column is _L.content else sums[column.name] for column in _LOG_COLUMNS
    ]
    found = select(*columns, sums.upto).where(sums.upto - sums.size < most_bytes)
    return found.order_by(sums.seq.desc() if newest_first else sums.seq)


def _cut(text: ColumnElement[str], most: int | None) -> ColumnElement[str]:
    if most is None:
        return text
    mark = func.concat(" … [cut: the line has ", func.length(text), " characters]")
    # The size in bytes is stored, characters have to be counted.
    is_long = case((func.octet_length(text) > most, func.length(text) > most), else_=False)
    return case((is_long, func.concat(func.left(text, most), mark)), else_=text)


def log_line(row: Sequence[Any]) -> LogLine:
    """Convert a row of `select_lines` to the log line of an event."""
    seq, attempt, at, nanos, log_type, content, level, rank = row[: len(_LOG_COLUMNS)]
    ts = to_ns(at) + nanos
    return LogLine(seq=seq, attempt=attempt, ts=ts, log_type=log_type, text=content, level=level, rank=rank)


def values_of(row: RowMapping) -> dict[str, Number]:
    """Return all metrics of a row of training_metrics (name -> value).

    Metrics that have their own column in the table come first.
    """
    lifted = {name: shown_float(row[name]) for name in LIFTED if row[name] is not None}
    return {**lifted, **(row["extra_metrics"] or {})}
