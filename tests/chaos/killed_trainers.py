"""Trainers that are killed and started again, and the lines that each certainly logged before its end."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.processes import ROOT

FIRST_JOB: Final = 1001
LIVES: Final = 3
"""How often a job is started before the next one begins."""
LOSS_S: Final = 1.0
"""A killed trainer may lose the lines of so long before its end: 200 ms where it gets its share of a processor,
which among all these processes it may not; tests/system/test_spool.py measures it alone.
"""


class KilledTrainers:
    """One running trainer at a time, of a job that is killed and started again."""

    def __init__(self, folder: Path, redis_url: str, seconds: float) -> None:
        self._folder = folder
        self._redis_url = redis_url
        self._seconds = seconds
        self._living: subprocess.Popen[bytes] | None = None
        self._job, self._life = FIRST_JOB, 0
        self.certain_lines: dict[tuple[int, int], int] = {}
        """By job and life."""

    def kill_and_start_next(self) -> None:
        """Kill the running trainer, and start its job again, or the next job."""
        self.kill()
        self.start_next()

    def start_next(self) -> None:
        """Start the next life of the job, or the next job."""
        self._job, self._life = (self._job, self._life + 1) if self._life < LIVES else (self._job + 1, 1)
        arguments = [str(self._job), str(self._seconds), self._redis_url, str(self._life), str(self._diary)]
        self._living = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.trainer", *arguments],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> int:
        """SIGKILL the running trainer, count the lines that it logged long enough before, and return its pid."""
        assert self._living is not None
        pid, killed_at = self._living.pid, time.monotonic()
        self._living.kill()
        self._living.wait(10)
        self._living = None
        notes = self._diary.read_text().splitlines() if self._diary.exists() else []
        times = [float(note.split(" ")[1]) for note in notes if note.count(" ") == 1]
        self.certain_lines[self._job, self._life] = sum(at < killed_at - LOSS_S for at in times)
        return pid

    @property
    def _diary(self) -> Path:
        return self._folder / f"{self._job}-{self._life}.diary"
