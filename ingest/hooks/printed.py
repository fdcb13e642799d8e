"""Finds metrics in printed lines: JSON objects, dicts as in Transformers, and matches of the user's patterns."""

from __future__ import annotations

import ast
import json
import math
import re
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trainwire.ingest.hooks.caught import PRINTED, Caught
from trainwire.schemas.non_finite import is_beyond_float

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

MATCH_TIMEOUT_S: Final = 5.0
START_TIMEOUT_S: Final = 30.0
"""Longest time in seconds for the start of the child process that matches patterns; a busy machine is slow."""
_MOST_CHARS: Final = 4000
_STEPS: Final = ("step", "global_step", "iteration", "iter")
_EPOCH: Final = "epoch"
_BEYOND_FLOATS: Final = "numbers beyond the range of a float (1.8e308)"
_NON_FINITE: Final = re.compile(r"(?<=: )(nan|-?inf)(?=[,}])")


class PrintedMetrics:
    """Finds metrics in printed lines, and adds them to the job.

    If the user has given patterns, only their matches are used. Otherwise JSON objects and dicts are used
    until a library or the SDK reports a metric, because most trainings print the same numbers that they log.
    """

    def __init__(self, caught: Caught, patterns: Sequence[str] = ()) -> None:
        self._caught = caught
        self._matcher = PatternMatcher(patterns, self._note_slow) if patterns else None
        self._has_fractions = False
        """Whether epochs are printed as fractions, such as 0.5 in the middle of the first one."""

    def take(self, lines: Sequence[str], ts: int) -> None:
        """Find metrics in lines printed at `ts` (nanoseconds since 1970), and add them to the job."""
        if self._matcher is not None:
            found = self._matcher.values(lines)
        else:
            found = [
                values
                for line in lines
                if "{" in line[:20] and not self._caught.logs_otherwise(PRINTED)
                if (values := json_values(line) or dict_values(line)) is not None
            ]
        for each in found:
            if each.beyond:
                self._caught.not_taken(PRINTED, _BEYOND_FLOATS, each.beyond)
            numbers, epoch = self._with_fraction(each.values, each.epoch)
            self._caught.metrics(PRINTED, numbers, ts=ts, step=each.step, epoch=epoch)

    def close(self) -> None:
        """Kill the child process in which the user's patterns are matched with lines, if there is one."""
        if self._matcher is not None:
            self._matcher.close()

    def _note_slow(self, pattern: str) -> None:
        self._caught.failed(
            f"--metrics-regex {pattern!r}",
            f"a line took longer than {MATCH_TIMEOUT_S:g} s, so it is not applied any more: avoid nested "
            "repetitions such as (a+)+",
        )

    def _with_fraction(
        self, values: dict[str, float], epoch: float | None
    ) -> tuple[dict[str, float], float | None]:
        """Return the metrics and the epoch.

        If the training prints epochs as fractions, return the epoch rounded up, as in the Transformers
        integration, and add the fraction as the metric `epoch`.
        """
        if epoch is None or not math.isfinite(epoch):
            return values, None
        self._has_fractions |= not epoch.is_integer()
        if not self._has_fractions:
            return values, epoch
        return {**values, _EPOCH: epoch}, math.ceil(epoch)


class PrintedValues(NamedTuple):
    """The metrics found in one printed line, and the step and epoch; None if the line does not give them.

    `beyond` counts numbers that are left out because they are beyond the range of a float.
    """

    values: dict[str, float]
    step: float | None
    epoch: float | None
    beyond: int = 0


def json_values(line: str) -> PrintedValues | None:
    """Return the metrics in a line that is a JSON object, such as `{"loss": 0.3, "step": 10}`, or else None.

    The object must have a step or an epoch, and only numbers as values, because structured logs are JSON with
    texts too. A line above 4,000 characters is not parsed.
    """
    return _checked(line, _json, are_texts_numbers=False)


def dict_values(line: str) -> PrintedValues | None:
    """Return the metrics in a line such as `{'loss': 0.5, 'epoch': 1.0}`, or None for any other line.

    The conditions are those of `json_values`, except that a value may be the text of a number. Transformers
    prints such lines; its newer versions print the numbers as texts: `{'loss': '0.5', 'epoch': '1'}`.
    A NaN or infinity is printed as a name (`nan`, `inf`).
    """
    return _checked(line, _literal, are_texts_numbers=True)


def _json(text: str) -> Any:
    return json.loads(text, parse_constant=_Named)


class _Named(float):
    """NaN or an infinity that is printed by its name."""


def _literal(text: str) -> Any:
    if "\\" in text:  # no number has one, and Python prints a warning of each unknown escape
        raise ValueError(text)
    return ast.literal_eval(_NON_FINITE.sub(r"'\1'", text))


