"""Opens a pseudo-terminal for the output of a command."""

from __future__ import annotations

import os
import sys
import termios
from contextlib import suppress
from typing import Final

DEFAULT_SIZE: Final = os.terminal_size((80, 24))
"""Columns and lines if no standard stream is a terminal, as in a batch job."""


class Terminal:
    """A pseudo-terminal for the output of a command; its window has the size of the user's terminal.

    Input is not redirected: the user's terminal stays the command's controlling terminal, so that ctrl-C, ctrl-Z
    and password prompts work as usual.
    """

    def __init__(self) -> None:
        reader, self.writer = os.openpty()
        self.output = open(reader, "rb", buffering=0)  # noqa: SIM115 - closed by its reader
        attributes = termios.tcgetattr(self.writer)
        attributes[1] &= ~termios.OPOST  # the user's terminal makes CR LF of LF, and files keep LF
        termios.tcsetattr(self.writer, termios.TCSANOW, attributes)
        self.fit()

    def fit(self) -> None:
        """Set the window size of the pseudo-terminal to that of the user's terminal."""
        size = _window_size()
        with suppress(OSError, ValueError, termios.error):  # the command has ended
            termios.tcsetwinsize(self.output.fileno(), (size.lines, size.columns))


def _window_size() -> os.terminal_size:
    for stream in (sys.__stdout__, sys.__stderr__, sys.__stdin__):
        with suppress(OSError, ValueError, AttributeError):  # no terminal, closed, or none at all
            size = os.get_terminal_size(stream.fileno())  # type: ignore[union-attr]
            if size.columns and size.lines:
                return size
    return DEFAULT_SIZE
