"""Errors with a message for the person at the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

KILLED_BY_CTRL_C: Final = 130
"""The exit code that shells report for a command that ctrl-C ended."""


class Problem(Exception):  # noqa: N818 - its text is shown to people as it is
    """An error that a person can correct: printed as one sentence, without a traceback, exit code 1."""


class PartFailed(Problem):
    """A part of the stack did not become ready, or failed while `up` waited for it."""


class PartEnded(PartFailed):
    """The process of a part ended while `up` waited for it."""


@contextmanager
def as_problem(*kinds: type[Exception], hint: str = "") -> Iterator[None]:
    """Raise exceptions of these kinds as a `Problem` with their text, followed by `hint`."""
    try:
        yield
    except kinds as exc:
        raise Problem(f"{exc}{hint}") from exc
