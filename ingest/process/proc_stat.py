"""Reads `/proc/PID/stat`, which Linux has for each process (proc(5))."""

from __future__ import annotations

from typing import Final

PARENT: Final = 1
"""Index of the parent's process id in the fields that `proc_stat` returns."""
START_TIME: Final = 19
"""Index of the start time, in clock ticks since the boot."""


def proc_stat(pid: int) -> list[bytes]:
    """Return the fields of process `pid` after its name, from the state on; an empty list if they are unknown."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()  # the name may contain spaces and parentheses
    except OSError:
        return []
    return fields if len(fields) > START_TIME else []
