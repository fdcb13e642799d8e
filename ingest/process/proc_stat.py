"""Reads about a process by its id: whether it exists, and `/proc/PID/stat`, which Linux has (proc(5))."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

PARENT: Final = 1
"""Index of the parent's process id in the fields that `proc_stat` returns."""
START_TIME: Final = 19
"""Index of the start time, in clock ticks since the boot."""


def is_alive(pid: int) -> bool:
    """Return whether a process of any user has this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def proc_stat(pid: int, proc: Path = Path("/proc")) -> list[bytes]:
    """Return the fields of process `pid` after its name, from the state on; an empty list if they are unknown."""
    try:
        with open(proc / str(pid) / "stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()  # the name may contain spaces and parentheses
    except OSError:
        return []
    return fields if len(fields) > START_TIME else []


def start_time_s(pid: int) -> float | None:
    """Return the start time of process `pid` in seconds since 1970; None if it has ended or this is unknown."""
    fields = proc_stat(pid)
    if not fields or fields[0] in (b"Z", b"X"):
        return None
    try:
        with open("/proc/uptime", "rb") as file:
            uptime_s = float(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return time.time() - uptime_s + int(fields[START_TIME]) / os.sysconf("SC_CLK_TCK")
