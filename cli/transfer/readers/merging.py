"""Merges metric series into points: values with the same time and step become one point."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, repeat
from operator import gt, itemgetter
from typing import Final, TypeAlias

from trainwire.schemas.wire.messages import Point

WINDOW_VALUES: Final = 50_000
"""Approximate number of values that exist as Python objects at the same time."""
_LEAST_DISTANCE: Final = 20

_Place: TypeAlias = tuple[int, int]
"""Time in microseconds since 1970, and step, of a value."""
_place_of = itemgetter(0, 1)


@dataclass(slots=True)
class _Series:
    name: str
    times: array[int] = field(default_factory=lambda: array("q"))
    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def place(self, index: int) -> _Place:
        return self.times[index], self.steps[index]

    def sort(self) -> None:
        """Sort the values by time and step; a series that is sorted already, as most are, is not changed."""
        places, followers = zip(self.times, self.steps, strict=True), zip(self.times, self.steps, strict=True)
        if not any(map(gt, places, islice(followers, 1, None))):
            return
        order = sorted(range(len(self.times)), key=self.place)
        self.times = array("q", map(self.times.__getitem__, order))
        self.steps = array("q", map(self.steps.__getitem__, order))
        self.values = array("d", map(self.values.__getitem__, order))


class MergedSeries:
    """All metric series of one run in memory: 24 bytes per value."""

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}

    def extend(self, name: str, times_us: array[int], steps: array[int], values: array[float]) -> None:
        """Add values of the metric `name`, with their times in microseconds since 1970 and their steps.

        Two of its values with the same time and step go to different points.
        """
        series = self._series.get(name) or self._series.setdefault(name, _Series(name))
        series.times += times_us
        series.steps += steps
        series.values += values

    def points(self) -> Iterator[Point]:
        """Yield the points, ordered by time and step."""
        series = list(self._series.values())
        for each in series:
            each.sort()
        begins = [0] * len(series)
        for last in _lasts_of_windows(series):
            window: list[tuple[int, int, str, float]] = []
            for number, each in enumerate(series):
                first = begins[number]
                size = len(each.times)
                end = size if last is None else bisect_right(range(size), last, lo=first, key=each.place)
                begins[number] = end
                columns = each.times[first:end], each.steps[first:end], repeat(each.name), each.values[first:end]
                window += zip(*columns, strict=False)
            if len(series) > 1:
                window.sort(key=_place_of)
            yield from _merged(window)


def _lasts_of_windows(series: list[_Series]) -> list[_Place | None]:
    """Return the last (time, step) of each window of values that `points` merges at once; None for the last.

    Every n-th (time, step) of each series serves as a sample. An equal number of samples between two limits gives
    windows of about the same size.
    """
    distance = max(WINDOW_VALUES // (len(series) + 1), _LEAST_DISTANCE)
    samples = sorted(each.place(at) for each in series for at in range(distance - 1, len(each.times), distance))
    count = max(WINDOW_VALUES // distance, 1)
    return [*samples[count - 1 :: count], None]


def _merged(window: Iterable[tuple[int, int, str, float]]) -> Iterator[Point]:
    place: _Place = (0, 0)
    rows: list[dict[str, float]] = []
    for time_us, step, name, value in window:
        if place != (time_us, step):
            for row in rows:
                yield Point(ts=place[0] * 1000, step=place[1], values=row)
            place, rows = (time_us, step), []
        free = next((row for row in rows if name not in row), None) if rows else None
        if free is None:
            rows.append({name: value})
        else:
            free[name] = value
    for row in rows:
        yield Point(ts=place[0] * 1000, step=place[1], values=row)
