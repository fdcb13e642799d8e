"""The results of runs, one line of JSON each, so that an interrupted certification goes on where it ended."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import msgspec

if TYPE_CHECKING:
    from tests.certify.failpoints import Failure


Key: TypeAlias = tuple[str, str, str, int, str]


class Result(msgspec.Struct, frozen=True):
    """One run: the call that failed (None if the run did not reach it), its mode, and the audit's findings.

    `sites` are the call sites whose call has failed (`call_sites.sites_of`).
    """

    scenario: str
    role: str
    mode: str
    number: int
    failed_call: str | None
    problems: list[str]
    seconds: float
    sites: list[str] = []
    site: str = ""
    """The call site whose calls were counted; empty for all of the role."""

    @property
    def key(self) -> Key:
        """The values that identify the run: scenario, role, mode, number of the call, and its site."""
        return self.scenario, self.role, self.mode, self.number, self.site


@dataclass
class Outcome:
    """The result of a run: the call that failed (None if the run ended before it), and the problems found."""

    failed_call: str | None = None
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    calls: list[tuple[str, list[str]]] = field(default_factory=list)
    """(role, call sites) of all calls with a failpoint, in the order in which they were made."""
    sites: list[str] = field(default_factory=list)
    """The call sites whose call has failed."""


class Row(NamedTuple):
    """The sum of the runs of one scenario; `calls` are the different calls that have failed."""

    scenario: str
    calls: int
    runs: int
    failures: int


class Results:
    """A file of results, to which several processes append."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[Key, Result] = {}
        self.reload()

    def reload(self) -> None:
        """Read the file; of several results of the same run, the last one counts."""
        if self.path.exists():
            decode = msgspec.json.Decoder(Result).decode
            self._known = {result.key: result for result in map(decode, self.path.read_bytes().splitlines())}

    def find(self, scenario: str, failure: Failure) -> Result | None:
        """Return the result of an earlier run; None if there is none, or it failed and has to be repeated."""
        result = self._known.get((scenario, failure.role, failure.mode, failure.number, failure.site))
        return None if result is None or result.problems else result

    def add(self, result: Result) -> None:
        """Append a result to the file; `reload` makes it known to this object."""
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, msgspec.json.encode(result) + b"\n")
        finally:
            os.close(file)

    @property
    def has_failures(self) -> bool:
        """Return whether a run has failed, and no later one of the same call has passed."""
        return any(result.problems for result in self._known.values())

    def summary(self) -> str:
        """Return the numbers of runs and failures as a sentence."""
        runs = [result for result in self._known.values() if result.failed_call is not None]
        failures = sum(bool(result.problems) for result in self._known.values())
        return f"{len(runs)} runs with a failed call, {len(self.calls())} calls, {failures} runs failed"

    def calls(self) -> set[str]:
        """Return all calls that have failed in a run."""
        return {result.failed_call for result in self._known.values() if result.failed_call is not None}

    def sites(self) -> set[str]:
        """Return the call sites whose calls have failed in a run."""
        return {site for result in self._known.values() for site in result.sites}

    def table(self) -> Iterator[Row]:
        """Yield the sum of each scenario with a failed call."""
        runs: Counter[str] = Counter()
        failures: Counter[str] = Counter()
        calls: dict[str, set[tuple[str, str]]] = {}
        for result in self._known.values():
            if result.failed_call is not None:
                runs[result.scenario] += 1
                failures[result.scenario] += bool(result.problems)
                calls.setdefault(result.scenario, set()).add((result.role, result.failed_call))
        for scenario in sorted(runs):
            yield Row(scenario, len(calls[scenario]), runs[scenario], failures[scenario])
