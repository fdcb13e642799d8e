"""The comparison of Loki with Postgres: every kind of difference is named, with numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.factories import NOW_NS
from trainwire.stores.loki.query import LokiLine
from trainwire.workers.sinks.loki.comparison import Copies, LokiComparison, compare
from trainwire.workers.sinks.loki.entries import MAX_LINE_BYTES, LogRow, entries_of

ALL = range(1, 11)


def _in_loki(*seqs: int, content: str = "line") -> list[LokiLine]:
    """Return the lines as Loki returns them after a delivery."""
    labels = {"job": "training", "job_id": "42", "detected_level": "unknown"}
    return [
        LokiLine(int(ts_ns), text, tuple({**labels, "log_type": "stdout", **metadata}.items()))
        for seq in seqs
        for ts_ns, text, metadata in entries_of(
            LogRow(seq, 1, None, "0-ab12cd34", "stdout", None, NOW_NS + seq, content)
        )
    ]


def _compared(
    stored: Iterable[int],
    lines: Iterable[LokiLine],
    confirmed_seq: int = 99,
    dead: Collection[int] = (),
    *,
    removed_seq: int = 0,
    last_seq: int = 10,
) -> LokiComparison:
    return compare(
        [(seq, seq) for seq in stored],
        Copies(last_seq, lines),
        removed_seq=removed_seq,
        confirmed_seq=confirmed_seq,
        dead_lettered=dead,
    )


def test_the_same_is_verified() -> None:
    """If every line is in Loki, dead-lettered or waiting, the state is verified, with the sum in one line."""
    found = _compared(ALL, _in_loki(*range(1, 7)), confirmed_seq=8, dead={7, 8})
    assert found.is_verified
    assert found.line == (
        "verified: 10 lines = 6 in Loki + 2 dead-lettered + 2 waiting + 0 missing; 0 twice, 0 unknown; "
        "10 in Postgres + 0 removed by retention + 0 lost"
    )
    assert found.differences == []


def test_missing_lines_are_named_as_ranges() -> None:
    """A line before the cursor that is not in Loki is missing."""
    found = _compared(ALL, _in_loki(1, 4, 5, 6), confirmed_seq=9)
    assert not found.is_verified
    assert found.line.startswith(
        "differs: 10 lines = 4 in Loki + 0 dead-lettered + 1 waiting + 5 missing; 0 twice, 0 unknown; "
    )
    assert found.differences == ["missing in Loki: 2-3, 7-9"]


def test_a_line_under_two_streams_is_twice() -> None:
    """A line that was sent again with another label is counted as a second copy."""
    found = _compared(ALL, _in_loki(*ALL, 5, 6))
    assert (found.in_loki, found.missing) == (10, [])
    assert found.differences == ["twice in Loki: 5-6"]


def test_lines_that_the_job_never_had_are_named() -> None:
    """Numbers after the last row, and lines without a number, are unknown."""
    found = _compared(ALL, [*_in_loki(*ALL, 12, 13), LokiLine(NOW_NS, "theirs", (("seq", "x"),))])
    assert found.line.startswith("differs: 10 lines = 10 in Loki")
    assert "0 twice, 3 unknown" in found.line
    assert found.differences == ["in Loki, unknown to Postgres: 12-13", "in Loki without a number: 1"]


def test_the_parts_of_a_long_line_are_one_line() -> None:
    """A split line is in Loki if all its parts are, in any order."""
    lines = [*_in_loki(1), *_in_loki(2, content="x" * MAX_LINE_BYTES * 2 + "end"), *_in_loki(3)]
    assert len(lines) == 5
    rows = range(1, 4)
    assert _compared(rows, lines[::-1], last_seq=3).is_verified
    assert _compared(rows, lines[:3] + lines[4:], last_seq=3).differences == ["missing in Loki: 2"]
    assert _compared(rows, [*lines, lines[2]], last_seq=3).differences == ["twice in Loki: 2"]
    surplus = replace(lines[0], labels=(("seq", "1"), ("part", "2/2")))
    assert _compared(rows, [*lines, surplus], last_seq=3).differences == ["twice in Loki: 1"]
    boundless = replace(lines[0], labels=(("seq", "1"), ("part", f"2/{10**17}")))
    assert _compared(rows, [*lines[1:], boundless], last_seq=3).differences == ["missing in Loki: 1"]


def test_a_stored_dead_letter_is_in_loki() -> None:
    """A row with a dead letter that is in Loki after a replay is counted once."""
    found = _compared(ALL, _in_loki(*ALL), dead={3})
    assert (found.in_loki, found.dead_lettered, found.is_verified) == (10, 0, True)


def test_removed_rows_are_counted_and_named() -> None:
    """A row removed by retention is in Loki, dead-lettered or missing, never waiting."""
    found = _compared(range(7, 11), _in_loki(*range(2, 11)), dead={1}, removed_seq=6)
    assert found.is_verified
    assert found.line.endswith("4 in Postgres + 6 removed by retention + 0 lost")
    found = _compared(range(7, 11), _in_loki(2, 3, 5, 6, 6), confirmed_seq=0, removed_seq=6)
    assert (found.in_loki, found.waiting) == (4, 4)
    assert found.differences == ["missing in Loki: 1, 4", "twice in Loki: 6"]
    assert _compared([], [], removed_seq=3, last_seq=3).differences == ["missing in Loki: 1-3"]


def test_a_row_missing_without_retention_is_lost() -> None:
    """A row that is not in Postgres, and was not removed by retention, is lost, whether it is in Loki or not."""
    found = _compared(set(ALL) - {3, 6, 7, 10}, _in_loki(*set(ALL) - {7}), removed_seq=4)
    assert not found.is_verified
    assert found.line.endswith("6 in Postgres + 1 removed by retention + 3 lost")
    assert found.differences == ["missing in Loki: 7", "lost from Postgres: 6-7, 10"]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=30),
    st.integers(0, 30),
    st.integers(0, 30),
    st.randoms(),
)
def test_every_line_is_counted_once(
    copies: Sequence[tuple[int, bool, bool]], confirmed_seq: int, removed_seq: int, random: Random
) -> None:
    """For any content of Loki and Postgres, both sums are the number of all lines."""
    numbered = dict(enumerate(copies, 1))
    lines = [line for seq, (times, _, _) in numbered.items() for line in _in_loki(*[seq] * times)]
    random.shuffle(lines)
    dead = {seq for seq, (_, is_dead, _) in numbered.items() if is_dead}
    stored = [seq for seq, (_, _, is_stored) in numbered.items() if is_stored]
    found = _compared(stored, lines, confirmed_seq, dead, removed_seq=removed_seq, last_seq=len(copies))
    assert found.rows == found.in_loki + found.dead_lettered + found.waiting + found.missing.total
    assert found.rows == found.in_postgres + found.removed.total + found.lost.total
    assert found.twice.total == sum(times > 1 for times, _, _ in copies)
    assert (found.unknown, found.unnumbered) == ([], 0)
