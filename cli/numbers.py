"""Numeric arguments and options; the error for an invalid number names the value and the allowed range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import typer

MOST_SHOWN: Final = 10_000_000
"""Largest value of --limit, which bounds the memory of a command."""


def whole(least: int, most: int, noun: str = "") -> Callable[[str | int], int]:
    """Return a function that parses an integer from `least` to `most`, or raises `typer.BadParameter`.

    `noun` describes the value in the error text, for example "a job id".
    """

    def parse(text: str | int) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            named = f"is not {noun}: a whole number" if noun else "is not a whole number"
            raise typer.BadParameter(f"{text!r} {named} from {least} to {most}")
        return number

    return parse


def seconds(least: float, most: float) -> Callable[[str | float], float]:
    """Return a function that parses a number of seconds from `least` to `most`, or raises `typer.BadParameter`."""

    def parse(text: str | float) -> float:
        try:
            number = float(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:  # false for NaN too
            raise typer.BadParameter(f"{text!r} is not a number of seconds from {least:g} to {most:g}")
        return number

    return parse


def whole_option(least: int, most: int, help_text: str, *names: str, metavar: str = "N") -> Any:
    """Return a typer option for an integer from `least` to `most`; by default it has the name of its parameter."""
    return typer.Option(*names, parser=whole(least, most), metavar=metavar, help=help_text)


def seconds_option(least: float, most: float, help_text: str, *names: str) -> Any:
    """Return a typer option for a number of seconds from `least` to `most`.

    By default the option has the name of its parameter.
    """
    return typer.Option(*names, parser=seconds(least, most), metavar="SECONDS", help=help_text)
