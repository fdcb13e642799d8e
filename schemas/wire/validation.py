"""Validation of decoded bodies: values that Postgres can store, sizes within the limits, consistent fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

from trainwire.schemas.wire.limits import (
    MAX_ALERT_TEXT_CHARS,
    MAX_ALERT_TITLE_CHARS,
    MAX_ALERTS,
    MAX_BODY_BYTES,
    MAX_FREE_DEPTH,
    MAX_FREE_ELEMENTS,
    MAX_ITEMS,
    MAX_LEVEL_CHARS,
    MAX_LINE_CHARS,
    MAX_METRIC_NAME_CHARS,
    MAX_RESULTS,
    MAX_TEXT_CHARS,
    MAX_VALUES,
)
from trainwire.schemas.wire.messages import (
    BODY_TYPES,
    FREE_MAPS,
    Body,
    Checkpoint,
    Completion,
    Logs,
    Metrics,
    Point,
)

MAX_ID: Final = 2**63 - 1
"""Largest job number and `seq`: the maximum of a Postgres BIGINT."""
LEAST_MADE_ID: Final = 2**46
"""Smallest job number that trainers generate if the user gives none; users choose smaller ones."""
MAX_ATTEMPT: Final = 2**31 - 1

MIN_TIME_NS: Final = -62_135_596_800 * 10**9
MAX_TIME_NS: Final = 253_402_300_800 * 10**9 - 1
"""The end of the year 9999; MIN_TIME_NS is the start of the year 1. Postgres and Python both support this range.
"""


class InvalidMessage(ValueError):  # noqa: N818 - one of the three error classes: invalid, unavailable, anything else
    """An entry that can never be stored.

    `reason` is a stable slug by which dead letters are counted; the error text names the invalid value.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


_TEXTS: Final = {
    body_type: [(name, MAX_TEXT_CHARS[name]) for name in body_type.__struct_fields__ if name in MAX_TEXT_CHARS]
    for body_type in BODY_TYPES.values()
}


def check_body(body: Body, size_bytes: int = MAX_BODY_BYTES) -> None:
    """Raise `InvalidMessage` if fields of a decoded body contradict each other or cannot be stored.

    The decoder has already checked their types. The reason is `too-large` for a part above its limit
    (`trainwire.schemas.wire.limits`). Limits that an encoded body of `size_bytes` cannot exceed are not checked.
    """
    if body.started_at is not None:
        _check_time(body.started_at)
    for name, most in _TEXTS[type(body)]:
        _check_text(name, getattr(body, name), most)
    if isinstance(body, Logs):
        _check_logs(body, size_bytes)
    elif isinstance(body, Metrics):
        _check_metrics(body, size_bytes)
    elif isinstance(body, Checkpoint):
        _check_time(body.ts)
        _check_counts(epoch=body.epoch, step=body.step, size_bytes=body.size_bytes)
        _check_numbers("metrics", body.metrics)
    else:
        _check_completion(body)
    rank = getattr(body, "rank", None)
    if rank is not None:
        _check_counts(rank=rank, most=MAX_ATTEMPT)
    if body.resume_step is not None:
        _check_counts(resume_step=body.resume_step)


def free_elements(value: object) -> int:
    """Return the number of names and values in `value` at all depths, including `value` itself."""
    if isinstance(value, Mapping):
        return 1 + len(value) + sum(map(free_elements, value.values()))
    if isinstance(value, (list, tuple)):
        return 1 + sum(map(free_elements, value))
    return 1


