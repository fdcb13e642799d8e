"""Finds the traceback that a failed command has printed last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

HEADER: Final = "Traceback (most recent call last):"
_CONNECTORS: Final = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
_LINES_TO_CONNECTOR: Final = 2
"""From the header of an exception back to the line that names the one before it: an empty line is between them."""


def printed_traceback(lines: Sequence[str]) -> str | None:
    """Return the last traceback in the lines of one output, with its causes; None where there is none."""
    headers = [number for number, line in enumerate(lines) if line == HEADER]
    if not headers:
        return None
    first = last = headers.pop()
    while headers and first >= _LINES_TO_CONNECTOR and lines[first - _LINES_TO_CONNECTOR] in _CONNECTORS:
        first = headers.pop()
    rest = range(last + 1, len(lines))
    end = next((number for number in rest if not lines[number].startswith(" ")), len(lines) - 1)
    return "\n".join(lines[first : end + 1])
