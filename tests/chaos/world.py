"""The servers and processes of a chaos run, and the actions that are due between two faults."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import redis

from tests.chaos.killed_trainers import KilledTrainers
from tests.chaos.spool_damage import SpoolDamage
from tests.integration.gateway.feed_clients import GatewayProcess
from tests.processes import Process
from trainwire.stack.postgres import EmbeddedPostgres
from trainwire.stack.valkey import EmbeddedValkey


@dataclass
class World:
    """The servers and processes that faults can hit, and the random numbers that choose."""

    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey
    workers: Sequence[Process]
    beat: Process
    gateway: GatewayProcess
    trainers: Sequence[subprocess.Popen[str]]
    killed_trainers: KilledTrainers
    damage: SpoolDamage
    chance: random.Random
    _pending: list[tuple[float, Callable[[], object]]] = field(default_factory=list)

    @property
    def celery(self) -> list[Process]:
        """Return the workers and beat."""
        return [*self.workers, self.beat]

    @property
    def worker(self) -> Process:
        """Return one of the workers, chosen at random."""
        return self.chance.choice(self.workers)

    @property
    def trainer(self) -> subprocess.Popen[str]:
        """Return one of the living trainers, chosen at random."""
        return self.chance.choice(self.trainers)

    @property
    def redis(self) -> redis.Redis:
        """Return a new client of Redis with all rights."""
        return redis.Redis.from_url(self.valkey.url)

    def pause(self, least_s: float, most_s: float) -> None:
        """Wait for a random time."""
        time.sleep(self.chance.uniform(least_s, most_s))

    def later(self, delay_s: float, action: Callable[[], object]) -> None:
        """Run `action` after `delay_s`, between two faults, or when the run ends."""
        self._pending.append((time.monotonic() + delay_s, action))

    def recover(self, *, everything: bool = False) -> None:
        """Run the actions that are due, or all of them; start our processes that have ended."""
        now = time.monotonic()
        due = [one for one in self._pending if everything or one[0] <= now]
        self._pending = [one for one in self._pending if one not in due]
        for _, action in due:
            action()
        for process in self.celery:
            if process.process.poll() is not None:
                process.start()
        if not self.gateway.is_running():
            self.gateway.launch()
