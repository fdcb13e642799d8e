"""The comparison of Loki with Postgres: every way in which they can differ has a name and numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from stores.loki_query import LokiLine
from tests.factories import NOW_NS
from workers.sinks.loki.comparison import Comparison, compare
from workers.sinks.loki.lines import MAX_LINE_BYTES, entries_of
from workers.sinks.loki.rows import LogRow
from workers.sinks.row_sums import ranges_of


def _row(seq: int, content: str = "line", **more: object) -> LogRow:
    row = LogRow(seq, 1, None, "0-ab12cd34", "stdout", None, NOW_NS + seq, content)
    return replace(row, **more)  # type: ignore[arg-type]


def _in_loki(*rows: LogRow) -> list[LokiLine]:
    labels = {"job": "training", "job_id": "42", "detected_level": "unknown"}
    return [
        LokiLine(int(ts_ns), text, tuple({**labels, "log_type": row.log_type, **metadata}.items()))
        for row in rows
        for ts_ns, text, metadata in entries_of(row)
    ]


def _compared(
    rows: Sequence[LogRow],
    lines: Iterable[LokiLine],
    confirmed_seq: int = 99,
    dead: Collection[int] = (),
    *,
    removed_seq: int = 0,
    last_seq: int | None = None,
) -> Comparison:
    return compare(
        rows,
        lines,
        last_seq=max((row.seq for row in rows), default=0) if last_seq is None else last_seq,
        removed_seq=lambda: removed_seq,
        confirmed_seq=confirmed_seq,
        dead_lettered=dead,
    )


ROWS = [_row(seq) for seq in range(1, 11)]


def test_the_same_is_verified() -> None:
    """Every row is in Loki, dead-lettered or waiting: verified, with the sum in one line."""
    found = _compared(ROWS, _in_loki(*ROWS[:6]), confirmed_seq=8, dead={7, 8})
    assert found.is_verified
    assert found.line == (
        "verified: 10 lines in Postgres = 6 in Loki + 2 dead-lettered + 2 waiting; 0 missing, 0 twice, 0 different"
    )
    assert found.differences == []


def test_missing_lines_are_named_as_ranges() -> None:
    """What the cursor has passed and Loki does not have is missing."""
    found = _compared(ROWS, _in_loki(ROWS[0], *ROWS[3:6]), confirmed_seq=9)
    assert not found.is_verified
    assert found.line == (
        "differs: 10 lines in Postgres ≠ 4 in Loki + 0 dead-lettered + 1 waiting; 5 missing, 0 twice, 0 different"
    )
    assert found.differences == ["missing in Loki: 2-3, 7-9"]


def test_a_line_under_two_streams_is_twice() -> None:
    """Loki keeps both copies of a line that was sent again under another label."""
    found = _compared(ROWS, _in_loki(*ROWS, ROWS[4], ROWS[5]))
    assert (found.in_loki, found.missing) == (10, ())
    assert found.differences == ["twice in Loki: 5-6"]


def test_another_text_time_or_output_is_different() -> None:
    """The same number with anything else but the row's line is named."""
    changed = [_row(1, "LINE"), _row(2, ts_ns=NOW_NS), _row(3, log_type="stderr")]
    found = _compared(ROWS, _in_loki(*changed, *ROWS[3:]))
    assert found.differences == ["different in Loki: 1-3"]
    assert (found.in_loki, found.missing) == (10, ())


def test_what_postgres_does_not_have_is_named() -> None:
    """Numbers that Postgres does not have, and lines without a number, come from somebody else."""
    lines = [*_in_loki(*ROWS, _row(12), _row(13)), LokiLine(NOW_NS, "theirs", (("seq", "x"),))]
    found = _compared(ROWS, lines)
    assert found.line.startswith("differs: 10 lines in Postgres = 10 in Loki")
    assert found.line.endswith("0 different, 3 not in Postgres")
    assert found.differences == ["in Loki, not in Postgres: 12-13", "in Loki without a number: 1"]


