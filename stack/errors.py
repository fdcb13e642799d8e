"""What goes wrong in words for the person at the terminal."""

from __future__ import annotations

from typing import Final

KILLED_BY_CTRL_C: Final = 130
"""The exit code that shells give a command that ctrl-C ended."""


class Problem(Exception):  # noqa: N818 - said to people as it stands
    """Something a person can act on: printed as one sentence, without a traceback, exit code 1."""


class PartFailed(Problem):
    """A part of the stack did not come up, or went down while it was waited for."""


class PartEnded(PartFailed):
    """The process of a part ended while it was waited for."""
