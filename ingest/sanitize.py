"""Converts values from trainings (numpy, torch, paths, invalid text) to the types that messages can contain."""

from __future__ import annotations

import logging
import math
import operator
import os
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, SupportsFloat, SupportsIndex, TypeAlias, TypeVar

import msgspec

from trainwire.ingest.process.interruptions import raise_interruption
from trainwire.schemas.non_finite import shown_float
from trainwire.schemas.wire.validation import MAX_ATTEMPT

Number: TypeAlias = SupportsFloat | SupportsIndex | None
"""A value of a metric: a number of any library, or None, which is left out."""
StructT = TypeVar("StructT", bound=msgspec.Struct)

_DEEPEST: Final = 10
_LARGEST_INT: Final = 2**63 - 1
_repr: Final = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60


def number(value: object) -> float | None:
    """Return `value` as a float if it is one real number of any library, else None.

    An array or a tensor with one element counts as that number; a string, a complex number and an integer above
    the range of a float do not.
    """
    if type(value) is float:
        return value
    if type(value) is int and -_LARGEST_INT <= value <= _LARGEST_INT:
        return float(value)
    try:
        one = scalar(value)
        if isinstance(one, str | bytes | bytearray) or not _has_float(one):
            return None
        floating = float(one)  # type: ignore[arg-type]
        return None if math.isinf(floating) and one != floating else floating
    except Exception as exc:  # noqa: BLE001 - foreign code raises any error
        raise_interruption(exc)
        return None


def _has_float(value: object) -> bool:
    return hasattr(value, "__float__") or hasattr(value, "__index__")


def scalar(value: object) -> object:
    """Return the only element of an array or a tensor, on any device, as a Python object; else `value` itself.

    The method `item()` is used because `float()` warns about numpy arrays, complex numbers and strings, or
    returns a wrong number. Dates and durations of numpy give None: their item may be an integer.
    """
    if getattr(getattr(value, "dtype", None), "kind", None) in ("m", "M"):
        return None
    item = getattr(value, "item", None)
    try:
        return value if item is None else item()
    except Exception as exc:  # noqa: BLE001 - several elements, or an `item` that is something else
        raise_interruption(exc)
        return value


def count(value: object) -> int | None:
    """Return `value` as an integer if it is a whole number (3, 3.0, an array of one) that fits into 64 bits.

    Return None for other values, including True and False.
    """
    whole = value if type(value) is int else whole_of(value)
    return whole if whole is not None and -_LARGEST_INT <= whole <= _LARGEST_INT else None


def whole_of(value: object) -> int | None:
    """Return `value` as an integer of any size if it is a whole number of any library; else None."""
    try:
        one = scalar(value)
        if isinstance(one, bool):
            return None
        whole = _index(one)  # not by way of a float, which rounds integers beyond 2**53
        if whole is None and (floating := number(one)) is not None and floating.is_integer():
            whole = int(floating)
    except Exception as exc:  # noqa: BLE001 - foreign code
        raise_interruption(exc)
        return None
    return whole


def exit_status(value: object) -> int | None:
    """Return `value` as an exit code, clamped to the range of `exit_code` in Postgres; None if it is no number.

    A fraction is cut off.
    """
    floating = number(value)
    if floating is None or math.isnan(floating):
        return None
    return int(max(-MAX_ATTEMPT, min(MAX_ATTEMPT, floating)))


def truth(value: object) -> bool | None:
    """Return `value` as a bool; return None if Python cannot convert it, such as an array of several elements."""
    try:
        return None if value is None else bool(value)
    except Exception as exc:  # noqa: BLE001 - foreign code
        raise_interruption(exc)
        return None


def plain_text(value: object) -> str:
    """Return any value as an exact `str`; the name of its type where `str()` fails."""
    if type(value) is str:
        return value
    try:
        # Of a subclass of str the string itself: str() of an enum member would return its name.
        return str.__str__(value if isinstance(value, str) else str(value))
    except Exception as exc:  # noqa: BLE001 - foreign code
        raise_interruption(exc)
        return f"<{type(value).__name__} without a text>"


def shown(value: object) -> str:
    """Return a short representation of `value`, of any type, for a warning."""
    try:
        return _repr.repr(value)
    except Exception as exc:  # noqa: BLE001 - foreign code
        raise_interruption(exc)
        return f"<{type(value).__name__}>"


def path_text(path: object) -> str:
    """Return a path as a string; for any other value, return `str(value)`."""
    try:
        return plain_text(os.fsdecode(path))  # type: ignore[arg-type]
    except Exception as exc:  # noqa: BLE001 - foreign code
        raise_interruption(exc)
        return plain_text(path)


def level_name(level: object) -> str | None:
    """Return the name of a log level; `level` may be a name, a number of `logging`, or None, which stays None."""
    if level is None or type(level) is str:
        return level
    whole = _index(level)
    return plain_text(level if whole is None else logging.getLevelName(whole))


def plain_mapping(name: str, values: Mapping[Any, object]) -> dict[str, Any]:
    """Return `values`, such as params or tags, as a dictionary; values that JSON cannot represent become strings.

    So does a value below ten levels of mappings and lists. Raises `ValueError` if `values` is not a mapping.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}={values!r} is no mapping: give a dictionary, such as vars(args)")  # noqa: TRY004
    return {plain_text(key): _plain(value, _DEEPEST) for key, value in values.items()}


def repaired(body: StructT) -> StructT:
    """Return a message body, or a part of one, with U+FFFD for each lone surrogate, which UTF-8 does not allow."""
    return msgspec.convert(_repaired(msgspec.to_builtins(body)), type(body))


def repaired_text(text: str) -> str:
    """Return `text` with every lone surrogate replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _plain(value: object, depth: int) -> Any:
    if value is None or type(value) in (bool, str):
        return value
    if isinstance(value, str) or depth == 0:
        return plain_text(value)
    try:
        return _plain_inside(value, depth - 1)
    except Exception as exc:  # noqa: BLE001 - foreign code: a mapping that raises
        raise_interruption(exc)
        return plain_text(value)


def _plain_inside(value: object, depth: int) -> Any:
    if isinstance(value, Mapping):
        return {plain_text(name): _plain(inner, depth) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner, depth) for inner in value]
    return _plain_number(value)


def _plain_number(value: object) -> int | float | str:
    one = scalar(value)
    if isinstance(one, bool):
        return one
    whole = _index(one)
    if whole is not None:
        return whole if abs(whole) <= _LARGEST_INT else str(whole)
    floating = number(one)
    return plain_text(value) if floating is None else shown_float(floating)


def _index(value: object) -> int | None:
    """Return an integer of any library as `int`; None for other values. (The `__index__` of an array raises.)"""
    try:
        return int(operator.index(value))  # type: ignore[arg-type]
    except Exception as exc:  # noqa: BLE001 - foreign code
        raise_interruption(exc)
        return None


def _repaired(value: Any) -> Any:
    if isinstance(value, str):
        return repaired_text(value)
    if isinstance(value, dict):
        return {repaired_text(name): _repaired(inner) for name, inner in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [_repaired(inner) for inner in value]
    return value
