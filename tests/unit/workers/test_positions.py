"""Positions, compared with a set of numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwire.workers.drain import positions
from trainwire.workers.drain.positions import Position

SEQS = st.lists(st.integers(1, 40), max_size=80)


@given(SEQS)
def test_a_position_is_a_set_of_numbers(seqs: list[int]) -> None:
    """In any order of arrival each number is new once, and the position has the missing numbers of the set."""
    position, seen = Position(), set[int]()
    for seq in seqs:
        assert position.accept(seq) is (seq not in seen)
        seen.add(seq)
    missing = {number for first, last in position.missing for number in range(first, last + 1)}
    assert missing == set(range(1, max(seen, default=0) + 1)) - seen
    assert position.received == len(seen)
    assert position.contiguous == next(number for number in range(42) if number + 1 not in seen)
    assert position.missing == sorted(position.missing)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9), st.sampled_from(["", "a", "b"])), max_size=60))
def test_lost_numbers_are_neither_here_nor_missing(steps: list[tuple[int, int, str]]) -> None:
    """With arrivals and losses in any order a stored number is never lost, and a late arrival counts as stored."""
    position, here, lost = Position(), set[int](), dict[int, str]()
    for first, more, reason in steps:
        if not reason:
            assert position.accept(first) is (first not in here)
            here.add(first)
            lost.pop(first, None)
            continue
        new = set(range(first, first + more + 1)) - here - lost.keys()
        assert position.lose(first, first + more, reason) == len(new)
        lost |= dict.fromkeys(new, reason)
    missing = {number for first, last in position.missing for number in range(first, last + 1)}
    assert missing == set(range(1, max([*here, *lost], default=0) + 1)) - here - lost.keys()
    assert {n: reason for first, last, reason in position.lost for n in range(first, last + 1)} == lost
    assert (position.received, position.lost_count) == (len(here), len(lost))
    assert position.missing_count == len(missing)
    assert position.missing == sorted(position.missing)
    assert position.lost == sorted(position.lost)


def test_a_position_has_only_advanced_until_anything_else_happens() -> None:
    """A gap, a resend, a loss, an expected number and a reopened number each end it; a next number does not."""
    position = Position(3, only_advanced=True)
    assert position.accept(4)
    assert (position.only_advanced, position.last_seq) == (True, 4)
    changes: list[Callable[[Position], object]] = [
        lambda each: each.accept(6),
        lambda each: each.accept(2),
        lambda each: each.lose(5, 6, "damaged"),
        lambda each: each.expect(7),
        lambda each: each.reopen(1),
    ]
    for change in changes:
        position = Position(4, only_advanced=True)
        change(position)
        assert not position.only_advanced
    assert not Position().only_advanced


@given(SEQS, st.integers(1, 40))
def test_a_reopened_number_may_come_again(seqs: list[int], again: int) -> None:
    """A reopened number is missing, and new when it arrives."""
    position = Position()
    for seq in [*seqs, again]:
        position.accept(seq)
    assert position.reopen(again)
    assert not position.reopen(again)
    assert position.contiguous < again
    assert position.received == len({*seqs, again}) - 1
    assert position.accept(again)
    assert not position.accept(again)


def test_only_arrived_numbers_are_reopened() -> None:
    """A number that is missing, lost or beyond the last one is not reopened."""
    position = Position(missing=[(3, 9)], lost=[(12, 14, "damaged")], last_seq=20)
    before = copy.deepcopy(position)
    assert not any(position.reopen(seq) for seq in (0, 3, 9, 12, 14, 21, 5 * 10**9))
    assert position == before


def test_ranges_have_the_form_that_trainers_read() -> None:
    """Missing ranges are first-last, separated by commas."""
    position = Position()
    for seq in (1, 5, 7):
        position.accept(seq)
    assert position.missing_text() == "2-4,6-6"


def test_a_position_has_a_bounded_number_of_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the maximum of ranges a position accepts numbers that close one, and none that opens another."""
    monkeypatch.setattr(positions, "MAX_RANGES", 3)
    position = Position(missing=[(3, 9), (20, 29)], lost=[(40, 49, "damaged")], last_seq=50)
    inside, edges, beyond = [5, 25, 45], [3, 9, 20, 29, 40, 49, 51, 2], [52, 10**6]
    assert [seq for seq in [*inside, *edges, *beyond] if position.would_scatter(seq, seq)] == [*inside, *beyond]
    assert position.would_scatter(4, 5, lost=True)
    assert position.would_scatter(51, 60, lost=True)
    assert not position.would_scatter(3, 9, lost=True)
    assert position.would_scatter(3, 5, lost=True)  # the rest of the gap is a range, and so is this
    assert position.would_scatter(25, 29, lost=True)
    assert not position.would_scatter(41, 45, lost=True)  # nothing of it is missing


def test_a_source_that_gives_many_reasons_has_a_bounded_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap declared lost number by number, each with another reason, has a bounded size."""
    monkeypatch.setattr(positions, "MAX_RANGES", 10)
    position = Position(missing=[(1, 1000)], last_seq=1000)
    for seq in range(1, 500):
        if not position.would_scatter(seq, seq, lost=True):
            position.lose(seq, seq, "ab"[seq % 2])
    assert len(position.missing) + len(position.lost) <= 12


class _Counted(list[Any]):
    """A list that counts how many of its elements are read or replaced."""

    def __init__(self, elements: Iterable[Any] = ()) -> None:
        super().__init__(elements)
        self.touched = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.touched += len(found) if isinstance(index, slice) else 1
        return found

    def __setitem__(self, index: Any, value: Any) -> None:
        self.touched += len(value) if isinstance(index, slice) else 1
        super().__setitem__(index, value)

    def __iter__(self) -> Iterator[Any]:
        self.touched += len(self)
        return super().__iter__()


def test_one_entry_touches_few_ranges() -> None:
    """Statements that change nothing or one range cost the same with ten thousand ranges as with ten."""
    count = positions.MAX_RANGES // 2
    gaps = _Counted((first, first + 1) for first in range(4, 4 + 8 * count, 8))
    lost = _Counted((first + 4, first + 4, "ab"[number % 2]) for number, (first, _) in enumerate(gaps))
    last = gaps[-1][1] + 5
    position = Position(last, gaps, lost)
    steps: list[Callable[[], object]] = [
        lambda: position.lose(1, 3, "restored"),
        lambda: position.lose(lost[count // 2][0], lost[count // 2][0], "restored"),
        lambda: position.lose(gaps[7][0], gaps[7][1], "restored"),
        lambda: position.lose(gaps[9][1], gaps[9][1], "restored"),
        lambda: position.lose(position.last_seq, position.last_seq + 1, "restored"),
        lambda: position.would_scatter(5, 6),
        lambda: position.would_scatter(1, 3, lost=True),
        lambda: position.accept(gaps[5][0]),
        lambda: position.accept(lost[5][0]),
        lambda: position.accept(1),
        lambda: (position.received, position.lost_count, position.contiguous),
    ]
    for number, step in enumerate(steps):
        gaps.touched = lost.touched = 0
        step()
        assert position.missing is gaps
        assert position.lost is lost
        assert gaps.touched + lost.touched < 100, number
