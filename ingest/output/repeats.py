"""Folds lines that are printed again and again into one and a count."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final

TELL_EVERY_S: Final = 10.0
"""A line that never ends to come is counted at least so often."""


class RepeatFolder:
    """Keeps the first of equal lines in a row; how often it came again is said by a line after it."""

    def __init__(self) -> None:
        self._line: str | None = None
        self._repeats = 0
        self._told_s = 0.0

    def feed(self, lines: Sequence[str], now_s: float) -> list[str]:
        """Return what is left of lines that were printed at `now_s` (seconds of any steady clock)."""
        kept: list[str] = []
        for line, group in groupby(lines):
            count = sum(1 for _ in group)
            if line == self._line:
                self._repeats += count
                continue
            kept += [*self.close(), line]
            self._line, self._repeats, self._told_s = line, count - 1, now_s
        if now_s - self._told_s >= TELL_EVERY_S:
            kept += self.close()
            self._told_s = now_s
        return kept

    def close(self) -> list[str]:
        """Return the line that tells how often the last one came again, if it did."""
        repeats, self._repeats = self._repeats, 0
        times = "time" if repeats == 1 else "times"
        return [f"trainwire: the last line came {repeats:,} more {times}"] if repeats else []
