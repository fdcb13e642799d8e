"""Trainers that are killed and started again, and what each of them surely said."""

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
"""What a killed trainer said so shortly before its end may be lost: 200 ms where it gets its share of a processor,
which among all these processes it may not; tests/system/test_spool.py measures it alone.
"""


class Mortals:
    """One living trainer at a time, of a job that is killed and started again."""

    def __init__(self, folder: Path, redis_url: str, seconds: float) -> None:
        self._folder = folder
        self._redis_url = redis_url
        self._seconds = seconds
        self._living: subprocess.Popen[bytes] | None = None
        self._job, self._life = FIRST_JOB, 0
        self.surely_said: dict[tuple[int, int], int] = {}
        """By job and life."""

    def kill_and_follow(self) -> None:
        """Kill the one that lives, and start it again, or the next."""
        self.kill()
        self._job, self._life = (self._job, self._life + 1) if self._life < LIVES else (self._job + 1, 1)
        arguments = [str(self._job), str(self._seconds), self._redis_url, str(self._life), str(self._diary)]
        self._living = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.trainer", *arguments],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """SIGKILL the one that lives, and note how many lines it said long enough before."""
        if self._living is None:
            return
        killed_at = time.monotonic()
        self._living.kill()
        self._living.wait(10)
        self._living = None
        notes = self._diary.read_text().splitlines() if self._diary.exists() else []
        times = [float(note.split(" ")[1]) for note in notes if note.count(" ") == 1]
        self.surely_said[self._job, self._life] = sum(at < killed_at - LOSS_S for at in times)

    @property
    def _diary(self) -> Path:
        return self._folder / f"{self._job}-{self._life}.diary"
