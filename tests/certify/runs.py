"""One run of a scenario: its processes with one failing call, until all that it reported is stored."""

from __future__ import annotations

import time
from typing import Final

from tests.certify import steps
from tests.certify.audit import problems
from tests.certify.call_sites import sites_of
from tests.certify.failpoints import Failure
from tests.certify.results import Outcome
from tests.certify.scenarios import Expected, Scenario
from tests.certify.stories.story import ARMED, Command, Condition, NewWorker, Story, WorkersCondition
from tests.certify.trainings import signal_file
from tests.certify.world import BUCKET, World
from trainwire.ingest.spool.folder import source_folders
from trainwire.workers.__main__ import EXIT_NOT_READY

DEADLINE_S: Final = 150.0
"""Seconds until a run must be complete. It takes two; at a load of 30, single ones took more than 60."""
TRAINER_S: Final = 120.0
"""Seconds within which a trainer must have ended: its deadline for `finish`, and a reserve for a busy machine."""
RESTARTED: Final = (-9, EXIT_NOT_READY)
"""Exit codes after which a supervisor starts a server again."""
STOP_S: Final = 30.0
"""Seconds within which a worker must end its present order, on a busy machine."""
TRAINERS: Final = ("trainer", "launcher", "training")
"""The roles of a training; values that one of them had not written when it was killed are lost."""


