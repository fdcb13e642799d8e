"""Trainers that ran at the same time as the same rank of one attempt."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from trainwire.stores.postgres.source_positions import SharedRank, SourcePosition, shared_ranks

NOW = datetime.fromtimestamp(10_000, UTC)


def _trainer(source: str, began_s: float | None, ended_s: float | None = None, **more: object) -> SourcePosition:
    """Return the row of a trainer that ran from `began_s` to `ended_s`; None: it has not ended."""
    fields = {"attempt": 1, "rank": None, **more}
    began, ended = (None if each is None else datetime.fromtimestamp(each, UTC) for each in (began_s, ended_s))
    return SourcePosition(source, "completions", last_seq=1, began_at=began, ended_at=ended, **fields)  # type: ignore[arg-type]


def _names(*rows: SourcePosition) -> list[tuple[str, ...]]:
    return [rank.sources for rank in shared_ranks(rows, NOW)]


def test_trainers_of_one_rank_at_the_same_time_are_named() -> None:
    """Two trainers without a rank of one attempt, of which one began while the other was running."""
    found = shared_ranks([_trainer("0-a", 100, 200), _trainer("0-b", 150, 160), _trainer("0-c", 300, 400)], NOW)
    assert found == (SharedRank(1, 0, ("0-a", "0-b")),)
    assert found[0].shown(1) == "2 as rank 0 (0-a, 0-b)"
    assert found[0].shown(2) == "2 as rank 0 in attempt 1 (0-a, 0-b)"


def test_a_trainer_beside_several_later_ones_is_named_with_all() -> None:
    """A third trainer that began after the second had ended ran beside the first, too."""
    assert _names(_trainer("0-a", 100, 1000), _trainer("0-b", 150, 160), _trainer("0-c", 300, 400)) == [
        ("0-a", "0-b", "0-c")
    ]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(_trainer("0-b", 201, 300), id="one after the other"),
        pytest.param(_trainer("1-b", 150, 160, rank=1), id="another rank"),
        pytest.param(_trainer("0-b", 150, 160, attempt=2), id="another attempt"),
        pytest.param(_trainer("0-b", 50, 300, is_launcher=True), id="its launcher"),
        pytest.param(_trainer("0-b", 100, 300), id="a process of the same run"),
        pytest.param(_trainer("0-b", None, 300), id="a forked child"),
        pytest.param(_trainer("0-b", 50), id="a killed one"),
    ],
)
def test_other_processes_are_not_named(other: SourcePosition) -> None:
    """Processes that ran one after the other, or that belong together, are no two trainers of one rank."""
    assert _names(_trainer("0-a", 100, 200), other) == []


def test_live_trainers_are_named_before_they_end() -> None:
    """Without a completion, a trainer counts while its messages arrive, and no longer if its end was inferred."""
    recent: dict[str, Any] = {"updated_at": datetime.fromtimestamp(9_990, UTC)}
    first, second = _trainer("0-a", 9_000, **recent), _trainer("0-b", 9_900)
    assert _names(first, second) == [("0-a", "0-b")]
    assert _names(_trainer("0-a", 9_000, **recent, produced=3), second) == []
