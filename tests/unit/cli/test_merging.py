"""Series of a run, merged into points."""

from __future__ import annotations

import tracemalloc
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwire.cli.transfer.readers import merging
from trainwire.cli.transfer.readers.merging import MergedSeries

Value = tuple[str, int, int, float]
VALUES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(-2, 2), st.floats(0, 1)))


def merged(values: list[Value]) -> MergedSeries:
    """Return the series of these values: name, time, step and number."""
    series = MergedSeries()
    for name, time_us, step, value in values:
        series.extend(name, array("q", [time_us]), array("q", [step]), array("d", [value]))
    return series


def expected(values: list[Value]) -> list[tuple[int, int, dict[str, float]]]:
    """Return the points by definition: each value goes to the first point of its place that lacks its name."""
    rows: dict[tuple[int, int], list[dict[str, float]]] = {}
    for name, time_us, step, value in values:
        at = rows.setdefault((time_us * 1000, step), [])
        row = next((row for row in at if name not in row), None)
        if row is None:
            at.append(row := {})
        row[name] = value
    return [(*place, row) for place in sorted(rows) for row in rows[place]]


@given(VALUES, st.sampled_from([1, 40, 50_000]))
def test_values_of_one_time_and_step_are_one_point(values: list[Value], window: int) -> None:
    """In the order of time and step, whatever the order of the values; a repeated name begins another point."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "WINDOW_VALUES", window)
        points = [(point.ts, point.step, point.values) for point in merged(values).points()]
    assert points == expected(values)


def test_windows_of_many_series_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long series that begin at different times are in order across all windows."""
    monkeypatch.setattr(merging, "WINDOW_VALUES", 100)
    values = [
        (name, start + at, at, float(at)) for name, start in (("a", 0), ("b", 150), ("c", 9)) for at in range(300)
    ]
    points = [(point.ts, point.step, point.values) for point in merged(values).points()]
    assert points == expected(values)


def test_a_value_takes_few_bytes() -> None:
    """While 200,000 values are merged, memory is about 24 bytes for each, and one window."""
    count = 200_000
    tracemalloc.start()
    try:
        series = MergedSeries()
        for name in ("a", "b"):
            numbers = array("q", range(count // 2))
            series.extend(name, numbers, numbers, array("d", numbers))
        del numbers
        assert sum(len(point.values) for point in series.points()) == count
        assert tracemalloc.get_traced_memory()[1] < 40 * count + 400 * merging.WINDOW_VALUES
    finally:
        tracemalloc.stop()
