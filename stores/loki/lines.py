"""Lines read back from Loki, as a job's log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

from sqlalchemy import Connection, func, select

from trainwire.schemas.events import LogLine as EventLine
from trainwire.schemas.tables import delivery_cursors, training_jobs, training_logs
from trainwire.schemas.times import to_datetime, to_ns
from trainwire.stores.loki.config import MAX_AGE_NS, MAX_AHEAD_NS, MAX_FUTURE_NS
from trainwire.stores.loki.http import LokiHttp
from trainwire.stores.loki.log_filters import LogFilter, LogLine
from trainwire.stores.loki.query import LokiLine, read_lines, read_newest

MARGIN_NS: Final = 10**9
MAX_DIGITS: Final = 18
UNNUMBERED: Final = 0
FIRST_SEQ: Final = 1


def lines_in_loki(connection: Connection, http: LokiHttp, job_id: int, extra: str = "") -> Iterator[LokiLine]:
    """Yield what Loki has of a job, by time, in the range of times of the rows that Postgres has or has had.

    Where rows are gone, all times are asked for that Loki can have had of the job. Postgres is asked together with
    the first line.
    """
    start_ns, end_ns = _range_ns(connection, job_id, _row_times(connection, job_id))
    yield from read_lines(http, job_id, start_ns, end_ns, extra)


def find_lines(connection: Connection, http: LokiHttp, wanted: LogFilter) -> Iterator[LogLine]:
    """Yield the matching lines of a job, oldest first."""
    extra = "" if wanted.log_type is None else f', log_type="{wanted.log_type}"'
    for line, content in whole_lines(lines_in_loki(connection, http, wanted.job_id, extra)):
        if wanted.attempt is not None and line.label("attempt") != str(wanted.attempt):
            continue
        if wanted.text is None or wanted.text in content:
            yield _log_line(line, content)


def newest_lines(connection: Connection, http: LokiHttp, job_id: int, limit: int) -> list[EventLine]:
    """Return the last lines that Loki has of a job, oldest first, as events carry them; split ones are joined."""
    times = _row_times(connection, job_id)
    start_ns, _ = _range_ns(connection, job_id, times)
    newest = read_newest(http, job_id, start_ns, _newest_ns(connection, job_id, times), limit)
    return [_event_line(line, text) for line, text in whole_lines(newest)][-limit:]


def whole_lines(lines: Iterable[LokiLine]) -> Iterator[tuple[LokiLine, str]]:
    """Yield each line with its text, the parts of a split one joined; parts share their nanosecond."""
    for _, group in groupby(lines, attrgetter("ts_ns")):
        parts: dict[object, dict[int, LokiLine]] = {}
        for number, line in enumerate(sorted(group, key=_place)):
            # Of one seq a late stream may hold a second copy: that one is a line of its own.
            is_part = line.label("part") is not None
            key = (line.label("seq"), line.label("log_type"), line.label("late")) if is_part else number
            parts.setdefault(key, {})[part_of(line)] = line
        for joined in parts.values():
            yield next(iter(joined.values())), "".join(line.line for line in joined.values())


def seq_of(line: LokiLine) -> int | None:
    """Return the number that the line has in Postgres, None for a line that is not ours."""
    return _number(line.label("seq"))


def part_of(line: LokiLine) -> int:
    """Return which part of a split line this is; a whole line is its own first part."""
    return _number((line.label("part") or "").partition("/")[0]) or 1


def parts_of(line: LokiLine) -> int:
    """Return into how many parts the line was split, 1 for a whole line."""
    return _number((line.label("part") or "").partition("/")[2]) or 1


def without_newer(lines: Iterable[LokiLine], last_seq: int, newest_seq: Callable[[], int]) -> Iterator[LokiLine]:
    """Yield the lines but those of rows that came into Postgres after `last_seq` was read."""
    newest = last_seq
    for line in lines:
        seq = seq_of(line) or UNNUMBERED
        if seq > newest:
            newest = newest_seq()
        if not last_seq < seq <= newest:
            yield line


def _trainers_ns(line: LokiLine) -> int:
    """Return the trainer's time: Loki's, unless its clock was so far ahead that the line was sent with another."""
    whole, _, fraction = (line.label("logged_at") or "").removesuffix("Z").partition(".")
    try:
        return to_ns(datetime.fromisoformat(whole).replace(tzinfo=UTC)) + int(f"{fraction:0<9}"[:9])
    except ValueError:
        return line.ts_ns


def _place(line: LokiLine) -> tuple[int, int]:
    return seq_of(line) or UNNUMBERED, part_of(line)


def _number(text: str | None) -> int | None:
    return int(text) if text and len(text) <= MAX_DIGITS and text.isascii() and text.isdecimal() else None


def _attempt_of(line: LokiLine) -> int:
    """Return the attempt, which is below 1 for a run that was sent late."""
    label = line.label("attempt") or ""
    number = _number(label.removeprefix("-")) or UNNUMBERED
    return -number if label.startswith("-") else number


def _event_line(line: LokiLine, text: str) -> EventLine:
    return EventLine(
        seq=seq_of(line) or UNNUMBERED,
        attempt=_attempt_of(line),
        ts=_trainers_ns(line),
        log_type="stderr" if line.label("log_type") == "stderr" else "stdout",
        text=text,
        level=line.label("level"),
        rank=_number(line.label("rank")),
    )


def _log_line(line: LokiLine, content: str) -> LogLine:
    return LogLine(
        seq=seq_of(line) or UNNUMBERED,
        logged_at=to_datetime(_trainers_ns(line)),
        log_type=line.label("log_type") or "",
        level=line.label("level"),
        rank=_number(line.label("rank")),
        content=content,
    )


class _RowTimes(NamedTuple):
    """The first and the last time that rows in Postgres have in Loki, of a job, and their first number."""

    first: datetime | None
    last: datetime | None
    first_seq: int | None


def _row_times(connection: Connection, job_id: int) -> _RowTimes:
    rows = training_logs.c
    sent_at = func.least(rows.logged_at, rows.created_at + timedelta(microseconds=MAX_AHEAD_NS // 1000))
    times = select(func.min(sent_at), func.max(sent_at), func.min(rows.seq))
    return _RowTimes(*connection.execute(times.where(rows.job_id == job_id)).one())


def _range_ns(connection: Connection, job_id: int, times: _RowTimes) -> tuple[int, int]:
    now = datetime.now(UTC)
    start_ns, end_ns = to_ns(times.first or now), to_ns(times.last or now)
    if times.first_seq != FIRST_SEQ:
        # A row is delivered after its job began, with a time that Loki takes then.
        known = select(training_jobs.c.created_at).where(training_jobs.c.id == job_id)
        began = connection.execute(known).scalar_one_or_none() or now
        start_ns, end_ns = min(start_ns, to_ns(began) - MAX_AGE_NS), max(end_ns, to_ns(now) + MAX_FUTURE_NS)
    return start_ns - MARGIN_NS, end_ns + MARGIN_NS


def _newest_ns(connection: Connection, job_id: int, times: _RowTimes) -> int:
    """Return the time of the newest row that Postgres has or, where it has none, that Loki was sent."""
    if times.last is not None:
        return to_ns(times.last) + MARGIN_NS
    cursor = delivery_cursors.c
    sent = select(cursor.state).where(cursor.sink == "loki", cursor.job_id == job_id)
    newest = connection.execute(sent).scalar_one_or_none() or {}
    return max(newest.values(), default=to_ns(datetime.now(UTC)) + MAX_FUTURE_NS) + MARGIN_NS
