"""Converts messages into table rows: tuples in the order of columns of `trainwire.schemas.tables.kinds`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from psycopg.types.json import Jsonb

from trainwire.schemas.non_finite import shown_float
from trainwire.schemas.tables import LIFTED
from trainwire.schemas.wire.messages import Body, Checkpoint, Completion, Logs, Metrics
from trainwire.schemas.wire.validation import MAX_ID, InvalidMessage
from trainwire.stores.postgres.storable_text import storable_text

Row = tuple[object, ...]

POSTGRES_EPOCH_US: Final = 946_684_800 * 1_000_000
"""2000-01-01 in microseconds since 1970; Postgres' binary format of a time counts microseconds from that date.

Rows contain times as such integers: a datetime object would take longer to make than the rest of the row.
"""

_LIFTED_NAMES: Final = frozenset(name for names in LIFTED.values() for name in names)


@dataclass(slots=True)
class Origin:
    """The values that all rows of one message share: job, attempt, source and rank."""

    job_id: int
    attempt: int
    source: str
    rank: int | None = None


def rows_of(origin: Origin, first_seq: int, body: Logs | Metrics | Checkpoint) -> tuple[int, Iterable[Row]]:
    """Return the number of rows of a message, and the rows, numbered from `first_seq`."""
    match body:
        case Logs():
            return len(body.lines), log_rows(origin, first_seq, body)
        case Metrics():
            return len(body.points), metric_rows(origin, first_seq, body)
        case Checkpoint():
            return 1, [checkpoint_row(origin, first_seq, body)]


def log_lines(body: Body) -> Logs | None:
    """Return the lines that a message adds to the logs: those of a log message, or a completion's traceback.

    Returns None if it adds none.
    """
    if isinstance(body, Logs):
        return body
    if not isinstance(body, Completion) or body.traceback is None:
        return None
    return Logs(log_type="stderr", lines=[f"TRACEBACK:\n{body.traceback}"], ts=[body.ts])


def log_rows(origin: Origin, first_seq: int, body: Logs) -> Iterator[Row]:
    """Yield one row of `training_logs` per line."""
    job_id, attempt, rank, source = origin.job_id, origin.attempt, origin.rank, origin.source
    log_type = body.log_type
    levels: Iterable[str | None] = body.levels or (None,) * len(body.lines)
    seq = first_seq
    for line, ts, level in zip(body.lines, body.ts, levels, strict=True):
        micros, nanos = divmod(ts, 1000)
        content = storable_text(line) if "\x00" in line else line
        at = micros - POSTGRES_EPOCH_US
        yield job_id, seq, attempt, rank, source, log_type, at, nanos, level and storable_text(level), content
        seq += 1


def metric_rows(origin: Origin, first_seq: int, body: Metrics) -> Iterator[Row]:
    """Yield one row of `training_metrics` per point."""
    job_id, attempt, rank, source = origin.job_id, origin.attempt, origin.rank, origin.source
    known: tuple[str, ...] | None = None
    for seq, point in enumerate(body.points, first_seq):
        values, path = point.values, point.checkpoint_path
        if (names := tuple(values)) != known:  # most points have the same metrics as the one before
            known, (lifted, rest) = names, _split_names(values)
        yield (
            job_id,
            seq,
            attempt,
            rank,
            source,
            point.ts // 1000 - POSTGRES_EPOCH_US,
            point.epoch,
            point.step,
            *[name and values[name] for name in lifted],
            path and storable_text(path),
            _jsonb({name: values[name] for name in rest}) if rest else None,
        )


def checkpoint_row(origin: Origin, seq: int, body: Checkpoint) -> Row:
    """Return the row of `training_checkpoints` for a checkpoint."""
    return (
        origin.job_id,
        seq,
        origin.attempt,
        origin.source,
        _postgres_time(body.ts),
        storable_text(body.kind),
        storable_text(body.uri),
        body.epoch,
        body.step,
        body.size_bytes,
        body.sha256 and storable_text(body.sha256),
        body.store_checksum and storable_text(body.store_checksum),
        body.upload_error and storable_text(body.upload_error),
        is_best(body),
        _jsonb(as_stored(body.metrics or {})),
    )


def is_best(body: Checkpoint) -> bool:
    """Return whether a checkpoint is the best so far: `is_best` decides or, if it is not set, `kind`."""
    return body.kind == "best" if body.is_best is None else body.is_best


def _split_names(values: Mapping[str, float]) -> tuple[list[str | None], list[str]]:
    """Return the metric for each column of `LIFTED` (None if absent), and the names of all other metrics."""
    if values.keys().isdisjoint(_LIFTED_NAMES):
        return [None] * len(LIFTED), list(values)
    lifted = [next((name for name in synonyms if name in values), None) for synonyms in LIFTED.values()]
    return lifted, [name for name in values if name not in lifted]


def as_stored(values: Mapping[str, float]) -> dict[str, float]:
    """Return metrics with the names of columns in place of their synonyms, such as `accuracy` for `acc`."""
    lifted, rest = _split_names(values)
    stored = {column: values[name] for column, name in zip(LIFTED, lifted, strict=True) if name is not None}
    return stored | {name: values[name] for name in rest}


def jsonb_text(value: object) -> bytes:
    """Return `value` as JSON that a JSONB column accepts.

    Non-finite numbers and very large integers become strings, and invalid characters are replaced. Raises
    `InvalidMessage` if `value` is nested too deeply.
    """
    try:
        return msgspec.json.encode(_storable(value))
    except RecursionError as exc:
        raise InvalidMessage("wrong-fields", "a JSON value is nested too deeply to store") from exc


def _postgres_time(ts_ns: int) -> int:
    return ts_ns // 1000 - POSTGRES_EPOCH_US


def _jsonb(values: Mapping[str, float] | None) -> Jsonb | None:
    return Jsonb(values, dumps=_number_map) if values else None


def _number_map(values: Mapping[str, float]) -> bytes:
    # A sum is finite only if all its terms are; one sum is far cheaper than a test of each value.
    if math.isfinite(sum(values.values())):
        data = msgspec.json.encode(values)
        if b"\\u0000" not in data:
            return data
    return jsonb_text(values)


def _storable(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return shown_float(value)
    if isinstance(value, int) and abs(value) <= MAX_ID:
        return value
    if isinstance(value, dict):
        return {storable_text(str(key)): _storable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(item) for item in value]
    return storable_text(str(value))
