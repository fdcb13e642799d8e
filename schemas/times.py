"""Conversion between nanoseconds since 1970, as in messages, and datetimes in microseconds, as in Postgres."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def to_datetime(ts_ns: int) -> datetime:
    """Return nanoseconds since 1970 as a datetime, rounded down to a microsecond."""
    return EPOCH + timedelta(microseconds=ts_ns // 1000)


def to_ns(at: datetime) -> int:
    """Return a datetime as nanoseconds since 1970; exact, unlike its float `timestamp()`."""
    return (at - EPOCH) // _MICROSECOND * 1000
