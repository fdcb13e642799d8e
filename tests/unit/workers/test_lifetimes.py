"""Lifetimes of sources: which are too early for an attempt."""

from __future__ import annotations

import pytest

from tests.factories import NOW_NS, SECOND_NS, completion
from trainwire.schemas.times import to_datetime
from trainwire.workers.drain.lifetimes import Lifetime


@pytest.mark.parametrize(
    ("rank", "world_size", "ended_before_s", "is_before"),
    [
        (None, None, 5, True),
        (0, 1, 5, True),
        (1, 2, 5, False),
        (1, None, 5, False),
        (0, 2, 5, False),
        (1, 2, 31, True),
        (0, 1, 3600, False),
    ],
)
def test_ranks_may_run_one_after_the_other(
    rank: int | None, world_size: int | None, ended_before_s: int, is_before: bool
) -> None:
    """A process that ended before the attempt began is of an earlier one; a rank only if that is over 30 s ago.

    If it ended before its own beginning, its clock was set back, and its end shows nothing.
    """
    body = completion(
        ts=NOW_NS - ended_before_s * SECOND_NS,
        started_at=NOW_NS - 60 * SECOND_NS,
        rank=rank,
        world_size=world_size,
    )
    lifetime = Lifetime.of(body)
    assert lifetime is not None
    assert lifetime.is_before(to_datetime(NOW_NS)) is is_before
