"""Keeps the last printed lines, to log a traceback only if it was not printed."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from trainwire.ingest.lines.line_splitting import LineCutter

KEPT_LINES: Final = 3000
KEPT_CHARS: Final = 1000
"""Number of characters kept of each line, from its end, because launchers add a prefix at its start."""
_COLOUR: Final = re.compile(r"\x1b\[[0-9;:]*m")
_MARKS: Final = frozenset(" ^~|+-")
"""Characters of the lines with which some versions of Python mark a part of the line above."""


class PrintedLines:
    """Stores the last `KEPT_LINES` captured lines of output, and checks whether they contain a traceback."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)

    def add(self, lines: Sequence[str]) -> None:
        """Append captured lines; of each, only the last `KEPT_CHARS` characters are kept."""
        self._lines.extend(line[-KEPT_CHARS:] for line in lines[-KEPT_LINES:])

    def contain(self, traceback: str) -> bool:
        """Return whether all lines of a traceback were printed in this order, perhaps with other lines in between.

        The interpreter also prints frames outside of the run's `with` block, and other threads may print.
        Colours and prefixes such as `[rank0]: ` are ignored.
        """
        printed = (_COLOUR.sub("", line).rstrip() for line in list(self._lines))
        return all(any(line.endswith(wanted) for line in printed) for wanted in _wanted(traceback))


def _wanted(traceback: str) -> Iterable[str]:
    """Return the lines of a traceback as they are logged, without lines such as `^^^^` of some Python versions."""
    cutter = LineCutter()
    lines = [*cutter.feed(traceback), *cutter.close()]
    return [line.rstrip()[-KEPT_CHARS:] for line in lines if not _MARKS.issuperset(line)]
