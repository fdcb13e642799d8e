"""An interrupted certification goes on where it ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.certify.failpoints import Failure
from tests.certify.lane import Choice, Lane
from tests.certify.results import Outcome, Results

CALL = "redis ingest/sending/transports/redis_connection.py:RedisConnection.exchange"
CHOICE = Choice(("finished",), None, ("refused", "hanging"), 1, 10_000, None, 0.0)


class Recorded(Lane):
    """A lane whose runs end at once: the trainer makes two calls, and the runs in `broken` find a problem."""

    def __init__(self, results: Results, choice: Choice = CHOICE) -> None:
        unused: Any = None
        super().__init__(choice, results, (0, 1), unused)
        self.made: list[tuple[str, int]] = []
        self.sites: list[str] = []
        self.broken: set[tuple[str, int]] = set()

    def _run(self, _scenario: str, failure: Failure | None) -> Outcome:
        calls = [("trainer", ["a.py:f"]), ("trainer", ["b.py:g"])]
        if failure is None or failure.number > len(calls):
            return Outcome(calls=calls)
        self.made.append((failure.mode, failure.number))
        self.sites.append(failure.site)
        problems = ["lines: lost"] if self.made[-1] in self.broken else []
        return Outcome(CALL, problems, calls=calls, sites=[failure.site] if failure.site else [])

    def _keep_logs(self, _name: tuple[object, ...]) -> None:
        return


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Return the results of a certification that begins."""
    return Results(tmp_path / "results.jsonl")


def test_a_second_certification_repeats_failed_runs_only(results: Results) -> None:
    """Runs that have passed are not made again; one that has failed is, and then counts as passed."""
    first = Recorded(results)
    first.broken = {("hanging", 1)}
    first.run_all()
    assert first.made == [("refused", 1), ("refused", 2), ("hanging", 1), ("hanging", 2)]
    results.reload()
    assert results.has_failures
    second = Recorded(results)
    second.run_all()
    assert second.made == [("hanging", 1)]
    results.reload()
    assert not results.has_failures


def test_functions_that_have_failed_are_not_failed_again(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--unreached`, one call of each function fails in the first certification, and none in the second."""
    monkeypatch.setattr("tests.certify.lane.listed_sites", lambda: {"a.py:f": "reached", "b.py:g": "not yet"})
    choice = replace(CHOICE, only_unreached=True)
    first = Recorded(results, choice)
    first.run_sites()
    assert (first.made, first.sites) == ([("refused", 1)], ["b.py:g"])
    results.reload()
    second = Recorded(results, choice)
    second.run_sites()
    assert not second.made


def test_chosen_functions_fail_in_each_mode(results: Results) -> None:
    """With `--sites`, the first call of each of these functions fails in each mode."""
    lane = Recorded(results, replace(CHOICE, sites=("a.py:f",)))
    lane.run_sites()
    assert lane.made == [("refused", 1), ("hanging", 1)]
    assert set(lane.sites) == {"a.py:f"}


def test_a_sample_is_that_of_its_seed(tmp_path: Path) -> None:
    """The same seed draws the same runs, and a sample ends at its time."""
    drawn = []
    for number in range(2):
        choice = replace(CHOICE, seed="commit", sample_s=0.05)
        lane = Recorded(Results(tmp_path / f"{number}.jsonl"), choice)
        lane.run_sample("commit")
        drawn.append(lane.made)
    both = min(map(len, drawn))
    assert both
    assert drawn[0][:both] == drawn[1][:both]
