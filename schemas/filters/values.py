"""Parsers for the values in filters: numbers, durations, booleans and statuses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, Final, get_args

from trainwire.schemas.filters.job_fields import Type, shown
from trainwire.schemas.filters.tokens import Token, WrongFilter
from trainwire.schemas.wire.messages import Status

STATUSES: Final[tuple[str, ...]] = get_args(Status)
_NUMBER: Final = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
_MAX_NUMBER_CHARS: Final = 100
_AGE: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|[smhdw]))+")
_AGE_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhdw])")
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def number_of(text: str) -> Decimal | None:
    """Parse a decimal number; return None if `text` is not one or is longer than 100 characters."""
    return Decimal(text) if len(text) <= _MAX_NUMBER_CHARS and _NUMBER.fullmatch(text) else None


def age_of(text: str) -> timedelta | None:
    """Parse a duration such as `1h30m`; return None if `text` is not one or is longer than 100 characters.

    A duration above 999,999,999 days, the limit of `timedelta`, is reduced to this number of days.
    """
    if len(text) > _MAX_NUMBER_CHARS or not _AGE.fullmatch(text):
        return None
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _AGE_PART.findall(text))
    return timedelta(seconds=min(seconds, 86_400 * 999_999_999))


def number_in(token: Token) -> Decimal:
    """Parse the token as a number; raise `WrongFilter` if it is not one."""
    number = number_of(token.text)
    if number is None:
        raise WrongFilter(f"`{shown(token.text)}` is not a number; write for example 0.01", token.column)
    return number


def duration_of(token: Token) -> timedelta:
    """Parse the token as a duration, such as `1h30m` or a plain number of seconds.

    Raise `WrongFilter` if it is not one, or if the plain number is 10**12 or more.
    """
    age, number = age_of(token.text), number_of(token.text)
    if age is None and number is not None and abs(number) < 10**12:
        age = timedelta(seconds=float(number))
    if age is None:
        raise WrongFilter(f"`{shown(token.text)}` is not a duration; write 90s, 1h30m or 2d", token.column)
    return age


def truth_of(token: Token) -> bool:
    """Parse the token as a boolean, `true` or `false` in any case; raise `WrongFilter` if it is not one."""
    if token.text.lower() not in ("true", "false"):
        raise WrongFilter(f"`{shown(token.text)}` is neither true nor false", token.column)
    return token.text.lower() == "true"


def status_of(token: Token) -> str:
    """Parse the token as a status of a job, in any case; raise `WrongFilter` if it is not one."""
    if token.text.lower() in STATUSES:
        return token.text.lower()
    near = get_close_matches(token.text.lower(), STATUSES, 1)
    remedy = f"did you mean {near[0]}?" if near else f"use {', '.join(STATUSES)}"
    raise WrongFilter(f"no status `{shown(token.text)}`; {remedy}", token.column)


VALUES: Final[Mapping[Type, Callable[[Token], Any]]] = {
    "number": number_in,
    "duration": duration_of,
    "truth": truth_of,
    "word": status_of,
}
"""Type of a field -> the function that parses its values."""
