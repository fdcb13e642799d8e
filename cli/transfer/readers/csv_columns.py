"""Finds the columns of a CSV file by its header and its first row, and parses cells (docs/import-export.md)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from trainwire.schemas.times import seconds_to_ns, to_ns
from trainwire.schemas.wire.limits import MAX_ITEMS, MAX_METRIC_NAME_CHARS
from trainwire.schemas.wire.validation import MAX_ID
from trainwire.stack.errors import Problem

STEP_NAMES: Final = ("step", "_step", "global_step", "iteration", "iter")
"""Names of the step's column, of which the first that the file has counts; others of them are metrics."""
TIME_NAMES: Final = ("time", "timestamp", "_timestamp", "wall_time", "wall time")
FORM: Final = (
    "expected a header with `step`, `epoch` or `time` and a column for each metric, or with `name`, `value` "
    "and one of these"
)
NOT_UTF8: Final = "\ufffd"
"""Replaces bytes that are not UTF-8."""
_EARLIEST_S: Final = 1e8
"""Smaller numbers (before March 1973) are no times of a training, but seconds since its start."""
_DECIMAL_COMMA: Final = re.compile(r"\s*[-+]?\d+,\d+(e[-+]?\d+)?\s*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Columns:
    """Indexes of the columns in a CSV file.

    `long` has the indexes of the columns `name` and `value` in the long form, and is None in the wide form.
    """

    step: int | None
    epoch: int | None
    time: int | None
    long: tuple[int, int] | None
    metrics: tuple[tuple[int, str], ...]
    unnamed: tuple[int, ...]
    width: int
    has_decimal_commas: bool
    """Whether `0,5` is 0.5: in a file whose delimiter is a semicolon."""

    def number(self, cell: str) -> float:
        """Parse a cell as a number; raise `ValueError` if it is none."""
        try:
            return plain_number(cell)
        except ValueError:
            if self.has_decimal_commas and _DECIMAL_COMMA.fullmatch(cell):
                return float(cell.replace(",", "."))
            raise

    def whole(self, row: Sequence[str], index: int | None) -> int | None:
        """Parse a cell as an integer; return None if it is empty, and raise `ValueError` if it is not an integer.

        `index` is None if the file has no such column.
        """
        text = row[index].strip() if index is not None and index < len(row) else ""
        if not text:
            return None
        if "_" in text:
            raise ValueError(text)
        try:
            number = int(text)
        except ValueError:
            floating = self.number(text)
            if not floating.is_integer():  # false for NaN and infinities too
                raise ValueError(text) from None
            number = int(floating)
        if abs(number) > MAX_ID:
            raise ValueError(text)
        return number

    def time_ns(self, row: Sequence[str]) -> int | None:
        """Parse the time of a row as nanoseconds since 1970; return None if it is invalid.

        It may be ISO 8601, by default in UTC, or seconds since 1970.
        """
        text = row[self.time].strip() if self.time is not None and self.time < len(row) else ""
        try:
            seconds = self.number(text)
        except ValueError:
            try:
                at = datetime.fromisoformat(text)
                return to_ns(at if at.tzinfo is not None else at.replace(tzinfo=UTC))
            except (ValueError, OverflowError):
                return None
        return seconds_to_ns(seconds) if math.isfinite(seconds) else None

    def without_elapsed(self, rows: Iterable[Sequence[str]]) -> Columns:
        """Return the columns with the time as a metric, if it is the time since the start of the training.

        The first of `rows` with a time decides. In the long form such a column is ignored. A time that is the
        only place of a point is kept.
        """
        if self.time is None or (self.step is None and self.epoch is None):
            return self
        first = next((row[self.time] for row in rows if self.time < len(row) and row[self.time].strip()), "")
        try:
            is_elapsed = abs(self.number(first)) < _EARLIEST_S
        except ValueError:
            return self
        if not is_elapsed:
            return self
        metrics = () if self.long else tuple(sorted((*self.metrics, (self.time, "time"))))
        return replace(self, time=None, metrics=metrics)


def plain_number(cell: str) -> float:
    """Parse a cell as a number; raise `ValueError` if it is none, or is `1_000`, which Python accepts."""
    if "_" in cell:
        raise ValueError(cell)
    return float(cell)


def delimiter_of(header: str) -> str:
    """Return the delimiter of a file with this first line: a comma, a semicolon or a tab."""
    return max(",;\t", key=header.count)


def columns_of_header(path: Path, header: Sequence[str], delimiter: str) -> Columns:
    """Return the columns of a file with this header; raise `Problem` if the header cannot be used."""
    names = [name.strip() for name in header]
    if not any(names):
        raise Problem(f"{path} has no header: {FORM}")
    repeated = [name for name, count in Counter(filter(None, names)).items() if count > 1]
    if repeated:
        raise Problem(f"{path} has two columns {repeated[0][:100]!r}: rename one of them")
    lower = [name.lower() for name in names]
    at = {kind: lower.index(kind) if kind in lower else None for kind in ("epoch", "name", "value")}
    step_at = next((lower.index(name) for name in STEP_NAMES if name in lower), None)
    time_at = next((lower.index(name) for name in TIME_NAMES if name in lower), None)
    places = {step_at, at["epoch"], time_at} - {None}
    found = ", ".join(repr(name[:50]) for name in names[:10])
    long = None if at["name"] is None or at["value"] is None else (at["name"], at["value"])
    metrics = tuple((index, name) for index, name in enumerate(names) if name and index not in places)
    if not places or not metrics:
        raise Problem(f"{path} has the columns {found}: {FORM}")
    if unreadable := [name for name in names if NOT_UTF8 in name]:
        raise Problem(
            f"{path} is not UTF-8, so a column would be called {unreadable[0][:100]!r}: convert it, for example "
            "with `iconv -f WINDOWS-1252 -t UTF-8`"
        )
    longest = max(metrics, key=lambda metric: len(metric[1]))[1]
    if len(longest) > MAX_METRIC_NAME_CHARS or len(metrics) > MAX_ITEMS:
        raise Problem(
            f"{path} has {len(metrics):,} metrics, one with a name of {len(longest):,} characters: at most "
            f"{MAX_ITEMS:,} metrics, with {MAX_METRIC_NAME_CHARS:,} characters each, are allowed"
        )
    return Columns(
        step=step_at,
        epoch=at["epoch"],
        time=time_at,
        long=long,
        metrics=() if long else metrics,
        unnamed=() if long else tuple(index for index, name in enumerate(names) if not name),
        width=len(names),
        has_decimal_commas=delimiter == ";",
    )
