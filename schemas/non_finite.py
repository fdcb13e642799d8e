"""The names of NaN and infinities in message bodies and JSONB columns; JSON has no such numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias, cast

NON_FINITE_NAMES: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NUMBER_MAPS: Final = ("values", "final_metrics", "best_metrics", "metrics")


Number: TypeAlias = float | Literal["NaN", "Infinity", "-Infinity"]
"""A number in JSON: a finite number, or the name of NaN or an infinity."""


def shown_float(value: float | str) -> Number:
    """Return `value` for JSON: NaN and infinities become names (`NaN`, `Infinity`, `-Infinity`).

    Other values are unchanged.
    """
    if isinstance(value, str):
        return cast("Number", value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def shown_value(value: Any) -> Any:
    """Return `value` for JSON: a float as `shown_float` does, any other value unchanged."""
    return shown_float(value) if isinstance(value, float) else value


def shown_floats(values: Sequence[float]) -> Sequence[Number]:
    """Return `values` for JSON, as `shown_float` does for each of them."""
    return values if math.isfinite(sum(values)) else [shown_float(value) for value in values]


BEYOND_FLOAT: Final = "number beyond the range of a float (1.8e308)"


def is_beyond_float(number: float, text: str | bytes) -> bool:
    """Return whether `number`, which was parsed from `text`, is infinite because it is too large for a float.

    The names of infinities, such as `inf` and `-Infinity`, contain no digit.
    """
    if not math.isinf(number):
        return False
    return any(char.isdigit() for char in (text if isinstance(text, str) else text.decode(errors="replace")))


def with_floats(value: object) -> object:
    """Replace texts such as `NaN` by floats in the fields of a JSON body that map metric names to numbers."""
    if isinstance(value, dict):
        return {
            key: floats_in(inner) if key in _NUMBER_MAPS else _with_points(key, inner)
            for key, inner in value.items()
        }
    return value


def _with_points(key: object, value: object) -> object:
    if key == "points" and isinstance(value, list):
        return [with_floats(point) for point in value]
    return value


def floats_in(value: object) -> object:
    """Replace texts such as `NaN` by floats in a map of numbers; any other value is returned unchanged."""
    if not isinstance(value, dict):
        return value
    return {
        name: NON_FINITE_NAMES.get(number, number) if isinstance(number, str) else number
        for name, number in value.items()
    }
