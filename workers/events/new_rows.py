"""Converts the new rows of a transaction for its event, which contains all of them or, if too large, none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count, repeat
from typing import Any, Final, TypeAlias

import msgspec

from trainwire.schemas.events import LogLine, MetricPoint, SavedCheckpoint
from trainwire.schemas.non_finite import Number, shown_float
from trainwire.schemas.tables.kinds import RowKind
from trainwire.schemas.wire.messages import Checkpoint, Metrics
from trainwire.stores.postgres.storable_text import storable_text
from trainwire.workers.drain.changes import Change
from trainwire.workers.drain.rows import as_stored, is_best, log_lines

MAX_ROWS_BYTES: Final = 16 * 1024
"""Maximum size as JSON of the log lines, points or checkpoints in an event."""
_MIN_ROW_BYTES: Final = 60

_encode = msgspec.json.Encoder().encode
EventRow: TypeAlias = LogLine | MetricPoint | SavedCheckpoint


def rows_of_event(change: Change, kind: RowKind) -> list[EventRow] | None:
    """Return the new rows of a kind for the event of a job, or None if there are none or too many."""
    first, last = change.new_rows(kind) or (1, 0)
    if not 0 < (last - first + 1) * _MIN_ROW_BYTES <= MAX_ROWS_BYTES:
        return None
    room = MAX_ROWS_BYTES
    kept = []
    for row in _ROWS[kind](change, count(first)):
        room -= len(_encode(row)) + 1
        if room < 0:
            return None
        kept.append(row)
    return kept


def text(value: str | None) -> str | None:
    """Return `value` as Postgres stores it, with invalid characters replaced; None for None."""
    return None if value is None else storable_text(value)


def numbers(values: Mapping[str, Any] | None) -> dict[str, Number] | None:
    """Return a map of numbers for JSON, in which non-finite numbers are strings; None for None."""
    return None if values is None else {storable_text(name): shown_float(value) for name, value in values.items()}


def _lines(change: Change, seqs: Iterator[int]) -> Iterator[LogLine]:
    for message in change.messages:
        body = log_lines(message.body)
        if body is None:
            continue
        attempt = change.attempt_of(message)
        for line, ts, level in zip(body.lines, body.ts, body.levels or repeat(None), strict=False):
            yield LogLine(
                seq=next(seqs),
                attempt=attempt,
                ts=ts,
                log_type=body.log_type,
                text=storable_text(line),
                level=text(level),
                rank=body.rank,
            )


def _points(change: Change, seqs: Iterator[int]) -> Iterator[MetricPoint]:
    for message in change.messages:
        assert isinstance(message.body, Metrics)  # noqa: S101 - the stream of that kind
        attempt = change.attempt_of(message)
        for point in message.body.points:
            yield MetricPoint(
                seq=next(seqs),
                attempt=attempt,
                ts=point.ts,
                values=numbers(as_stored(point.values)) or {},
                epoch=point.epoch,
                step=point.step,
                rank=message.body.rank,
            )


def _checkpoints(change: Change, seqs: Iterator[int]) -> Iterator[SavedCheckpoint]:
    for message in change.messages:
        body = message.body
        assert isinstance(body, Checkpoint)  # noqa: S101 - the stream of that kind
        yield SavedCheckpoint(
            seq=next(seqs),
            attempt=change.attempt_of(message),
            ts=body.ts,
            checkpoint_kind=storable_text(body.kind),
            uri=storable_text(body.uri),
            is_best=is_best(body),
            epoch=body.epoch,
            step=body.step,
            size_bytes=body.size_bytes,
            sha256=text(body.sha256),
            metrics=numbers(body.metrics and as_stored(body.metrics)),
        )


_ROWS: Final[dict[RowKind, Callable[[Change, Iterator[int]], Iterator[EventRow]]]] = {
    "logs": _lines,
    "metrics": _points,
    "checkpoints": _checkpoints,
}
