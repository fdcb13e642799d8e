"""Trainers that are killed, one after the other, and what each of them surely said."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.processes import ROOT

FIRST_JOB: Final = 1001
LOSS_S: Final = 0.2
"""What a killed trainer said so shortly before its end may be lost."""


class Mortals:
    """One living trainer at a time, each with a job of its own."""

    def __init__(self, folder: Path, redis_url: str, seconds: float) -> None:
        self._folder = folder
        self._redis_url = redis_url
        self._seconds = seconds
        self._living: subprocess.Popen[bytes] | None = None
        self._job = FIRST_JOB - 1
        self.surely_said: dict[int, int] = {}

    def kill_and_follow(self) -> None:
        """Kill the one that lives, and start the next."""
        self.kill()
        self._job += 1
        diary = str(self._folder / f"{self._job}.diary")
        command = [sys.executable, "-m", "tests.chaos.trainer", str(self._job), str(self._seconds)]
        self._living = subprocess.Popen(
            [*command, self._redis_url, diary], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        """SIGKILL the one that lives, and note how many lines it said long enough before."""
        if self._living is None:
            return
        killed_at = time.monotonic()
        self._living.kill()
        self._living.wait(10)
        self._living = None
        diary = self._folder / f"{self._job}.diary"
        notes = diary.read_text().splitlines() if diary.exists() else []
        times = [float(note.split(" ")[1]) for note in notes if note.count(" ") == 1]
        self.surely_said[self._job] = sum(at < killed_at - LOSS_S for at in times)