class PatternMatcher:
    """Matches the user's regular expressions in a child process.

    A pattern may need hours for one line (catastrophic backtracking), and `re` holds the global interpreter lock
    meanwhile. In a thread this would block the launcher; a child process can be killed. `on_slow` is then called
    with the pattern, which is not applied any more.
    """

    def __init__(self, patterns: Sequence[str], on_slow: Callable[[str], object]) -> None:
        self._patterns = list(patterns)
        self._on_slow = on_slow
        self._pool: ProcessPoolExecutor | None = None
        self._is_closed = False

    def values(self, lines: Sequence[str]) -> list[PrintedValues]:
        """Return the metrics that the patterns find in `lines`.

        The metrics that several patterns find in one line belong together. Each pattern has `MATCH_TIMEOUT_S`
        seconds for all lines; one that takes longer finds nothing in this and later calls. If the child process
        does not start, nothing is found.
        """
        found = []
        for pattern in tuple(self._patterns):
            try:
                pool = self._started()
            except (TimeoutError, BrokenExecutor, CancelledError, RuntimeError):
                self._kill()  # the next lines try it again
                break
            try:
                found.append(pool.submit(groups_of_lines, pattern, tuple(lines)).result(MATCH_TIMEOUT_S))
            except (TimeoutError, BrokenExecutor, CancelledError, RuntimeError):
                self._kill()
                if self._is_closed:
                    return []
                self._patterns.remove(pattern)
                self._on_slow(pattern)
        return values_of_groups(found)

    def close(self) -> None:
        """Kill the child process."""
        self._is_closed = True
        self._kill()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Here, because process pools take 13 ms to import.
            from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415
            from multiprocessing import get_context  # noqa: PLC0415

            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_ignore_interrupts)
            self._pool.submit(int).result(START_TIMEOUT_S)
        return self._pool

    def _kill(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            for process in list((pool._processes or {}).values()):  # noqa: SLF001 - a public method comes with 3.14
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)


def _ignore_interrupts() -> None:
    """Ignore SIGINT in the child process: the launcher handles ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def checked_pattern(pattern: str) -> str:
    """Return the user's `pattern` if it is valid.

    Raises `ValueError` if it is no regular expression with a named group, or has a group `name` without `value`.

    Each named group is a metric, and the text that it matches the value. The groups `step`, `global_step`,
    `iteration` and `iter` are the step, of which the first that matches counts, and `epoch` is the epoch. In a
    pattern with the groups `name` and `value`, the text that `name` matches is the metric's name.
    """
    try:
        groups = re.compile(pattern).groupindex
    except re.error as exc:
        raise ValueError(f"--metrics-regex {pattern!r} is no regular expression: {exc}") from exc
    if "name" in groups and "value" not in groups:
        raise ValueError(
            f"--metrics-regex {pattern!r} has a group `name` and no group `value`: write such as "
            "'(?P<name>[a-z_]+)=(?P<value>[-+0-9.e]+)'"
        )
    if not groups:
        raise ValueError(
            f"--metrics-regex {pattern!r} names no group: write such as 'loss=(?P<loss>[0-9.]+)', or "
            "'(?P<name>[a-z_]+)=(?P<value>[-+0-9.e]+)'"
        )
    return pattern


def names_metrics(pattern: str) -> bool:
    """Return whether a pattern has a named group for a metric, not only the groups `step` and `epoch`."""
    return bool(re.compile(pattern).groupindex.keys() - {*_STEPS, _EPOCH})


def groups_of_lines(pattern: str, lines: Sequence[str]) -> list[dict[str, str]]:
    """Return a dict for each line: the texts of the named groups in all matches of a pattern.

    A later match replaces the text of an earlier one. Only the first 4,000 characters of a line are searched.
    """
    return [_groups(pattern, line) for line in lines]


def _groups(pattern: str, line: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for match in re.finditer(pattern, line[:_MOST_CHARS]):
        groups = {name: text for name, text in match.groupdict().items() if text is not None}
        if "name" in groups and "value" in groups:
            groups[groups.pop("name")] = groups.pop("value")
        found.update(groups)
    return found


def values_of_groups(found: Iterable[Sequence[Mapping[str, str]]]) -> list[PrintedValues]:
    """Return one `PrintedValues` for each line with a metric.

    `found` has the results of `groups_of_lines` for several patterns and the same lines.
    """
    values = []
    for of_line in zip(*found, strict=True):
        groups = {name: text for of_pattern in of_line for name, text in of_pattern.items()}
        numbers = {name: number for name, text in groups.items() if (number := _number(text, True)) is not None}
        if (line := _split(numbers)) is not None:
            values.append(line)
    return values


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
    beyond = [name for name, number in numbers.items() if number is _BEYOND]
    for name in beyond:
        del numbers[name]
    step = next((numbers.pop(name) for name in _STEPS if name in numbers), None)
    epoch = numbers.pop(_EPOCH, None)
    values = {name: float(number) for name, number in numbers.items()}
    if not values and not beyond:
        return None
    return PrintedValues(values, step, None if epoch is None else float(epoch), len(beyond))


_BEYOND: Final = _Named(math.inf)
"""Takes the place of a number beyond the range of a float."""


def _number(value: object, are_texts_numbers: bool) -> float | None:
    """Return `value` if it is a number (or a text of one, if `are_texts_numbers`), else None.

    Integers are not converted to float, because a step may exceed the precision of a float. A number beyond the
    range of a float becomes `_BEYOND`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | (str if are_texts_numbers else float)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    except OverflowError:  # of an integer
        return _BEYOND
    # Names of infinities are parsed as texts or `_Named`.
    if is_beyond_float(number, value) if isinstance(value, str) else type(value) is float and math.isinf(value):
        return _BEYOND
    return int(value) if isinstance(value, int) or str(value).strip().isdecimal() else number
