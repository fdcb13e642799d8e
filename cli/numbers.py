"""Numbers on the command line: what is none is refused with what it was, which typer leaves out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import typer

MOST_SHOWN: Final = 10_000_000
"""Rows that a command is asked for at once: more than a terminal shows and a memory holds."""


def whole(least: int, most: int, what: str = "") -> Callable[[str | int], int]:
    """Return a parser of whole numbers from `least` to `most`; `what` says what else the number is."""

    def parse(text: str | int) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            named = f"is not {what}: a whole number" if what else "is not a whole number"
            raise typer.BadParameter(f"{text!r} {named} from {least} to {most}")
        return number

    return parse


def seconds(least: float, most: float) -> Callable[[str | float], float]:
    """Return a parser of seconds from `least` to `most`."""

    def parse(text: str | float) -> float:
        try:
            number = float(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:  # nor is NaN
            raise typer.BadParameter(f"{text!r} is not a number of seconds from {least:g} to {most:g}")
        return number

    return parse


def whole_option(least: int, most: int, says: str, *names: str, metavar: str = "N") -> Any:
    """Return an option that is a whole number from `least` to `most`; `says` is its help."""
    return typer.Option(*names, parser=whole(least, most), metavar=metavar, help=says)


def seconds_option(least: float, most: float, says: str, *names: str) -> Any:
    """Return an option that is a number of seconds; `says` is its help."""
    return typer.Option(*names, parser=seconds(least, most), metavar="SECONDS", help=says)
