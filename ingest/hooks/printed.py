"""Finds metrics in printed lines: JSON objects, the dicts of Transformers, and a pattern of the user's."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from trainwire.ingest.hooks.caught import Caught

_MOST_CHARS: Final = 4000
_STEPS: Final = ("step", "global_step", "iteration", "iter")
_EPOCH: Final = "epoch"


PRINTED: Final = "printed lines"


class PrintedMetrics:
    """Takes the metrics of lines as they are printed.

    A pattern of the user's is always applied. Without one, JSON lines and dicts count, as long as neither a hook
    nor the SDK has reported a metric: most trainings print the same numbers that they log.
    """

    def __init__(self, caught: Caught, pattern: MetricPattern | None = None) -> None:
        self._caught = caught
        self._pattern = pattern

    def take(self, lines: Sequence[str], ts: int) -> None:
        """Take the metrics of lines that were printed at `ts` (nanoseconds since 1970)."""
        for line in lines:
            if self._pattern is not None:
                found = self._pattern.values(line)
            elif "{" in line[:20] and not self._caught.logs_otherwise(PRINTED):
                found = json_values(line) or dict_values(line)
            else:
                continue
            if found is not None:
                self._caught.metrics(PRINTED, found.values, ts=ts, step=found.step, epoch=found.epoch)


class PrintedValues(NamedTuple):
    """The numbers of one line."""

    values: dict[str, float]
    step: int | None
    epoch: float | None


def json_values(line: str) -> PrintedValues | None:
    """Return the numbers of a JSON object such as `{"loss": 0.3, "step": 10}`.

    A line counts only if it names a step or an epoch and holds numbers alone: structured logs hold texts as well.
    """
    return _checked(line, json.loads, are_texts_numbers=False)


def dict_values(line: str) -> PrintedValues | None:
    """Return the numbers of a dict such as `{'loss': 0.5, 'epoch': 1.0}`, as Transformers prints them.

    Newer versions print texts, such as `{'loss': '0.5', 'epoch': '1'}`.
    """
    return _checked(line, ast.literal_eval, are_texts_numbers=True)


class MetricPattern:
    """A regular expression of the user's; each named group is a metric, and `step` and `epoch` are these.

    Where the groups `name` and `value` exist, each match is one metric of that name.
    """

    def __init__(self, pattern: str) -> None:
        """Compile the pattern; raise `ValueError` where it is none, or names no group."""
        try:
            self._pattern = re.compile(pattern)
        except re.error as exc:
            raise ValueError(f"--metrics-regex {pattern!r} is no regular expression: {exc}") from exc
        if not self._pattern.groupindex:
            raise ValueError(
                f"--metrics-regex {pattern!r} names no group: write such as 'loss=(?P<loss>[0-9.]+)', or "
                "'(?P<name>[a-z_]+)=(?P<value>[-+0-9.e]+)'"
            )

    def values(self, line: str) -> PrintedValues | None:
        """Return the numbers of a line, None where the pattern finds none."""
        found: dict[str, Any] = {}
        for match in self._pattern.finditer(line[:_MOST_CHARS]):
            groups = {name: text for name, text in match.groupdict().items() if text is not None}
            if "name" in groups and "value" in groups:
                groups[groups.pop("name")] = groups.pop("value")
            found.update(groups)
        numbers = {name: number for name, text in found.items() if (number := _number(text, True)) is not None}
        return _split(numbers)


def _checked(line: str, parse: Any, *, are_texts_numbers: bool) -> PrintedValues | None:
    text = line.strip()
    if not (text.startswith("{") and text.endswith("}") and len(text) <= _MOST_CHARS):
        return None
    try:
        parsed = parse(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(parsed, dict) or not any(name in parsed for name in (*_STEPS, _EPOCH)):
        return None
    numbers = {str(name): _number(value, are_texts_numbers) for name, value in parsed.items()}
    return None if None in numbers.values() else _split(numbers)  # type: ignore[arg-type] # no None is left


def _split(numbers: dict[str, float]) -> PrintedValues | None:
    step = next((numbers.pop(name) for name in _STEPS if name in numbers), None)
    epoch = numbers.pop(_EPOCH, None)
    whole = None if step is None or not math.isfinite(step) else int(step)
    return PrintedValues(numbers, whole, epoch) if numbers else None


def _number(value: object, are_texts_numbers: bool) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | (str if are_texts_numbers else float)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
