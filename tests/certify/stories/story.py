"""The steps of a story: what happens in a run besides its training.

A story is a generator. The run executes each step that it yields: waits for a condition, runs a command, or
restarts the worker.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from tests.certify.trainings import signal_file
from trainwire.__main__ import main
from trainwire.cli.application import build

if TYPE_CHECKING:
    from tests.certify.world import World

ARMED: Final = "armed"
"""The signal after which calls of a run count, if its scenario has `is_armed_by_story`."""
ROWS: Final = {"logs": "training_logs", "metrics": "training_metrics", "checkpoints": "training_checkpoints"}

Condition = Callable[[], bool]


@dataclass(frozen=True)
class Command:
    """A command of an operator, run in a process of its own; it is repeated until it succeeds.

    Its calls are counted under `role`; if that is empty, they are not counted.
    """

    name: str
    run: Callable[[], None]
    role: str
    is_done: Condition = lambda: False
    """Whether a failed command is not repeated, because it has had its effect."""


@dataclass(frozen=True)
class NewWorker:
    """The worker ends after its present orders, and is started again with these environment variables."""

    environment: Mapping[str, str]


@dataclass(frozen=True)
class WorkersCondition:
    """A condition that becomes true even if the trainer was killed, unlike others."""

    is_met: Condition


Step = Condition | WorkersCondition | Command | NewWorker
Story = Callable[["World"], Iterator[Step]]


def trainwire(*arguments: str, is_done: Condition = lambda: False, words: int = 1) -> Command:
    """Return the command `trainwire` with these arguments, of which the first `words` are its name."""
    _import_commands()

    def run() -> None:
        sys.argv = ["trainwire", *arguments]
        main()

    name = "-".join(arguments[:words])
    return Command(name, run, f"operator-{name}", is_done)


def examine() -> Command:
    """Return `trainwire doctor`, which may find something: there is no Celery worker here."""
    return trainwire("doctor", is_done=lambda: True)


@cache
def _import_commands() -> None:
    build([])  # takes two seconds, which each process of a command would need


def arm(world: World) -> None:
    """Count the calls of the run from now on."""
    signal_file(world.folder, ARMED).touch()


def pause(seconds: float) -> Iterator[Step]:
    """Wait before an outage that may begin anywhere in the run."""
    until = time.monotonic() + seconds
    yield lambda: time.monotonic() >= until


def signal(world: World, name: str) -> None:
    """Let a training go on that waits for the signal `name`."""
    signal_file(world.folder, name).touch()


def has(world: World, rows: int, kind: str = "logs") -> Condition:
    """Return the condition that at least `rows` rows of a kind are stored."""
    return lambda: number(world, f"SELECT count(*) FROM {ROWS[kind]} WHERE job_id = {world.job}") >= rows


def has_ended(world: World) -> Condition:
    """Return the condition that the end of the job is stored."""
    query = f"SELECT count(*) FROM training_jobs WHERE id = {world.job} AND completed_at IS NOT NULL"
    return lambda: number(world, query) > 0


def number(world: World, query: str) -> int:
    """Return the number that a query yields; 0 while Postgres is not reachable."""
    try:
        with world.engine.connect() as connection:
            return int(connection.execute(text(query)).scalar_one())
    except OperationalError:  # an outage of the scenario
        return 0
