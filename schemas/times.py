"""Nanoseconds since 1970, as messages state times, and datetimes of microseconds, as Postgres does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def to_datetime(ts_ns: int) -> datetime:
    """Return a time in nanoseconds as a datetime; what is below its microsecond is cut off."""
    return EPOCH + timedelta(microseconds=ts_ns // 1000)


def to_ns(at: datetime) -> int:
    """Return a datetime in nanoseconds since 1970; exact, where its `timestamp()` is not."""
    return (at - EPOCH) // _MICROSECOND * 1000
