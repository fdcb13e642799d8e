"""Detects whether a scheduler, such as Slurm, has ended the command of the launcher (docs/slurm.md)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from signal import SIGTERM, SIGUSR1, SIGUSR2, Signals
from typing import Final

from trainwire.ingest.process.launcher_folder import leave_note, read_note

SOON_S: Final = 300.0
"""A command that fails within this number of seconds after SIGTERM counts as ended by the signal.

Most schedulers send SIGKILL much earlier, but the time before SIGKILL can be set to minutes.
"""
ANNOUNCING: Final = (SIGTERM, SIGUSR1, SIGUSR2)
"""Signals by which schedulers announce that they will kill a job."""
_JOBS: Final = (("SLURM_JOB_ID", "Slurm"), ("PBS_JOBID", "PBS"), ("LSB_JOBID", "LSF"))
_MARK: Final = "preempted"


def scheduler_of(environ: Mapping[str, str], pid: int, parent: int) -> str | None:
    """Return the scheduler that sends signals to process `pid`, such as "Slurm job 812"; None if there is none.

    Kubernetes sends signals to the first process of a container. Its environment variables alone prove nothing:
    other processes have them too.
    """
    for variable, name in _JOBS:
        if number := environ.get(variable, "").strip():
            return f"{name} job {number[:100]}"
    is_first = 1 in {pid, parent}
    return "a pod of Kubernetes" if is_first and environ.get("KUBERNETES_SERVICE_HOST") else None


def is_past_limit(environ: Mapping[str, str], now_s: float) -> bool:
    """Return whether the Slurm job has reached its time limit; SIGTERM is then not a pre-emption."""
    end = environ.get("SLURM_JOB_END_TIME", "").strip()
    return end.isascii() and end.isdecimal() and now_s >= int(end[:15])


class Preemption:
    """A signal that announced the end of a command, and whether the command has ended because of it.

    `folder` is the folder through which the launcher and the scripts of the command exchange files, or None. The
    launcher writes a file into it from which the scripts learn of a pre-emption.
    """

    def __init__(self, environ: Mapping[str, str], folder: Path | None) -> None:
        self._environ = environ
        self._folder = folder
        self._scheduler = scheduler_of(environ, os.getpid(), os.getppid())
        self._announced: dict[int, float] = {}

    def note(self, signum: int) -> None:
        """Record a signal that the launcher has received, before it is forwarded to the command."""
        if self._scheduler is None or signum not in ANNOUNCING or is_past_limit(self._environ, time.time()):
            return
        self._announced.setdefault(signum, time.monotonic())
        if signum == SIGTERM and self._folder is not None:
            leave_note(self._folder, _MARK, self._reason(signum))

    def reason(self, exit_code: int) -> str | None:
        """Return why the command was pre-empted, such as "SIGTERM in Slurm job 812"; None if it was not.

        `exit_code` is in the format of a shell: 128 + signal number if a signal killed the command. A command with
        exit code 0 was not pre-empted. SIGUSR1 and SIGUSR2 count only if they killed the command.
        """
        if exit_code == 0:
            return None
        for signum, at_s in self._announced.items():
            is_soon = signum == SIGTERM and time.monotonic() - at_s <= SOON_S
            if is_soon or exit_code == 128 + signum:
                return self._reason(signum)
        return None

    def _reason(self, signum: int) -> str:
        return f"{Signals(signum).name} in {self._scheduler}"


def marked_reason(folder: Path) -> str | None:
    """Return the reason if the launcher has recorded a pre-emption in the last `SOON_S` seconds, else None.

    Called by scripts; `folder` is the one of the launcher's `Preemption`.
    """
    mark = folder / _MARK
    with suppress(OSError):
        if time.time() - mark.stat().st_mtime <= SOON_S:
            return read_note(mark) or None
    return None
