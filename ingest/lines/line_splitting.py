"""Splits a stream of text into lines as a terminal would show them."""

from __future__ import annotations

import re
from typing import Final

MAX_LINE_BYTES: Final = 64 * 1024
"""Size limit of a log line in bytes, which every store accepts. A longer line is logged in parts."""
_SURELY_SHORT_CHARS: Final = MAX_LINE_BYTES // 4
_CONTINUATION_BYTES: Final = bytes(range(0x80, 0xC0))
"""The bytes of a multi-byte character in UTF-8 except its first."""

# ECMA-48 control sequences that move the cursor or erase. Those that end with m are colours and are kept.
_MOVEMENT: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-ln-~]")


class LineCutter:
    """Splits text into lines. If a line was overwritten with carriage returns, only the last version is kept.

    Control sequences that move the cursor or erase are removed; those for colours are kept.

    A line longer than `MAX_LINE_BYTES` becomes several lines, which begin with `[part 1]`, `[part 2]` and, for
    the end of the line, `[part 3, last]`.
    """

    def __init__(self) -> None:
        self._rest = ""
        self._parts = 0

    def feed(self, text: str) -> list[str]:
        """Append `text` to the unfinished line.

        Return the completed lines, and parts of an unfinished overlong line.
        """
        text = self._rest + text
        *lines, rest = text.split("\n")
        if "\r" in text or "\x1b" in text:
            lines = [_last_state(line) for line in lines]
            rest = _unfinished(rest)
        if self._parts or max(map(len, lines), default=0) > _SURELY_SHORT_CHARS:
            lines = [part for line in lines for part in self._ended(line)]
        parts, self._rest = self._cut(rest)
        return lines + parts

    def close(self) -> list[str]:
        """Return the unfinished last line, if any."""
        rest, self._rest = _last_state(self._rest), ""
        return self._ended(rest) if rest else []

    def _ended(self, line: str) -> list[str]:
        parts, rest = self._cut(line)
        if self._parts:
            rest = f"[part {self._parts + 1}, last] {rest}"
            self._parts = 0
        return [*parts, rest]

    def _cut(self, line: str) -> tuple[list[str], str]:
        """Split `line` into parts of the maximum size; return these parts, and the remaining text."""
        parts = []
        while (size := _chars_that_fit(line)) < len(line):
            self._parts += 1
            parts.append(f"[part {self._parts}] {line[:size]}")
            line = line[size:]
        return parts, line


def split_lines(text: str) -> list[str]:
    """Return the lines of `text`; a newline at its end does not add an empty line."""
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if len(lines) > 1 and not lines[-1] else lines


def _last_state(line: str) -> str:
    if "\x1b" in line:
        line = _MOVEMENT.sub("", line)
    return line.rstrip("\r").rpartition("\r")[2] if "\r" in line else line


def _unfinished(rest: str) -> str:
    """Return the visible text of an unfinished line; a final carriage return is kept, as it may begin a CR LF."""
    shown = rest.rstrip("\r")
    return _last_state(shown) + ("\r" if len(shown) < len(rest) else "")


def _chars_that_fit(text: str) -> int:
    """Return the number of characters from the start of `text` that take at most `MAX_LINE_BYTES` in UTF-8.

    It counts the first bytes of characters. Decoding instead would drop the lone surrogates that stand for
    undecodable bytes.
    """
    if len(text) <= _SURELY_SHORT_CHARS:
        return len(text)
    data = text[: MAX_LINE_BYTES + 1].encode("utf-8", "surrogatepass")
    if len(data) <= MAX_LINE_BYTES:
        return len(text)
    started = len(data[:MAX_LINE_BYTES].translate(None, _CONTINUATION_BYTES))
    return started - (data[MAX_LINE_BYTES] in _CONTINUATION_BYTES)  # the last one does not end there
