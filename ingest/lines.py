"""Cuts a stream of text into lines as a terminal would show them."""

from __future__ import annotations

from typing import Final

MAX_LINE_CHARS: Final = 1024 * 1024
"""An endless line is cut here, so that memory stays bounded."""


class LineCutter:
    """Keeps the unfinished last line; of a line that was redrawn with carriage returns, its last state."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> list[str]:
        """Return the lines that `text` completes."""
        *complete, rest = (self._rest + text).split("\n")
        lines = [_last_state(line) for line in complete]
        if "\r" in rest:
            rest = _unfinished(rest)
        while len(rest) > MAX_LINE_CHARS:
            lines.append(rest[:MAX_LINE_CHARS])
            rest = rest[MAX_LINE_CHARS:]
        self._rest = rest
        return lines

    def close(self) -> list[str]:
        """Return the unfinished last line, if there is one."""
        rest, self._rest = _last_state(self._rest), ""
        return [rest] if rest else []


def split_lines(text: str) -> list[str]:
    """Return the lines of a whole text; the newline at its end begins none."""
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if len(lines) > 1 and not lines[-1] else lines


def _last_state(line: str) -> str:
    return line.rstrip("\r").rpartition("\r")[2] if "\r" in line else line


def _unfinished(rest: str) -> str:
    """Return what of an unfinished line can still matter: a final carriage return may be half of CR LF."""
    shown = rest.rstrip("\r")
    return _last_state(shown) + ("\r" if len(shown) < len(rest) else "")