def _check_metrics(body: Metrics, size_bytes: int) -> None:
    check_amount("points", len(body.points), MAX_ITEMS)
    if body.points:
        _check_points(body.points)
    if size_bytes > MAX_METRIC_NAME_CHARS:
        _check_values(body.points)
    if body.ts is not None:
        _check_time(body.ts)
    for alert in body.alerts or ():
        _check_time(alert.ts)
        _check_text("title", alert.title, MAX_ALERT_TITLE_CHARS)
        _check_text("text", alert.text, MAX_ALERT_TEXT_CHARS)
    check_amount("alerts", len(body.alerts or ()), MAX_ALERTS)
    for name in FREE_MAPS:
        free = getattr(body, name)
        _check_depth(free)
        if free:
            check_amount(name, free_elements(free), MAX_FREE_ELEMENTS, "elements")
    if body.progress is not None:
        progress = body.progress
        _check_counts(current_epoch=progress.current_epoch, total_epochs=progress.total_epochs)
        _check_counts(resume_step=progress.resume_step)
    _check_counts(parent_id=body.parent_id, fork_step=body.fork_step)


def _check_points(points: Sequence[Point]) -> None:
    """Check the extremes of all points together, which takes a quarter of the time of a check of each."""
    times = [point.ts for point in points]
    for ts in (min(times), max(times)):
        _check_time(ts)
    for name in ("epoch", "step"):
        counts = [count for count in map(attrgetter(name), points) if count is not None]
        for count in (min(counts), max(counts)) if counts else ():
            _check_counts(**{name: count})
    paths = [len(point.checkpoint_path) for point in points if point.checkpoint_path is not None]
    check_amount("checkpoint_path", max(paths, default=0), MAX_TEXT_CHARS["checkpoint_path"], "characters")


def _check_values(points: Iterable[Point]) -> None:
    values = [point.values for point in points]
    counts = list(map(len, values))
    check_amount("values of a point", max(counts, default=0), MAX_ITEMS)
    check_amount("values of all points", sum(counts), MAX_VALUES)
    _check_names(set().union(*values))


def _check_numbers(name: str, numbers: Mapping[str, Any] | None) -> None:
    if numbers:
        check_amount(name, len(numbers), MAX_RESULTS)
        _check_names(numbers)


def _check_names(names: Iterable[str]) -> None:
    longest = max(map(len, names), default=0)
    check_amount("name of a value", longest, MAX_METRIC_NAME_CHARS, "characters")


def _check_text(name: str, text: str | None, most: int) -> None:
    if text is not None:
        check_amount(name, len(text), most, "characters")


def check_amount(name: str, amount: int, most: int, unit: str = "items") -> None:
    """Raise `InvalidMessage` (`too-large`) if `amount`, the size of the field `name`, exceeds the limit `most`.

    `unit` is the plural noun for the amount in the error text.
    """
    if amount > most:
        raise InvalidMessage("too-large", f"{name}: {amount:,} {unit}, at most {most:,} are allowed")


def _check_depth(value: object, depth: int = 0) -> None:
    if depth > MAX_FREE_DEPTH:
        raise InvalidMessage("wrong-fields", f"params, tags or provenance are nested deeper than {MAX_FREE_DEPTH}")
    if isinstance(value, dict):
        for item in value.values():
            _check_depth(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_depth(item, depth + 1)


def _check_logs(body: Logs, size_bytes: int) -> None:
    count = len(body.lines)
    if len(body.ts) != count:
        raise InvalidMessage("wrong-fields", f"logs body: {count} lines but {len(body.ts)} times")
    if body.levels is not None and len(body.levels) != count:
        raise InvalidMessage("wrong-fields", f"logs body: {count} lines but {len(body.levels)} levels")
    check_amount("lines", count, MAX_ITEMS)
    if count:
        _check_time(min(body.ts))
        _check_time(max(body.ts))
        if size_bytes > MAX_LINE_CHARS:
            check_amount("line", max(map(len, body.lines)), MAX_LINE_CHARS, "characters")
    if body.levels:
        check_amount("level", max(map(len, filter(None, body.levels)), default=0), MAX_LEVEL_CHARS, "characters")


def _check_completion(body: Completion) -> None:
    _check_time(body.ts)
    _check_counts(total_epochs_completed=body.total_epochs_completed, best_epoch=body.best_epoch)
    _check_counts(exit_code=body.exit_code, most=MAX_ATTEMPT)
    _check_numbers("final_metrics", body.final_metrics)
    _check_numbers("best_metrics", body.best_metrics)
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
