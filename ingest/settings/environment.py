"""Reads and checks single environment variables; an error names the variable, its value and the allowed values."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

WordT = TypeVar("WordT", bound=str)

_EXACT_BELOW: Final = 2**53
"""From this number on, floats cannot represent each integer: a job id could become another one."""


def whole_number(name: str, value: object, least: int, most: int) -> int:
    """Return `value` as an integer; a float such as 3.0 below 2**53 is accepted, True and False are not.

    Raises `ValueError` with `name` in its text if `value` is not a whole number from `least` to `most`.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_BELOW:
        value = int(value)
    try:
        number = least - 1 if isinstance(value, bool) else int(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        raise ValueError(f"{name}={value!r} is not a whole number from {least} to {most}")
    return number


def optional_whole(environ: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    """Return the value of a variable as an integer; None if it is not set.

    Raises `ValueError` if it is not a whole number from `least` to `most`.
    """
    text = environ.get(name)
    return whole_number(name, parsed(int, text), least, most) if text else None


def seconds(environ: Mapping[str, str], name: str, default: float, least: float, most: float) -> float:
    """Return the value of a variable in seconds, `default` if it is not set.

    Raises `ValueError` if it is not a number from `least` to `most`.
    """
    text = environ.get(name)
    if not text:
        return default
    value = parsed(float, text)
    if not isinstance(value, float) or not least <= value <= most:  # NaN is in no range
        raise ValueError(f"{name}={text!r} is not a number of seconds from {least} to {most}")
    return value


def word(environ: Mapping[str, str], name: str, words: tuple[WordT, ...]) -> WordT:
    """Return the value of a variable; the default is the first of the allowed `words`.

    Raises `ValueError` for any other value.
    """
    value = environ.get(name) or words[0]
    for each in words:
        if value == each:
            return each
    raise ValueError(f"{name}={value!r} is not one of {', '.join(words)}")


def absolute_path(path: str) -> Path:
    """Return `path`, with `~` expanded, as an absolute path, which no change of the working folder affects.

    If the working folder was deleted, `path` is returned unchanged.
    """
    try:
        return Path(os.path.abspath(os.path.expanduser(path)))
    except OSError:  # the working folder was deleted
        return Path(path)


def parsed(parse: Callable[[str], int | float], text: str) -> int | float | str:
    """Return `parse(text)`; if this fails, return `text` itself, so that the caller can show it in its error."""
    try:
        return parse(text)
    except ValueError:
        return text
