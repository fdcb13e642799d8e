"""Reads the log of a job from Loki."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import accumulate, groupby
from operator import attrgetter
from typing import Final, NamedTuple

from sqlalchemy import Connection, func, select

from trainwire.schemas.events import LogLine
from trainwire.schemas.tables import delivery_cursors, training_jobs, training_logs
from trainwire.schemas.times import to_ns
from trainwire.stores.loki.config import MAX_AGE_NS, MAX_AHEAD_NS, MAX_FUTURE_NS
from trainwire.stores.loki.http import LokiHttp
from trainwire.stores.loki.query import LokiLine, number_of, read_lines, read_newest
from trainwire.stores.rows.log_pages import PAGE_BYTES, LineFilter

MARGIN_NS: Final = 10**9
UNNUMBERED: Final = 0
FIRST_SEQ: Final = 1


def lines_in_loki(connection: Connection, http: LokiHttp, job_id: int, extra: str = "") -> Iterator[LokiLine]:
    """Yield a job's lines in Loki, ordered by time; `extra` is appended to the label selector.

    The range of times is that of the job's rows in Postgres. If the first rows were removed there, it is every
    time with which Loki may have accepted a line of the job. Nothing is queried before the first line is
    requested. Raises `LokiUnavailable` if Loki does not respond or reports an error.
    """
    start_ns, end_ns = _range_ns(connection, job_id, _row_times(connection, job_id))
    yield from read_lines(http, job_id, start_ns, end_ns, extra)


def find_lines(connection: Connection, http: LokiHttp, wanted: LineFilter) -> Iterator[LogLine]:
    """Yield a job's lines in Loki, oldest first; parts of split lines are joined.

    They match the log type, the attempt and the text of `wanted`, with the same case.
    """
    extra = "" if wanted.log_type is None else f', log_type="{wanted.log_type}"'
    for line, content in whole_lines(lines_in_loki(connection, http, wanted.job_id, extra)):
        if wanted.attempt is not None and line.label("attempt") != str(wanted.attempt):
            continue
        if wanted.text is None or wanted.text in content:
            yield _event_line(line, content)


def newest_lines(connection: Connection, http: LokiHttp, job_id: int, limit: int) -> list[LogLine]:
    """Return at most `limit` of a job's last lines in Loki, oldest first; the parts of split lines are joined.

    Each part counts towards the limit, so fewer lines may be returned, and parts of the first one may be absent.
    The texts have at most PAGE_BYTES in total, except that of a single line. The limits of `read_newest` apply.
    """
    times = _row_times(connection, job_id)
    start_ns, _ = _range_ns(connection, job_id, times)
    newest = read_newest(http, job_id, start_ns, _newest_ns(connection, job_id, times), limit)
    found = [_event_line(line, text) for line, text in whole_lines(newest)][-limit:]
    sizes = accumulate(len(line.text.encode()) for line in reversed(found))
    fitting = sum(size <= PAGE_BYTES for size in sizes)
    return found[-max(fitting, 1) :]


def whole_lines(lines: Iterable[LokiLine]) -> Iterator[tuple[LokiLine, str]]:
    """Join the parts of split lines; yield (first part, complete text) for each line.

    `lines` must be ordered by time. Parts of the same line have the same time, so only lines with equal times are
    compared.
    """
    for _, group in groupby(lines, attrgetter("ts_ns")):
        parts: dict[object, dict[int, LokiLine]] = {}
        for number, line in enumerate(sorted(group, key=lambda line: (line.seq or UNNUMBERED, line.part))):
            # A stream of late lines may have a second copy of one seq: a separate line.
            is_part = line.label("part") is not None
            key = (line.label("seq"), line.label("log_type"), line.label("late")) if is_part else number
            parts.setdefault(key, {})[line.part] = line
        for joined in parts.values():
            yield next(iter(joined.values())), "".join(line.line for line in joined.values())


def without_newer(lines: Iterable[LokiLine], last_seq: int, newest_seq: Callable[[], int]) -> Iterator[LokiLine]:
    """Yield `lines`, except those whose rows were stored in Postgres after the caller had read `last_seq`.

    `newest_seq` returns the current last `seq` of the job. It is called when a line has a higher `seq` than any
    known so far.
    """
    newest = last_seq
    for line in lines:
        seq = line.seq or UNNUMBERED
        if seq > newest:
            newest = newest_seq()
        if not last_seq < seq <= newest:
            yield line


def _trainers_ns(line: LokiLine) -> int:
    """Return the time at which the trainer logged the line, in nanoseconds since 1970.

    It is the structured metadata `logged_at` if the line was sent to Loki with another time, otherwise the line's
    time in Loki.
    """
    whole, _, fraction = (line.label("logged_at") or "").removesuffix("Z").partition(".")
    try:
        return to_ns(datetime.fromisoformat(whole).replace(tzinfo=UTC)) + int(f"{fraction:0<9}"[:9])
    except ValueError:
        return line.ts_ns


def _attempt_of(line: LokiLine) -> int:
    """Return the attempt number in the labels, or 0 if there is none.

    The number is below 1 for an earlier run that was sent late.
    """
    label = line.label("attempt") or ""
    number = number_of(label.removeprefix("-")) or UNNUMBERED
    return -number if label.startswith("-") else number


def _event_line(line: LokiLine, text: str) -> LogLine:
    return LogLine(
        seq=line.seq or UNNUMBERED,
        attempt=_attempt_of(line),
        ts=_trainers_ns(line),
        log_type="stderr" if line.label("log_type") == "stderr" else "stdout",
        text=text,
        level=line.label("level"),
        rank=number_of(line.label("rank")),
    )


class _RowTimes(NamedTuple):
    """The first and the last time of a job's rows in Postgres, as sent to Loki, and their first `seq`.

    All are None if there are no rows.
    """

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
        # Removed rows were delivered after the job began, with times that Loki accepted then.
        known = select(training_jobs.c.created_at).where(training_jobs.c.id == job_id)
        began = connection.execute(known).scalar_one_or_none() or now
        start_ns, end_ns = min(start_ns, to_ns(began) - MAX_AGE_NS), max(end_ns, to_ns(now) + MAX_FUTURE_NS)
    return start_ns - MARGIN_NS, end_ns + MARGIN_NS


def _newest_ns(connection: Connection, job_id: int, times: _RowTimes) -> int:
    """Return an upper bound for the times of the job's lines in Loki, in nanoseconds since 1970.

    It is the time of the newest row in Postgres plus a margin. Without rows it is the time of the newest line sent
    to Loki, or, if that is unknown, the latest time that Loki accepts now.
    """
    if times.last is not None:
        return to_ns(times.last) + MARGIN_NS
    cursor = delivery_cursors.c
    sent = select(cursor.state).where(cursor.sink == "loki", cursor.job_id == job_id)
    newest = connection.execute(sent).scalar_one_or_none() or {}
    return max(newest.values(), default=to_ns(datetime.now(UTC)) + MAX_FUTURE_NS) + MARGIN_NS
