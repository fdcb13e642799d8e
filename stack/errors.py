"""Errors whose message is shown to the user of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

KILLED_BY_CTRL_C: Final = 130
"""The exit code of a shell for a command that ctrl-C ended: 128 + SIGINT."""


class Problem(Exception):  # noqa: N818 - its text is shown to people as it is
    """An error that the user can correct.

    The command line prints its message without a traceback and exits with code 1.
    """


class PartFailed(Problem):
    """A process of the stack did not become ready."""


class PartEnded(PartFailed):
    """A process of the stack ended before it was ready."""


@contextmanager
def as_problem(*kinds: type[Exception], hint: str = "") -> Iterator[None]:
    """Convert exceptions of the given types in the block to a `Problem` with the same text, followed by `hint`."""
    try:
        yield
    except kinds as exc:
        raise Problem(f"{exc}{hint}") from exc
