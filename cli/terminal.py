"""Output to the terminal; control sequences and rich markup in texts of trainers have no effect."""

from __future__ import annotations

import re
import sys
from collections.abc import Container, Iterable
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH: Final = 10_000
"""Columns of a table in a pipe: nothing is wrapped or cut."""
RESET: Final = "\x1b[0m"

# ECMA-48: colours; other control sequences; strings (titles, links, clipboard); other escapes; lone controls.
# A string ends where the next one begins, so that the time is linear.
# Unicode: line and paragraph separators, and the controls of text direction, which can disguise a text.
_CONTROLS: Final = re.compile(
    r"(?P<colour>\x1b\[[0-9;:]*m)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
    r"|(?P<unseen>[\u2028-\u202e\u2066-\u2069])"
)


def safe(text: str, *, colours: bool = False) -> str:
    """Return `text` without control characters except tab and newline.

    Controls of text direction are replaced by their code points, as `<U+202E>`. If `colours` is True, colour
    sequences stay, and are reset at the end.
    """

    def kept_of(found: re.Match[str]) -> str:
        if found["unseen"]:
            return f"<U+{ord(found['unseen']):04X}>"
        return (found["colour"] or "") if colours else ""

    kept = _CONTROLS.sub(kept_of, text)
    return kept + RESET if colours and RESET[:2] in kept else kept


def one_line(text: str) -> str:
    """Return `safe(text)` on one line; each sequence of white space becomes one space."""
    return " ".join(safe(text).split())


def say(line: str) -> None:
    """Write one line to stdout and flush it; ignores a closed terminal, which must not stop the stack."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError:
        return


def warn(line: str) -> None:
    """Write one line to stderr, with the name of the program."""
    sys.stderr.write(f"trainwire: {line}\n")
    sys.stderr.flush()


def console() -> Console:
    """Return a rich console on stdout without markup, which does not wrap lines if stdout is not a terminal."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(markup=False, highlight=False, emoji=False, width=width)


def table(*columns: str | Text, right: Container[str] = ()) -> Table:
    """Return an empty table without borders; the columns in `right` are right-justified."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if str(column) in right else "left", overflow="fold")
    return made


def cell(value: object) -> Text:
    """Return a table cell: a `Text` as it is, None as an empty cell, else `str(value)` on one line."""
    if isinstance(value, Text):
        return value
    return Text("" if value is None else one_line(str(value)))


def print_table(
    columns: Iterable[str | Text], rows: Iterable[Iterable[object]], right: Container[str] = ()
) -> None:
    """Print a table on stdout; the columns in `right` are right-justified, and values are shown as by `cell`."""
    shown = table(*columns, right=right)
    for row in rows:
        shown.add_row(*map(cell, row))
    console().print(shown)