def test_the_parts_of_a_long_line_are_one_line() -> None:
    """A split line is there when all its parts are, in whatever order they come."""
    long = _row(2, "x" * MAX_LINE_BYTES * 2 + "end")
    rows = [_row(1), long, _row(3)]
    lines = _in_loki(*rows)
    assert len(lines) == 5
    assert _compared(rows, lines[::-1]).is_verified
    assert _compared(rows, lines[:3] + lines[4:]).differences == ["missing in Loki: 2"]
    assert _compared(rows, [*lines, lines[2]]).differences == ["twice in Loki: 2"]
    changed = replace(lines[2], line="y")
    assert _compared(rows, [*lines[:2], changed, *lines[3:]]).differences == ["different in Loki: 2"]
    surplus = replace(lines[0], labels=(("seq", "1"), ("part", "2/2"), ("log_type", "stdout")))
    assert _compared(rows, [*lines, surplus]).differences == ["different in Loki: 1"]


def test_a_stored_dead_letter_is_in_loki() -> None:
    """A letter that stayed behind when its row was sent again is no reason to count the row twice."""
    found = _compared(ROWS, _in_loki(*ROWS), dead={3})
    assert (found.in_loki, found.dead_lettered, found.is_verified) == (10, 0, True)


def test_removed_rows_are_counted_and_named() -> None:
    """What retention removed is in Loki, dead-lettered, or named; it is neither missing nor unknown."""
    found = _compared(ROWS[6:], _in_loki(*ROWS[1:]), dead={1}, removed_seq=6)
    assert found.is_verified
    assert found.line.endswith("0 different; 6 removed by retention = 5 in Loki + 1 dead-lettered")
    found = _compared(ROWS[6:], _in_loki(*ROWS[1:3], *ROWS[4:], ROWS[5]), removed_seq=6)
    assert found.line.startswith("differs: 4 lines in Postgres = 4 in Loki")
    assert found.line.endswith("1 twice, 0 different; 6 removed by retention ≠ 4 in Loki + 0 dead-lettered")
    assert found.differences == ["twice in Loki: 6", "removed by retention, not in Loki: 1, 4"]
    assert _compared([], [], removed_seq=3, last_seq=3).differences == ["removed by retention, not in Loki: 1-3"]


def test_a_removed_row_needs_all_its_parts() -> None:
    """Of a line that was split for Loki, one part is not the line."""
    lines = _in_loki(_row(1, "x" * MAX_LINE_BYTES * 2 + "end"), _row(2))
    found = _compared([_row(2)], lines, removed_seq=1)
    assert (found.is_verified, found.removed.in_loki) == (True, 1)
    assert _compared([_row(2)], lines[1:], removed_seq=1).removed.gone == ((1, 1),)
    assert _compared([_row(2)], [*lines, lines[1]], removed_seq=1).twice == ((1, 1),)


def test_a_row_that_nobody_removed_is_lost() -> None:
    """What Postgres had and retention did not remove is a loss, whether Loki has it or not."""
    rows = [row for row in ROWS if row.seq not in {3, 6, 7, 10}]
    found = _compared(rows, _in_loki(*ROWS[:6], *ROWS[7:]), removed_seq=4, last_seq=10)
    assert not found.is_verified
    assert found.removed.rows == 1
    assert found.line.endswith(
        "2 not in Postgres, 3 lost from Postgres; 1 removed by retention = 1 in Loki + 0 dead-lettered"
    )
    assert found.differences == ["in Loki, not in Postgres: 6, 10", "lost from Postgres: 6-7, 10"]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30), st.integers(0, 30), st.randoms())
def test_every_row_is_counted_once(copies: list[tuple[int, bool]], confirmed_seq: int, random: Random) -> None:
    """Whatever Loki has, in Loki + dead-lettered + waiting + missing is what Postgres has."""
    rows = [_row(seq * 2) for seq in range(1, len(copies) + 1)]
    lines = [line for row, (times, _) in zip(rows, copies, strict=True) for line in _in_loki(*[row] * times)]
    random.shuffle(lines)
    dead = {row.seq for row, (_, is_dead) in zip(rows, copies, strict=True) if is_dead}
    found = _compared(rows, lines, confirmed_seq, dead)
    missing = sum(last - first + 1 for first, last in found.missing)
    assert found.in_postgres == found.in_loki + found.dead_lettered + found.waiting + missing
    twice = [row.seq for row, (times, _) in zip(rows, copies, strict=True) if times > 1]
    assert (found.twice, found.different, found.unknown) == (ranges_of(twice), (), ())
