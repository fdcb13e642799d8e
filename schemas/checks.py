"""What a body may say: its numbers and times within what Postgres can store, its parts fitting together."""

from __future__ import annotations

from typing import Final

from schemas.messages import Body, Checkpoint, Completion, Logs, Metrics

MAX_ID: Final = 2**63 - 1
"""Largest job id and seq: a Postgres BIGINT."""
MAX_ATTEMPT: Final = 2**31 - 1
MAX_FREE_DEPTH: Final = 50

MIN_TIME_NS: Final = -62_135_596_800 * 10**9
MAX_TIME_NS: Final = 253_402_300_800 * 10**9 - 1
"""Years 1 to 9999: what Postgres and Python can both name."""


class InvalidMessage(ValueError):  # noqa: N818 - the word the whole project uses
    """An entry that can never be stored: `reason` is a stable slug to count by, the text names the value."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def check_body(body: Body) -> None:
    """Raise `InvalidMessage` where the fields, each of the right type, do not fit together or the tables."""
    if body.started_at is not None:
        _check_time(body.started_at)
    if isinstance(body, Logs):
        _check_logs(body)
    elif isinstance(body, Metrics):
        for point in body.points:
            _check_time(point.ts)
            _check_counts(epoch=point.epoch, step=point.step)
        if body.ts is not None:
            _check_time(body.ts)
        _check_depth(body.params)
        _check_depth(body.tags)
        if body.progress is not None:
            progress = body.progress
            _check_counts(current_epoch=progress.current_epoch, total_epochs=progress.total_epochs)
    elif isinstance(body, Checkpoint):
        _check_time(body.ts)
        _check_counts(epoch=body.epoch, step=body.step, size_bytes=body.size_bytes)
    else:
        _check_completion(body)
    _check_counts(rank=getattr(body, "rank", None), most=MAX_ATTEMPT)


def _check_depth(value: object, depth: int = 0) -> None:
    if depth > MAX_FREE_DEPTH:
        raise InvalidMessage("wrong-fields", f"params or tags are nested deeper than {MAX_FREE_DEPTH}")
    if isinstance(value, dict):
        for item in value.values():
            _check_depth(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_depth(item, depth + 1)


def _check_logs(body: Logs) -> None:
    count = len(body.lines)
    if len(body.ts) != count:
        raise InvalidMessage("wrong-fields", f"logs body: {count} lines but {len(body.ts)} times")
    if body.levels is not None and len(body.levels) != count:
        raise InvalidMessage("wrong-fields", f"logs body: {count} lines but {len(body.levels)} levels")
    if count:
        _check_time(min(body.ts))
        _check_time(max(body.ts))


def _check_completion(body: Completion) -> None:
    _check_time(body.ts)
    _check_counts(total_epochs_completed=body.total_epochs_completed, best_epoch=body.best_epoch)
    _check_counts(exit_code=body.exit_code, most=MAX_ATTEMPT)
    for counts in (body.produced, body.dropped):
        for kind, count in (counts or {}).items():
            if not 0 <= count <= MAX_ID:
                raise InvalidMessage("out-of-range", f"completions body: {count} {kind} is not a count")


def _check_time(ts: int) -> None:
    if not MIN_TIME_NS <= ts <= MAX_TIME_NS:
        raise InvalidMessage("time-out-of-range", f"time {ts} ns since 1970 is outside the years 1 to 9999")


def _check_counts(most: int = MAX_ID, **counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and not -most <= count <= most:
            raise InvalidMessage("out-of-range", f"{name} {count} is beyond {most}")
