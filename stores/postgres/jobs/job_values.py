"""SQL expressions on training_jobs for the values of job fields (`trainwire.schemas.filters`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Double,
    Numeric,
    Text,
    and_,
    case,
    cast,
    extract,
    func,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from trainwire.schemas.filters.job_fields import Field
from trainwire.schemas.tables import (
    INDEXED_CHARS,
    LIFTED,
    ROLLUPS_CURSOR,
    delivery_cursors,
    metric_series,
    source_positions,
    training_attempts,
    training_jobs,
    training_metrics,
)
from trainwire.schemas.wire.messages import FINISHED

Value: TypeAlias = ColumnElement[Any]
MOST_WAITING_ROWS: Final = 1000
"""Largest number of rows without blocks that are searched for a metric's minimum or maximum."""
NEWEST_ROWS: Final = 30
"""Number of rows in which the newest value of a metric is searched."""
_NUMBER: Final = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?$"
_MAX_NUMBER_CHARS: Final = 400
"""Longest text that is converted to a number; JSONB stores 1e300 with all of its digits."""
_jobs: Final = training_jobs.c

SHOWN_NAME: Final = "coalesce(given_name, name)"
"""SQL of the name that a person or else the trainer gave to a job."""
shown_name: Value = func.coalesce(_jobs.given_name, case((func.btrim(_jobs.name) != "", _jobs.name)))
"""The name given by a person; otherwise the trainer's name, unless it is blank."""
shown_tags: Value = literal_column(
    "CASE WHEN training_jobs.given_tags IS NULL THEN training_jobs.tags ELSE "
    "jsonb_strip_nulls(coalesce(training_jobs.tags, '{}') || training_jobs.given_tags) END",
    JSONB,
)
"""The trainer's tags, changed by the tags that people have added, replaced and removed."""


def value_of(field: Field, now: datetime) -> Value:
    """Return an SQL expression for the value of a field; `params` and `tags` are text, durations are seconds.

    The duration of a running job ends at `now`.
    """
    if field.type == "free":
        return json_of(field).op("#>>", return_type=Text())(cast(literal([], ARRAY(Text)), ARRAY(Text)))
    return _metric(field) if field.space else _COLUMNS[field.name](now)


def json_of(field: Field) -> Value:
    """Return an SQL expression for the JSON value of a field of `params` or `tags`.

    A name with dots, such as `model.depth`, is first looked up as a key, then as the path of a nested value.
    """
    column = cast(_jobs.params if field.space == "params" else shown_tags, JSONB)
    found = column.op("->", return_type=JSONB())(literal(field.name, Text))
    if "." not in field.name:
        return found
    path = cast(literal(field.name.split("."), ARRAY(Text)), ARRAY(Text))
    return func.coalesce(found, column.op("#>", return_type=JSONB())(path), type_=JSONB())


def is_float(field: Field) -> bool:
    """Return whether the values of a number or duration field are floats; others are integers."""
    return field.space == "metrics" or field.name in ("progress", "duration")


def as_number(text: Value) -> Value:
    """Return an SQL expression that converts a text to a number, or to NULL if it is not one."""
    is_number = and_(func.length(text) <= _MAX_NUMBER_CHARS, text.op("~")(_NUMBER))
    return case((is_number, cast(text, Numeric)))


def without_nan(number: Value) -> Value:
    """Return an SQL expression that replaces NaN by NULL, because Postgres sorts NaN after all numbers."""
    return func.nullif(number, cast(literal("NaN"), Double))


def _metric(field: Field) -> Value:
    column = next((column for column, names in LIFTED.items() if field.name in names), None)
    names = [field.name] if column is None else [column, *(name for name in LIFTED[column] if name != column)]
    if field.of == "best":
        return _result(_jobs.best_metrics, names)
    if field.of in _EXTREMES:
        return _extreme(field.of, field.name, column)
    return func.coalesce(_result(_jobs.final_metrics, names), _newest(field.name, column))


def _result(results: Value, names: list[str]) -> Value:
    found = [results.op("->>", return_type=Text())(literal(name, Text)) for name in names]
    return cast(func.coalesce(*found) if len(found) > 1 else found[0], Double)


def _newest(name: str, column: str | None) -> Value:
    """Return an SQL expression for the newest value of a metric in the last NEWEST_ROWS rows of a job.

    The rows are read only if the job has a series of the metric, or rows without blocks. Many jobs of a list do
    not have the metric, and to look at their rows takes five times as long as to look into two indexes.
    """
    rows = training_metrics.c
    value = _value(name, column)
    wanted = and_(rows.job_id == _jobs.id, rows.seq > _jobs.last_metric_seq - NEWEST_ROWS)
    found = select(value).where(wanted, value.is_not(None)).order_by(rows.seq.desc()).limit(1)
    has_series = select(literal(1)).where(_is_series_of(column or name)).correlate(training_jobs).exists()
    may_have = or_(has_series, _jobs.last_metric_seq > _last_in_blocks())
    return case((may_have, found.correlate(training_jobs).scalar_subquery()))


def _value(name: str, column: str | None) -> Value:
    if column is not None:
        return training_metrics.c[column]
    text = training_metrics.c.extra_metrics.op("->>", return_type=Text())(literal(name, Text))
    return cast(text, Double)


