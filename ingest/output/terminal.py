"""A terminal for a command to draw on: what it shows is read back here."""

from __future__ import annotations

import os
import sys
import termios
from contextlib import suppress
from typing import Final

DEFAULT_SIZE: Final = os.terminal_size((80, 24))
"""Columns and lines where no terminal tells its own, as in a batch job."""


class Terminal:
    """A pseudo-terminal that takes a command's output, as wide and high as the person's own.

    What is typed stays with the person's terminal, which the command keeps as its controlling one: ctrl-C, ctrl-Z
    and questions for a password work as without us.
    """

    def __init__(self) -> None:
        reader, self.writer = os.openpty()
        self.output = open(reader, "rb", buffering=0)  # noqa: SIM115 - closed by who reads it
        attributes = termios.tcgetattr(self.writer)
        attributes[1] &= ~termios.OPOST  # the person's terminal makes CR LF of LF, and a file shall have LF
        termios.tcsetattr(self.writer, termios.TCSANOW, attributes)
        self.fit()

    def fit(self) -> None:
        """Take the size of the person's terminal."""
        size = _window_size()
        with suppress(OSError, ValueError, termios.error):  # nobody draws any more
            termios.tcsetwinsize(self.output.fileno(), (size.lines, size.columns))

    def close_writer(self) -> None:
        """Leave the writing end to the command alone: when it has none open any more, the output ends."""
        os.close(self.writer)


def _window_size() -> os.terminal_size:
    for stream in (sys.__stdout__, sys.__stderr__, sys.__stdin__):
        with suppress(OSError, ValueError, AttributeError):  # no terminal, closed, or none at all
            size = os.get_terminal_size(stream.fileno())  # type: ignore[union-attr]
            if size.columns and size.lines:
                return size
    return DEFAULT_SIZE
