"""The outcome of a training: the times of its calls, and the steps that its tracker has stored in the end."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.rivals.trackers import Stored, Tracker

SETTLE_S: Final = 90.0
"""A tracker may take this time after the end of a training to store the rest and to change its state."""


@dataclass(frozen=True)
class Calls:
    """Seconds of the call of each step, of the last call (None if it did not return), and of CPU time of all."""

    steps: list[float]
    finish_s: float | None
    cpu_s: float | None


def reported_steps(truth: Path) -> int:
    """Return the number of steps that a running training has reported (see `training.py`)."""
    return len(_lines(truth))


def read_calls(truth: Path) -> Calls:
    """Return the times that a training has written into the file `truth`."""
    times = {name: float(seconds) for name, seconds in map(str.split, _lines(truth))}
    finish_s, cpu_s = times.pop("finish", None), times.pop("cpu", None)
    return Calls([*times.values()], finish_s, cpu_s)


def settled(tracker: Tracker, reported: int) -> Stored | str:
    """Return the steps and the state that the tracker has stored, or the reason why they cannot be read.

    Reads again until all steps are stored and the run is not shown as running, for about `SETTLE_S` seconds.
    """
    deadline = time.monotonic() + SETTLE_S
    while True:
        try:
            stored: Stored | str = tracker.stored()
        except RuntimeError as exc:
            stored = str(exc)
        is_final = isinstance(stored, Stored) and stored.is_final(reported)
        if is_final or time.monotonic() > deadline:
            return stored
        time.sleep(2)  # each reading starts a process, which takes a second of CPU time from the tracker


def _lines(path: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return path.read_text().rpartition("\n")[0].splitlines()
    return []