def _is_series_of(name: str) -> ColumnElement[bool]:
    """Return the condition that a row of metric_series belongs to the metric `name` of the job."""
    series = metric_series.c
    in_index = func.left(series.name.collate("C"), INDEXED_CHARS) == name[:INDEXED_CHARS]
    return and_(series.job_id == _jobs.id, in_index, series.name == name)


def _last_in_blocks() -> Value:
    """Return an SQL expression for the `seq` of the job's last row in blocks; 0 if it has none."""
    cursors = delivery_cursors.c
    cursor = select(cursors.confirmed_seq).where(cursors.sink == ROLLUPS_CURSOR, cursors.job_id == _jobs.id)
    return func.coalesce(cursor.correlate(training_jobs).scalar_subquery(), 0)


def _extreme(of: str, name: str, column: str | None) -> Value:
    """Return an SQL expression for the minimum or maximum of a metric.

    It combines the extremes of the metric's blocks with those of newer rows, which have no blocks yet; of these,
    only the last MOST_WAITING_ROWS of the job are read.
    """
    aggregate, stored, least = _EXTREMES[of]
    series, rows = metric_series.c, training_metrics.c
    of_series = and_(_is_series_of(column or name), series.low <= series.high)
    in_blocks = select(aggregate(series[stored])).where(of_series).correlate(training_jobs).scalar_subquery()
    followed = _last_in_blocks()
    first = func.greatest(followed, _jobs.last_metric_seq - MOST_WAITING_ROWS)
    waiting = select(aggregate(without_nan(_value(name, column))))
    waiting = waiting.where(rows.job_id == _jobs.id, rows.seq > first).correlate(training_jobs)
    # Most jobs have no such rows; in Postgres `least` and `greatest` ignore NULL.
    of_rows = case((_jobs.last_metric_seq > followed, waiting.scalar_subquery()))
    found: Value = least(in_blocks, of_rows, type_=Double())
    return found


def _seconds(now: datetime) -> Value:
    ended = case((_jobs.status.in_(FINISHED), _jobs.completed_at))
    until = case(
        (_jobs.status == "lost", _jobs.last_seen_at),
        else_=func.coalesce(ended, literal(now, DateTime(timezone=True))),
    )
    spent = extract("epoch", until - func.coalesce(_jobs.started_at, _jobs.created_at))
    return case((_jobs.status != "pending", cast(func.greatest(spent, 0), Double)))


def _progress(_: datetime) -> Value:
    of_epochs = case(
        (
            and_(_jobs.total_epochs > 0, _jobs.current_epoch >= 0),
            func.least(100.0, 100.0 * _jobs.current_epoch / _jobs.total_epochs),
        )
    )
    return case((_jobs.status == "completed", 100.0), else_=func.coalesce(_jobs.progress_percent, of_epochs))


def _ranks(_: datetime) -> Value:
    sources = source_positions.c
    count = func.coalesce(func.max(sources.world_size), func.max(sources.rank) + 1)
    of_job = and_(sources.job_id == _jobs.id, sources.attempt == _jobs.attempt)
    return select(count).where(of_job).correlate(training_jobs).scalar_subquery()


def _provenance(*path: str) -> Callable[[datetime], Value]:
    def found(_: datetime) -> Value:
        rows = training_attempts.c
        value = rows.provenance.op("#>>", return_type=Text())(cast(literal(list(path), ARRAY(Text)), ARRAY(Text)))
        of_job = and_(rows.job_id == _jobs.id, rows.attempt == _jobs.attempt)
        return select(value).where(of_job).correlate(training_jobs).scalar_subquery()

    return found


def _column(column: Value) -> Callable[[datetime], Value]:
    return lambda _: column


_EXTREMES: Final[Mapping[str, tuple[Any, str, Any]]] = {
    "min": (func.min, "low", func.least),
    "max": (func.max, "high", func.greatest),
}
"""Kind of value -> aggregate, column in metric_series, and function for the smaller or larger of two values."""
_COLUMNS: Final[Mapping[str, Callable[[datetime], Value]]] = {
    "id": _column(_jobs.id),
    "name": _column(shown_name),
    "status": _column(_jobs.status),
    "attempt": _column(_jobs.attempt),
    "created": _column(_jobs.created_at),
    "started": _column(_jobs.started_at),
    "ended": _column(_jobs.completed_at),
    "seen": _column(_jobs.last_seen_at),
    "duration": _seconds,
    "progress": _progress,
    "epoch": _column(_jobs.current_epoch),
    "epochs": _column(_jobs.total_epochs),
    "best_epoch": _column(_jobs.best_epoch),
    "exit_code": _column(_jobs.exit_code),
    "error": _column(_jobs.error_message),
    "ranks": _ranks,
    "machine": _provenance("host", "name"),
    "user": _provenance("user"),
    "lines": _column(_jobs.last_log_seq),
    "points": _column(_jobs.last_metric_seq),
    "checkpoints": _column(_jobs.last_checkpoint_seq),
    "parent": _column(_jobs.parent_id),
    "note": _column(_jobs.note),
    "archived": _column(case((_jobs.archived_at.is_not(None), literal(True)), else_=literal(False))),
}
