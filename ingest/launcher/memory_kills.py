"""Whether the kernel has killed a process of this control group because its memory was used up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

CGROUP_ROOT: Final = "/sys/fs/cgroup"
OWN_CGROUPS: Final = "/proc/self/cgroup"


class MemoryKills:
    """Counts the out-of-memory kills of the control group that this process and its children are in, from now on.

    Reads `memory.events` of cgroup v2 or `memory.oom_control` of v1; where neither can be read it counts none.
    """

    def __init__(self, root: str = CGROUP_ROOT, own: str = OWN_CGROUPS) -> None:
        self._path = next((path for path in _counters(root, own) if _kills(path) is not None), None)
        self._before = self._count()

    def cause(self) -> str | None:
        """Return what to say of kills since this object was made; None where there were none."""
        kills = self._count() - self._before
        if kills <= 0 or self._path is None:
            return None
        what = "a process" if kills == 1 else f"{kills} processes"
        return f"out of memory: the kernel killed {what} of the control group {os.path.dirname(self._path)}"

    def _count(self) -> int:
        return (_kills(self._path) or 0) if self._path else 0


def _counters(root: str, own: str) -> Iterator[str]:
    """Yield the files that may count this process's kills; a container may show its own group as the root."""
    for line in _lines(own):
        _, controllers, path = line.rstrip("\n").split(":", 2)
        for group in (path, "/"):
            if not controllers:
                yield os.path.normpath(f"{root}/{group}/memory.events")
            elif "memory" in controllers.split(","):
                yield os.path.normpath(f"{root}/memory/{group}/memory.oom_control")


def _kills(path: str) -> int | None:
    for line in _lines(path):
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return None


def _lines(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.readlines()
    except OSError:  # no Linux, or no such controller
        return []