class ScenarioRun:
    """The processes of one run; the constructor empties the servers and starts the processes."""

    def __init__(self, world: World, scenario: Scenario, failure: Failure | None) -> None:
        self._world = world
        self._scenario = scenario
        self._failure = failure
        self._recovery: steps.Child | None = None
        self._recoveries = 0
        world.reset()
        world.is_watched, world.has_launcher = scenario.has_gateway, scenario.has_launcher
        world.failing_role = None if failure is None else failure.role
        world.has_receipts = bool(scenario.trains) and not scenario.has_launcher
        self._armed_by = signal_file(world.folder, ARMED) if scenario.is_armed_by_story else None
        self._environment = dict(scenario.environment(world))
        self._servers: dict[str, steps.Child] = {}
        self._serve(failure)
        url = f"http://127.0.0.1:{world.gateway_port}" if scenario.has_gateway else None
        bucket = BUCKET if scenario.has_bucket else None
        settings = steps.trainer_settings(world.redis_url, world.folder, bucket, job_id=world.job, url=url)
        self._trainers = [
            self._child(
                f"trainer{rank}",
                steps.trainer(world.folder, rank, settings, train, is_launcher=scenario.has_launcher),
                None if rank else failure,
            )
            for rank, train in enumerate(scenario.trains)
        ]
        self._settings = settings

    def run(self) -> Outcome:
        """Wait until the audit finds nothing wrong, then end all processes, and return the outcome.

        The wait ends after `DEADLINE_S` seconds; a scenario with `afterwards` has a second one.
        """
        began = time.monotonic()
        try:
            found = self._follow(self._scenario.meanwhile) or self._await(self._scenario.expected, began)
            if not found and self._scenario.at_end is not None:
                found = self._follow(self._scenario.afterwards)
                found = found or self._await(self._scenario.at_end, time.monotonic())
            found = found or self._stop()
        finally:
            for child in [*self._trainers, *self._servers.values(), *filter(None, [self._recovery])]:
                child.kill()
        return self._outcome(found, time.monotonic() - began)

    def _follow(self, story: Story | None) -> list[str]:
        """Let a story happen to its end, and return the problems.

        Of a killed trainer no condition is awaited any more.
        """
        for step in () if story is None else story(self._world):
            match step:
                case Command():
                    found = self._execute(step)
                case NewWorker():
                    found = self._stop_worker()
                    (self._world.folder / "stop").unlink()
                    self._environment |= step.environment
                    del self._servers["worker"]
                    self._serve(self._remaining_failure)
                case WorkersCondition():
                    found = self._await_condition(step.is_met, of_trainer=False)
                case _:
                    found = self._await_condition(step, of_trainer=True)
            if found:
                return found
        return []

    def _await_condition(self, condition: Condition, *, of_trainer: bool) -> list[str]:
        deadline = time.monotonic() + DEADLINE_S
        while not condition() and not (
            of_trainer and self._was_trainer_killed and all(each.poll() for each in self._trainers)
        ):
            if found := self._revive(time.monotonic()):
                return found
            if time.monotonic() > deadline:
                return ["the story does not go on"]
            time.sleep(0.05)
        return []

    def _execute(self, command: Command) -> list[str]:
        """Execute a command until it succeeds, and return its problems: a traceback, or that it never succeeds."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            child = self._child(command.name, steps.command(command, self._environment), self._remaining_failure)
            while not child.poll():
                if found := self._revive(time.monotonic()):
                    child.kill()
                    return found
                if time.monotonic() > deadline:
                    child.kill()
                    return [f"{command.name} does not end: {child.output[-2000:]}"]
                time.sleep(0.02)
            if "Traceback" in child.output:
                return [f"{command.name} fails with a traceback: {child.output[-3000:]}"]
            if child.code == 0 or command.is_done():
                return []
        return [f"{command.name} never succeeds: {child.output[-2000:]}"]

    @property
    def _remaining_failure(self) -> Failure | None:
        return None if self._world.failed_call else self._failure

    def _await(self, expected: Expected, began: float) -> list[str]:
        while True:
            found = self._revive(began)
            if not found and all(child.poll() for child in self._trainers):
                found = self._audit(expected)
                if not found:
                    return []
            if time.monotonic() - began > DEADLINE_S:
                return found or ["the trainer has not ended"]
            time.sleep(0.25)

    def _audit(self, expected: Expected) -> list[str]:
        self._expected = expected
        return problems(self._world, expected, was_killed=self._was_trainer_killed)

    @property
    def _was_trainer_killed(self) -> bool:
        failure = self._failure
        is_kill = failure is not None and failure.mode.startswith("killed") and failure.role in TRAINERS
        return is_kill and bool(self._world.failed_call)

    def _stop(self) -> list[str]:
        """End the worker after its present orders, and audit again: the stored rows must not have changed.

        Return the problems.
        """
        return self._stop_worker() or [f"at the end: {text}" for text in self._audit(self._expected)]

    def _stop_worker(self) -> list[str]:
        if (beat := self._servers.pop("beat", None)) is not None:
            beat.kill()  # it would send orders for ever
        (self._world.folder / "stop").touch()
        deadline = time.monotonic() + STOP_S
        while not self._servers["worker"].poll():
            if time.monotonic() > deadline:
                return ["the worker does not end"]
            time.sleep(0.01)
        return []

    def _revive(self, began: float) -> list[str]:
        """Start killed processes again, and recover a spool that a trainer has left.

        Return the problem, in a list, if a process has ended with another exit code or a trainer does not end.
        """
        for name, server in list(self._servers.items()):
            if server.poll():
                if server.code not in RESTARTED:
                    return [f"{name} ended with {server.code}: {server.output[-2000:]}"]
                del self._servers[name]
                self._serve(None)
        for trainer in self._trainers:
            if (
                trainer.poll()
                and trainer.code not in (self._scenario.exit_code, -9)
                and not self._was_trainer_killed
            ):
                return [f"{trainer.name} ended with {trainer.code}: {trainer.output[-2000:]}"]
            if not trainer.poll() and time.monotonic() - began > TRAINER_S:
                return [f"{trainer.name} does not end"]
        spool = self._world.folder / "spool"
        if all(trainer.poll() for trainer in self._trainers) and (self._recovery is None or self._recovery.poll()):
            if self._recovery is not None and self._recovery.code not in (0, -9):
                return [f"the recovery ended with {self._recovery.code}: {self._recovery.output[-2000:]}"]
            if any(source_folders(spool)):
                failure = self._failure if not self._recoveries else None
                self._recovery = self._child("recovery", steps.recovery(self._settings), failure)
                self._recoveries += 1
        return []

    def _serve(self, failure: Failure | None) -> None:
        """Start the processes that are not running and must: a worker, and a gateway with its client."""
        world = self._world
        ticks = {} if self._scenario.has_beat else steps.TICKS
        servers = {"worker": steps.worker(world.folder, self._environment, ticks)}
        if self._scenario.has_beat:
            servers["beat"] = steps.beat(world.folder)
        if self._scenario.has_gateway:
            servers |= {"gateway": steps.gateway(world.gateway_port), "watcher": steps.watcher(world)}
        for name, run in servers.items():
            if name not in self._servers:
                self._servers[name] = self._child(name, run, failure)

    def _child(self, name: str, run: steps.Run, failure: Failure | None) -> steps.Child:
        return steps.Child(self._world.folder, name, failure, run, self._armed_by)

    def _outcome(self, found: list[str], seconds: float) -> Outcome:
        outcome = Outcome(problems=found, seconds=seconds)
        for line in (self._world.folder / "calls.tsv").read_text().splitlines():
            state, role, call, callers = line.split("\t")
            sites = sites_of(callers.split())
            outcome.calls.append((role, sites))
            if state == "FAILED":
                outcome.failed_call, outcome.sites = call, sites
        return outcome
