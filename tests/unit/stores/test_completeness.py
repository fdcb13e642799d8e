"""The sum, its state and its text."""

from __future__ import annotations

from typing import Any

import pytest

from trainwire.schemas.completeness_states import State, may_grow
from trainwire.schemas.wire.messages import Status
from trainwire.stores.postgres.completeness import Completeness, assess, shown_ranges
from trainwire.stores.postgres.source_positions import SourcePosition


def _position(kind: str = "logs", *, source: str = "0-ab12cd34", last_seq: int, **more: object) -> SourcePosition:
    fields: dict[str, object] = {"attempt": 1, **more}
    return SourcePosition(source=source, kind=kind, last_seq=last_seq, **fields)  # type: ignore[arg-type]


def _source(*logs: int, source: str = "0-ab12cd34", **more: Any) -> list[SourcePosition]:
    """A source that made so many lines (the second number: so many arrived) and has ended."""
    produced, arrived = logs[0], logs[-1]
    return [
        _position(source=source, last_seq=arrived, produced=produced, **more),
        _position("completions", source=source, last_seq=1, produced=1, attempt=more.get("attempt", 1)),
    ]


def _assess(*rows: SourcePosition, attempt: int = 1, status: Status = "completed") -> Completeness:
    return assess(rows, attempt, status)


def test_everything_stored_is_complete() -> None:
    """With all numbers and the completion stored the state is complete, and the sum is one line."""
    line = _assess(*_source(1200), _position("metrics", last_seq=33, produced=33)).line
    assert line == ("complete: 1,234 messages produced = 1,234 stored + 0 dead-lettered + 0 missing + 0 dropped")


def test_gaps_are_named_by_number() -> None:
    """Missing numbers, also at the end, are counted and listed."""
    assert _assess(*_source(12, 10, missing=((7, 7), (9, 9)))).line == (
        "incomplete: 13 messages produced = 9 stored + 0 dead-lettered + 4 missing + 0 dropped"
        "; missing: logs of 0-ab12cd34: 7, 9, 11-12"
    )


def test_no_completion_yet_is_open() -> None:
    """Without a completion the number of produced messages is unknown."""
    assert _assess(_position(last_seq=3), status="running").line.startswith("open: 3 messages produced = 3 stored")
    assert _assess(status="pending").line.startswith("open: 0 messages")


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("pending", "open"),
        ("running", "open"),
        ("stalled", "open"),
        ("lost", "unproven"),
        ("failed", "complete"),
        ("completed", "complete"),
    ],
)
def test_the_state_follows_the_status(status: Status, state: State) -> None:
    """With everything stored the state is complete only for a job that reported its end."""
    assert _assess(*_source(3), status=status).state == state


@pytest.mark.parametrize(("logs", "completions"), [(None, None), (3, None), (None, 1)])
def test_a_completion_without_counts_proves_nothing(logs: int | None, completions: int | None) -> None:
    """A completion without `produced`, or with a misspelled kind, ends its source without a count."""
    rows = (
        _position(last_seq=3, produced=logs),
        _position("completions", last_seq=1, produced=completions),
        *_source(2, source="1-other"),
    )
    found = _assess(*rows)
    assert (found.state, may_grow(found.document), found.uncounted_sources) == ("unproven", False, ("0-ab12cd34",))
    assert found.line.endswith("; completed without `produced` of every kind: 0-ab12cd34")


def test_a_dead_lettered_completion_ends_nothing() -> None:
    """A dead-lettered completion does not end its source."""
    found = _assess(_position(last_seq=3), _position("completions", last_seq=1, dead_lettered=1))
    assert (found.state, may_grow(found.document)) == ("open", True)
    assert (found.produced, found.stored, found.dead_lettered) == (4, 3, 1)


def test_one_of_two_ranks_still_running_is_open() -> None:
    """A job is complete when every source of the attempt has completed."""
    found = _assess(*_source(3), _position(source="1-ffff0000", last_seq=2))
    assert (found.state, found.open_sources) == ("open", ("1-ffff0000",))


def test_a_crashed_earlier_attempt_is_named() -> None:
    """A source of an earlier attempt without a completion is named as unproven; the job is not open."""
    found = _assess(_position(source="0-dead", last_seq=5), *_source(2, source="0-live", attempt=2), attempt=2)
    assert (found.state, may_grow(found.document)) == ("unproven", False)
    assert found.line.endswith("; ended without a completion: 0-dead")


def test_a_killed_source_is_unproven_and_named() -> None:
    """The process that sent its spooled messages counted them; it may have produced more."""
    killed = _position(last_seq=5, produced=5, dropped=2)
    end = _position("completions", source="0-ab12cd34~end-00000000", last_seq=1, produced=1)
    assert _assess(killed, end, *_source(7, source="0-launcher")).line == (
        "unproven: 16 messages produced = 14 stored + 0 dead-lettered + 0 missing + 2 dropped"
        "; ended without a completion: 0-ab12cd34"
    )


def test_an_end_that_the_gateway_made_up_is_none_of_the_source() -> None:
    """An inferred end counts no completion in `produced`, though it has the completion's number."""
    found = _assess(_position(last_seq=5, produced=5), _position("completions", last_seq=1, produced=0))
    assert (found.state, found.silent_sources) == ("unproven", ("0-ab12cd34",))


def test_a_killed_source_of_a_running_job_is_open() -> None:
    """An end inferred from a copy of a spool leaves the source open: it may be running."""
    assert _assess(_position(last_seq=5, produced=5), status="running").state == "open"


def test_all_sources_of_a_lost_job_are_silent() -> None:
    """A lost job has no open sources, because no more messages are expected."""
    found = _assess(_position(last_seq=5), status="lost")
    assert (found.state, found.open_sources, found.silent_sources) == ("unproven", (), ("0-ab12cd34",))


def test_losses_the_user_chose_are_accounted() -> None:
    """Dropped and dead-lettered messages are counted, and make the sum accounted, not complete."""
    found = _assess(*_source(9, dead_lettered=1, dropped=5))
    assert found.line == "accounted: 15 messages produced = 9 stored + 1 dead-lettered + 0 missing + 5 dropped"
    assert not may_grow(found.document)


def test_more_came_than_was_announced() -> None:
    """A source that sends more after its completion is counted by its newest number."""
    found = _assess(_position(last_seq=12, produced=10))
    assert (found.produced, found.stored, found.missing) == (12, 12, 0)


def test_ranks_that_have_not_reported_are_named() -> None:
    """If two of four ranks sent nothing, the job is not complete, though all messages are stored."""
    rows = [*_source(3, rank=0, world_size=4), *_source(3, source="2-ffff0000", rank=2, world_size=4)]
    found = _assess(*rows)
    assert (found.state, may_grow(found.document)) == ("unproven", True)
    assert found.line.endswith(" + 0 dropped; not reported: ranks 1, 3 of 4")


def test_ranks_of_an_earlier_attempt_are_named_with_it() -> None:
    """Silent ranks of an earlier attempt are named too: their messages may be in a spool."""
    early = _source(3, rank=0, world_size=2)
    assert _assess(*early, *_source(3, source="0-late", attempt=2), attempt=2).line.endswith(
        "; not reported: rank 1 of 2 in attempt 1"
    )


def test_many_ranges_are_cut() -> None:
    """The sum stays one line with any number of gaps."""
    ranges = tuple((number, number) for number in range(1, 40, 2))
    assert shown_ranges(ranges).endswith("19 and 10 more")
