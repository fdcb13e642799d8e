"""How often a trainer sends while the workers are behind."""

from __future__ import annotations

from itertools import pairwise

import pytest

from trainwire.ingest.sending.flush_pace import LONGEST_INTERVAL_S, FlushPace
from trainwire.schemas.keys import read_behind_s


def settled(pace: FlushPace, behind_s: float) -> FlushPace:
    """Return the pace after many equal reports."""
    for _ in range(50):
        pace = pace.after(behind_s)
    return pace


@pytest.mark.parametrize(
    ("behind_s", "interval_s"), [(0.0, 0.05), (0.5, 0.05), (1.0, 1.0), (2.0, 3.0), (3.0, 5.0), (3600.0, 5.0)]
)
def test_the_interval_follows_the_wait(behind_s: float, interval_s: float) -> None:
    """With room it is the shortest one, and grows to five seconds with the time that messages wait."""
    assert settled(FlushPace(0.05), behind_s).interval_s == pytest.approx(interval_s)


def test_the_interval_changes_smoothly() -> None:
    """One report moves it half of the way, up and down; at the end it is exactly the shortest one again."""
    pace, intervals = FlushPace(0.05), []
    for behind_s in [60.0] * 8 + [0.0] * 12:
        pace = pace.after(behind_s)
        intervals.append(pace.interval_s)
    assert intervals[0] == pytest.approx((0.05 + LONGEST_INTERVAL_S) / 2)
    assert intervals[7] == LONGEST_INTERVAL_S
    assert all(after >= before / 2 for before, after in pairwise(intervals[7:]))
    assert intervals[-1] == 0.05
    assert not pace.is_slow


def test_a_set_interval_is_the_shortest() -> None:
    """An interval of the user's own is never shortened, not even one above five seconds."""
    assert settled(FlushPace(1.5), 0.9).interval_s == 1.5
    assert settled(FlushPace(1.5), 2.0).interval_s == pytest.approx(3.0)
    assert settled(FlushPace(30.0), 60.0).interval_s == 30.0


@pytest.mark.parametrize("published", [[], [None, None], [b"", b"x"], [b"-5"], [b"1" * 4000], ["4000"]])
def test_an_invalid_wait_is_room(published: list[object]) -> None:
    """A missing or invalid value counts as no wait."""
    assert read_behind_s(published) == 0


def test_the_longest_wait_counts() -> None:
    """Of lines and metrics, the kind that waits longer decides."""
    assert read_behind_s([b"700", b"2500"]) == read_behind_s([b"2500", None]) == 2.5
