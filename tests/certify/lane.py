"""A lane: runs scenarios one after the other on servers of its own, each with another failing call."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from typing import Final

from tests.certify.certificate import REACHED, listed_sites
from tests.certify.failpoints import Failure, Mode
from tests.certify.results import Outcome, Result, Results
from tests.certify.scenarios import SCENARIOS
from tests.certify.world import World, world_of

RUNS_OF_A_DRAW: Final = 4
"""Runs of a sample for each scenario that is drawn, after one without a failure, which counts its calls."""


@dataclass(frozen=True)
class Choice:
    """The runs to make: the calls `first` to `last` of these scenarios and roles (None: all), in each mode.

    With a `seed`, they are a random sample of all calls, drawn for `sample_s` seconds. With `only_unreached`, they
    are one for each call site that has not failed in any run. With `sites`, the first call of each of these fails.
    """

    scenarios: tuple[str, ...]
    roles: tuple[str, ...] | None
    modes: tuple[Mode, ...]
    first: int
    last: int
    seed: str | None
    sample_s: float
    only_unreached: bool = False
    sites: tuple[str, ...] = ()


def run_lane(choice: Choice, results: Results, place: tuple[int, int], folder: Path, database_url: str) -> None:
    """Start the servers of a lane, and make every n-th run, or a sample of runs if `choice` has a seed.

    `place` is (number of this lane, number of lanes).
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # stops its servers
    has_bucket = any(SCENARIOS[name].has_bucket for name in choice.scenarios)
    with world_of(folder, database_url, has_bucket=has_bucket) as world:
        lane = Lane(choice, results, place, world)
        if choice.only_unreached or choice.sites:
            lane.run_sites()
        elif choice.seed is None:
            lane.run_all()
        else:
            lane.run_sample(choice.seed)
    sys.exit(lane.is_broken)


class Lane:
    """Makes runs in its world."""

    def __init__(self, choice: Choice, results: Results, place: tuple[int, int], world: World) -> None:
        self._choice = choice
        self._results = results
        self._number, self._lanes = place
        self._world = world
        self.is_broken = False
        """Whether a scenario has failed without a failpoint; none of its calls then fails."""

    def run_all(self) -> None:
        """Let every n-th call of each role fail in each mode, until a run ends without reaching the failpoint."""
        for scenario in self._choice.scenarios:
            for role in sorted(self._numbers(scenario)):
                for mode in self._choice.modes:
                    for number in count(self._choice.first + self._number, self._lanes):
                        if number > self._choice.last or not self._fails(scenario, Failure(role, number, mode)):
                            break

    def run_sample(self, seed: str) -> None:
        """Draw scenarios, and of each `RUNS_OF_A_DRAW` runs, until the time is up."""
        chance = random.Random(f"{seed}/{self._number}")
        sampled = [name for name in self._choice.scenarios if SCENARIOS[name].is_sampled]
        until = time.monotonic() + self._choice.sample_s
        while time.monotonic() < until:
            scenario = chance.choice(sampled)
            calls = self._numbers(scenario)
            for _ in range(RUNS_OF_A_DRAW if calls else 0):
                role = chance.choices(*zip(*sorted(calls.items()), strict=True))[0]
                failure = Failure(role, chance.randint(1, calls[role]), chance.choice(self._choice.modes))
                if time.monotonic() < until:
                    self._fails(scenario, failure)

    def run_sites(self) -> None:
        """Let the first call of each chosen site fail in each mode, or that of each site that no run has reached.

        The latter fail in one mode each.
        """
        reached = {site for site, state in listed_sites().items() if state == REACHED} | self._results.sites()
        modes = cycle(self._choice.modes)
        for scenario in self._choice.scenarios[self._number :: self._lanes]:
            found = dict.fromkeys((role, site) for role, sites in self._calls(scenario) for site in sites)
            for role, site in found:
                if site in self._choice.sites:
                    for mode in self._choice.modes:
                        self._fails(scenario, Failure(role, 1, mode, site))
                elif self._choice.only_unreached and site not in reached:
                    reached.update(self._run_with(scenario, Failure(role, 1, next(modes), site)).sites)

    def _numbers(self, scenario: str) -> Counter[str]:
        """Return the number of calls by role of a run without a failure."""
        return Counter(role for role, _ in self._calls(scenario))

    def _calls(self, scenario: str) -> list[tuple[str, list[str]]]:
        """Return (role, call sites) of all calls of the chosen roles in a run without a failure.

        Returns nothing if this run fails twice.
        """
        outcome = self._run(scenario, None)
        if outcome.problems:  # a machine that is too busy for the timeouts of the scenario
            outcome = self._run(scenario, None)
        if outcome.problems:
            self.is_broken = True
            print(f"FAILED {scenario} without a failpoint", *outcome.problems, sep="\n    ", flush=True)
            self._keep_logs((scenario, "without a failure"))
            return []
        roles = self._choice.roles
        return [call for call in outcome.calls if roles is None or call[0] in roles]

    def _fails(self, scenario: str, failure: Failure) -> bool:
        """Make a run unless it was made before; return whether its call was reached."""
        known = self._results.find(scenario, failure)
        if known is None:
            known = self._run_with(scenario, failure)
        return known.failed_call is not None

    def _run_with(self, scenario: str, failure: Failure) -> Result:
        outcome = self._run(scenario, failure)
        result = Result(
            scenario,
            failure.role,
            failure.mode,
            failure.number,
            outcome.failed_call,
            outcome.problems,
            round(outcome.seconds, 2),
            outcome.sites,
            failure.site,
        )
        self._results.add(result)
        if result.problems:
            print(f"FAILED {result.key}: {result.failed_call}", *result.problems, sep="\n    ", flush=True)
            self._keep_logs(result.key)
        return result

    def _run(self, scenario: str, failure: Failure | None) -> Outcome:
        from tests.certify.runs import ScenarioRun  # noqa: PLC0415 - reads the environment that the world has set

        return ScenarioRun(self._world, SCENARIOS[scenario], failure).run()

    def _keep_logs(self, name: tuple[object, ...]) -> None:
        kept = self._results.path.parent / "logs" / "-".join(map(str, name))
        kept.mkdir(parents=True, exist_ok=True)
        for log in [*self._world.folder.glob("*.log"), *self._world.folder.glob("*.tsv")]:
            (kept / log.name).write_bytes(log.read_bytes())
