"""Formats times, numbers and sizes as text for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def local(at: datetime) -> datetime:
    """Return `at` in the local time zone, or in UTC where the year is out of range there."""
    try:
        return at.astimezone()
    except (OverflowError, ValueError):
        return at.astimezone(UTC)


def shown_clock(at: datetime) -> str:
    """Return the local time of day, or date and time if the day is not today."""
    here = local(at)
    is_today = here.date() == local(datetime.now(UTC)).date()
    return f"{here:%H:%M:%S}" if is_today else f"{here:%Y-%m-%d %H:%M}"


def shown_time(at: datetime | None) -> str | None:
    """Format a time in the local time zone; return None for None."""
    return None if at is None else f"{local(at):%Y-%m-%d %H:%M:%S %Z}"


def shown_values(values: dict[str, Any]) -> str:
    """Format metrics as one line, with six significant digits."""
    return " · ".join(f"{name} {shown_number(value)}" for name, value in values.items())


def shown_number(value: object) -> str:
    """Format a float with six significant digits; other values are converted to text."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def shown_size(size_bytes: int) -> str:
    """Format a size in bytes with a decimal unit (1 kB = 1000 bytes)."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:,.4g} TB"
