"""What may happen: processes that end or hang, stores that forget, disks that are full, clocks that go back."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import redis

from tests.chaos.mortals import Mortals
from tests.processes import Process
from trainwire.postgres import EmbeddedPostgres
from trainwire.valkey import EmbeddedValkey

FULL_BYTES = 300_000
"""A disk is full when files have reached up to so much: one write is torn, none after it is taken."""


@dataclass(frozen=True)
class World:
    """Everything that blows can hit, and the chance that chooses."""

    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey
    workers: Sequence[Process]
    trainers: Sequence[subprocess.Popen[str]]
    mortals: Mortals
    chance: random.Random

    def blows(self) -> list[tuple[str, Callable[[], object]]]:
        """Return what may happen next."""
        chance, valkey, postgres = self.chance, self.valkey, self.postgres
        worker, trainer = chance.choice(self.workers), chance.choice(self.trainers)
        return [
            ("worker killed", worker.kill),
            ("pool process killed", lambda: self._kill_a_child(worker)),
            ("Redis killed", lambda: self._restart(valkey, valkey.kill)),
            ("Redis restarted", lambda: self._restart(valkey, valkey.stop)),
            ("Redis paused", lambda: self._pause(valkey)),
            ("Redis flushed", lambda: redis.Redis.from_url(valkey.url).flushall()),
            ("Postgres killed", lambda: self._restart(postgres, postgres.kill)),
            ("Postgres restarted", lambda: self._restart(postgres, postgres.stop)),
            ("trainer killed", self.mortals.kill_and_follow),
            ("clock set back", lambda: trainer.send_signal(signal.SIGUSR1)),
            ("clock set right", lambda: trainer.send_signal(signal.SIGUSR2)),
            ("disk full", lambda: self._fill_disk(trainer)),
            ("disk full, and Redis killed", lambda: self._fill_disk_and_kill_redis(trainer)),
        ]

    def revive(self) -> None:
        """Start again what has ended, as `trainwire up` does."""
        for worker in self.workers:
            if worker.process.poll() is not None:
                worker.start()

    def _restart(self, server: EmbeddedPostgres | EmbeddedValkey, end: Callable[[], None]) -> None:
        end()
        time.sleep(self.chance.uniform(0, 1.5))
        server.start()

    def _pause(self, server: EmbeddedValkey) -> None:
        """Stop the server's process for a while: connections stay, nobody answers."""
        assert server.child.pid is not None
        process = psutil.Process(server.child.pid)
        process.suspend()
        time.sleep(self.chance.uniform(0.5, 3))
        process.resume()

    def _kill_a_child(self, worker: Process) -> None:
        """SIGKILL one pool process of a worker."""
        children = psutil.Process(worker.process.pid).children()
        if children:
            os.kill(self.chance.choice(children).pid, signal.SIGKILL)

    def _fill_disk(self, trainer: subprocess.Popen[str]) -> None:
        with full_disk(trainer.pid, self.chance.randrange(FULL_BYTES)):
            time.sleep(self.chance.uniform(0.5, 3))

    def _fill_disk_and_kill_redis(self, trainer: subprocess.Popen[str]) -> None:
        with full_disk(trainer.pid, self.chance.randrange(FULL_BYTES)):
            time.sleep(self.chance.uniform(0, 0.5))
            self._restart(self.valkey, self.valkey.kill)


@contextmanager
def full_disk(pid: int, limit_bytes: int) -> Iterator[None]:
    """Let no file of a process grow beyond `limit_bytes`: write() fails there as on a full disk (setrlimit(2))."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
