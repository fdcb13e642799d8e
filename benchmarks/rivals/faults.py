"""The faults: each is applied to a training that runs, and ends by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from benchmarks.rivals.trackers import Tracker

DISK_BYTES: Final = 2 * 1024**3
FILLER: Final = "filler"
FULL_S: Final = 15.0
"""Seconds for which the disk is full."""
AWAY_S: Final = 60.0
"""Seconds for which the server is down."""

Training = subprocess.Popen[bytes]
Fault = Callable[[Tracker, Training], None]


def none(_tracker: Tracker, _training: Training) -> None:
    """Change nothing."""


def killed_trainer(_tracker: Tracker, training: Training) -> None:
    """Kill the process of the training."""
    training.kill()


def killed_server(tracker: Tracker, _training: Training) -> None:
    """Kill all processes of the server, and start it again at once."""
    tracker.kill_server()
    tracker.start_server()


def away_for_a_minute(tracker: Tracker, _training: Training) -> None:
    """Kill all processes of the server, and start it again a minute later."""
    tracker.kill_server()
    time.sleep(AWAY_S)  # the fault itself: nothing can be waited for while the server is away
    tracker.start_server()


def full_disk(tracker: Tracker, _training: Training) -> None:
    """Fill the disk of the training and of the server, and free it after `FULL_S` seconds."""
    path = tracker.folder / FILLER
    with path.open("wb", buffering=0) as filler:
        with suppress(OSError):
            while filler.write(bytes(1024 * 1024)):
                pass
        with suppress(OSError):
            while filler.write(b"\0"):
                pass
    time.sleep(FULL_S)  # the fault itself
    path.unlink()


def clock_back(_tracker: Tracker, training: Training) -> None:
    """Set the clock of the training back by an hour."""
    training.send_signal(signal.SIGUSR1)


FAULTS: Final[dict[str, Fault]] = {
    "none": none,
    "trainer killed": killed_trainer,
    "server killed": killed_server,
    "server away for a minute": away_for_a_minute,
    "disk full for 15 s": full_disk,
    "clock back by an hour": clock_back,
}
OF_SERVERS: Final = ("server killed", "server away for a minute")


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a disk of `DISK_BYTES` bytes in memory at `folder`; raise `PermissionError` without root."""
    if os.geteuid():
        raise PermissionError("a full disk needs root: it is a file system in memory that is filled")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
