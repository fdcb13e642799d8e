"""Merges the series of a run into points: values with the same time and step become one point."""

from __future__ import annotations

from collections.abc import Iterator

from trainwire.schemas.messages import Point


class MergedSeries:
    """The values of all series of one run, in memory."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], list[dict[str, float]]] = {}

    def add(self, ts: int, step: int, name: str, value: float) -> None:
        """Add a value; a second value of a name at the same time and step begins another point."""
        rows = self._rows.get((ts, step))
        if rows is None:
            self._rows[ts, step] = [{name: value}]
            return
        for row in rows:
            if name not in row:
                row[name] = value
                return
        rows.append({name: value})

    def points(self) -> Iterator[Point]:
        """Yield the points in the order of time and step."""
        for (ts, step), rows in sorted(self._rows.items(), key=lambda item: item[0]):
            for values in rows:
                yield Point(ts=ts, step=step, values=values)
