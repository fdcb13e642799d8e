"""What reaches a person's terminal: text from trainers is data, never commands to the terminal or to rich."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH: Final = 10_000
"""Where no terminal has a width, nothing is wrapped or cut."""
RESET: Final = "\x1b[0m"

# ECMA-48: colours; other control sequences; strings (titles, links, clipboard); other escapes; lone controls.
# Unicode: line ends that are none, and what turns the direction, so that a text reads as another.
_CONTROLS: Final = re.compile(
    r"(?P<colour>\x1b\[[0-9;:]*m)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
    r"|(?P<unseen>[\u2028-\u202e\u2066-\u2069])"
)


def safe(text: str, *, colours: bool = False) -> str:
    """Return `text` without control characters but tab and newline, and with names for what would turn it around.

    Colours stay on request, and end with it.
    """

    def kept_of(found: re.Match[str]) -> str:
        if found["unseen"]:
            return f"<U+{ord(found['unseen']):04X}>"
        return (found["colour"] or "") if colours else ""

    kept = _CONTROLS.sub(kept_of, text)
    return kept + RESET if colours and RESET[:2] in kept else kept


def one_line(text: str) -> str:
    """Return `text`, safe, on one line."""
    return " ".join(safe(text).split())


def local(at: datetime) -> datetime:
    """Return `at` in the zone of the person; in UTC where that zone has no such year."""
    try:
        return at.astimezone()
    except (OverflowError, ValueError):
        return at.astimezone(UTC)


def shown_clock(at: datetime) -> str:
    """Return the local time of day, with the date where that is not today."""
    here = local(at)
    is_today = here.date() == local(datetime.now(UTC)).date()
    return f"{here:%H:%M:%S}" if is_today else f"{here:%Y-%m-%d %H:%M}"


def say(line: str) -> None:
    """Write one line to stdout at once; a closed terminal is no reason to stop the stack."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError:
        return


def warn(line: str) -> None:
    """Write one line to stderr."""
    sys.stderr.write(f"trainwire: {line}\n")
    sys.stderr.flush()


def console() -> Console:
    """Return a console on stdout that interprets no markup and wraps nothing in a pipe."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(markup=False, highlight=False, emoji=False, width=width)


def table(*columns: str, right: frozenset[str] = frozenset()) -> Table:
    """Return an empty table without lines; `right` names the columns of numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def cell(value: object) -> Text:
    """Return a table cell that shows `value` as text and nothing else; None is empty."""
    return Text("" if value is None else one_line(str(value)))
