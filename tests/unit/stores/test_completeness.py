"""The sum that proves that nothing is lost, and its wording."""

from __future__ import annotations

from stores.completeness import Position, assess, shown_ranges


def _position(kind: str = "logs", *, source: str = "0-ab12cd34", last_seq: int, **more: object) -> Position:
    fields: dict[str, object] = {"attempt": 1, **more}
    return Position(source=source, kind=kind, last_seq=last_seq, **fields)  # type: ignore[arg-type]


def test_everything_stored_is_complete() -> None:
    """All numbers there and the completion seen: complete, with the sum in one line."""
    line = assess(
        [_position(last_seq=1200, produced=1200), _position("metrics", last_seq=34, produced=34)], 1
    ).line
    assert line == ("complete: 1,234 messages produced = 1,234 stored + 0 dead-lettered + 0 missing + 0 dropped")


def test_gaps_are_named_by_number() -> None:
    """Holes and a tail that never came are counted and named."""
    found = assess([_position(last_seq=10, missing=((7, 7), (9, 9)), produced=12)], 1)
    assert found.line == (
        "incomplete: 12 messages produced = 8 stored + 0 dead-lettered + 4 missing + 0 dropped"
        "; missing: logs of 0-ab12cd34: 7, 9, 11-12"
    )


def test_no_completion_yet_is_so_far() -> None:
    """Without a completion nobody knows how much was made, so the line says so."""
    assert assess([_position(last_seq=3)], 1).line.startswith("so far: 3 messages produced = 3 stored")
    assert assess([], 1).line.startswith("so far: 0 messages")


def test_a_completion_without_counts_ends_its_source() -> None:
    """A trainer in another language may complete without saying `produced`."""
    rows = [_position(last_seq=3), _position("completions", last_seq=1)]
    assert assess(rows, 1).state == "complete"


def test_a_dead_lettered_completion_ends_nothing() -> None:
    """A completion that could not be read is no completion."""
    rows = [_position(last_seq=3), _position("completions", last_seq=1, dead_lettered=1)]
    found = assess(rows, 1)
    assert found.state == "so far"
    assert (found.produced, found.stored, found.dead_lettered) == (4, 3, 1)


def test_one_of_two_ranks_still_running_is_so_far() -> None:
    """A job is complete when every source of the attempt has completed."""
    rows = [_position(last_seq=3, produced=3), _position(source="1-ffff0000", last_seq=2)]
    found = assess(rows, 1)
    assert (found.state, found.open_sources) == ("so far", ("1-ffff0000",))


def test_a_crashed_earlier_attempt_is_named() -> None:
    """A source of an earlier attempt that never completed does not hold the verdict up, but is named."""
    rows = [
        _position(source="0-dead", last_seq=5),
        _position(source="0-live", last_seq=2, produced=2, attempt=2),
    ]
    found = assess(rows, 2)
    assert found.state == "complete"
    assert found.line.endswith("; ended without a completion: 0-dead")


def test_a_killed_source_is_complete_and_named() -> None:
    """Who sent its leftovers has told how much it made; that it never said so itself is in the line."""
    rows = [
        _position(last_seq=5, produced=5, dropped=2),
        _position("completions", last_seq=1, produced=0),
        _position(source="0-launcher", last_seq=7, produced=7),
        _position("completions", source="0-launcher", last_seq=1, produced=1),
    ]
    assert assess(rows, 1).line == (
        "complete but for 2 dropped: 16 messages produced = 14 stored + 0 dead-lettered + 0 missing + 2 dropped"
        "; ended without a completion: 0-ab12cd34"
    )


def test_losses_the_user_chose_are_in_the_heading() -> None:
    """Dropped and dead-lettered messages are accounted for, and not called complete without saying so."""
    found = assess([_position(last_seq=10, produced=10, dead_lettered=1, dropped=5)], 1)
    assert found.line == (
        "complete but for 1 dead-lettered and 5 dropped: "
        "15 messages produced = 9 stored + 1 dead-lettered + 0 missing + 5 dropped"
    )


def test_more_came_than_was_announced() -> None:
    """A source that goes on after its completion is counted by what came."""
    found = assess([_position(last_seq=12, produced=10)], 1)
    assert (found.produced, found.stored, found.missing) == (12, 12, 0)


def test_many_ranges_are_cut() -> None:
    """A line stays a line, however many gaps there are."""
    ranges = tuple((number, number) for number in range(1, 40, 2))
    assert shown_ranges(ranges).endswith("19 and 10 more")
