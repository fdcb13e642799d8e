"""The ranks that have not reported, from the statements of their sources."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from trainwire.schemas.wire.messages import MAX_WORLD_SIZE
from trainwire.stores.postgres.source_positions import AbsentRanks, SourcePosition, absent_ranks


def _rank(rank: int | None, world_size: int | None = None, *, began_s: int = 0, **more: object) -> SourcePosition:
    """The row of one source that is this rank of so many."""
    fields = {"source": f"{rank}-{world_size}-{began_s}", "attempt": 1, **more}
    began_at = datetime.fromtimestamp(began_s, UTC)
    return SourcePosition(kind="logs", last_seq=1, rank=rank, world_size=world_size, began_at=began_at, **fields)  # type: ignore[arg-type]


def _ranges(*rows: SourcePosition) -> tuple[tuple[int, int], ...]:
    found = absent_ranks(rows)
    return found[0].ranges if found else ()


def test_without_a_statement_no_rank_is_expected() -> None:
    """HTTP callbacks and bare clients state no number of ranks, so none is missing."""
    assert absent_ranks([_rank(None), _rank(3)]) == ()


def test_a_single_process_is_its_only_rank() -> None:
    """A source without a rank that states one is rank 0."""
    assert absent_ranks([_rank(0, 1)]) == absent_ranks([_rank(None, 1)]) == ()


def test_all_ranks_but_some() -> None:
    """Missing ranks are listed as ranges."""
    assert _ranges(_rank(1, 8), _rank(5, 8)) == ((0, 0), (2, 4), (6, 7))


def test_a_rank_counts_that_states_no_size() -> None:
    """A rank counts as reported also if its client states no number of ranks."""
    assert _ranges(_rank(0, 2), _rank(1)) == ()


def test_a_rank_that_another_process_took_over_has_reported() -> None:
    """A rank whose process was killed and started again has reported."""
    assert _ranges(_rank(0, 2), _rank(1, 2), _rank(1, 2, began_s=60)) == ()


@pytest.mark.parametrize(("before", "after", "absent"), [(4, 2, ((1, 1),)), (2, 4, ((1, 3),))])
def test_the_newest_statement_of_an_attempt_counts(
    before: int, after: int, absent: tuple[tuple[int, int], ...]
) -> None:
    """If an elastic job changes its size, only the ranks of the newest size count."""
    world_before = [_rank(rank, before) for rank in range(before)]
    assert _ranges(_rank(0, after, began_s=60), *world_before) == absent


def test_each_attempt_has_a_world_of_its_own() -> None:
    """Missing ranks are listed for each attempt, with the number of ranks of that attempt."""
    rows = [_rank(0, 2), _rank(0, 3, attempt=2)]
    assert absent_ranks(rows) == (AbsentRanks(1, 2, ((1, 1),)), AbsentRanks(2, 3, ((1, 2),)))


def test_launchers_count_machines_where_trainers_count_processes() -> None:
    """If launchers state fewer ranks than trainers, the trainers' number counts."""
    launchers = [_rank(node, 2, began_s=90, is_launcher=True) for node in range(2)]
    assert _ranges(*launchers, *(_rank(rank, 8) for rank in range(4))) == ((4, 7),)


def test_launchers_alone_are_the_ranks() -> None:
    """If the commands do not use the SDK, the launchers are the ranks."""
    assert _ranges(_rank(0, 3, is_launcher=True)) == ((1, 2),)


def test_a_launcher_stands_for_its_rank() -> None:
    """With one process a machine a launcher counts as its rank, also if its command does not use the SDK."""
    assert _ranges(_rank(0, 2), *(_rank(node, 2, source=f"l{node}", is_launcher=True) for node in range(2))) == ()


def test_ranks_outside_of_the_world_are_ignored() -> None:
    """A negative rank, or one that is too large, does not count as another rank."""
    assert _ranges(_rank(0, 2), _rank(-1), _rank(2**31 - 1)) == ((1, 1),)


def test_the_largest_world_costs_nothing() -> None:
    """Ranges are computed without listing each rank."""
    rows = [_rank(0, MAX_WORLD_SIZE), *(_rank(rank, MAX_WORLD_SIZE) for rank in range(1, 10_000, 7))]
    assert _ranges(*rows)[-1] == (9_998, MAX_WORLD_SIZE - 1)


@pytest.mark.parametrize(
    ("ranges", "size", "shown"),
    [
        (((1, 1),), 2, "rank 1 of 2"),
        (((1, 9_998),), 10_000, "ranks 1-9,998 of 10,000"),
        (((0, 0), (2, 3)), 4, "ranks 0, 2-3 of 4"),
        (
            tuple((rank, rank) for rank in range(1, 40, 2)),
            40,
            "ranks 1, 3, 5, 7, 9, 11, 13, 15, 17, 19 and 10 more of 40",
        ),
    ],
)
def test_ranks_are_shown_shortened(ranges: tuple[tuple[int, int], ...], size: int, shown: str) -> None:
    """At most ten ranges are shown, with the attempt if it is not the newest."""
    absent = AbsentRanks(2, size, ranges)
    assert absent.shown(2) == shown
    assert absent.shown(3) == f"{shown} in attempt 2"
