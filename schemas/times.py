"""Conversion between nanoseconds since 1970, as in messages, and datetimes in microseconds, as in Postgres."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def to_datetime(ts_ns: int) -> datetime:
    """Convert nanoseconds since 1970 to a datetime, rounded down to a microsecond."""
    return EPOCH + timedelta(microseconds=ts_ns // 1000)


def to_ns(at: datetime) -> int:
    """Convert a datetime to nanoseconds since 1970; exact, unlike its float `timestamp()`."""
    return (at - EPOCH) // _MICROSECOND * 1000


def seconds_to_ns(seconds: float) -> int:
    """Convert seconds since 1970 to nanoseconds, rounded to a microsecond, the precision of such floats.

    Raises `ValueError` for NaN and `OverflowError` for an infinity.
    """
    whole = math.floor(seconds)
    return whole * 10**9 + round((seconds - whole) * 1e6) * 1000
