"""Terminates the command of the launcher when a user asks the job to stop (docs/stop.md)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from signal import SIGTERM
from typing import TYPE_CHECKING, Final, NamedTuple

from trainwire.ingest.process.daemon_pool import start_daemon
from trainwire.ingest.process.proc_stat import PARENT, START_TIME, proc_stat

if TYPE_CHECKING:
    from trainwire.ingest.launcher.command import Signals
    from trainwire.ingest.process.launcher_folder import LauncherFolder
    from trainwire.ingest.run import Run

STOP_MODES: Final = ("sigterm", "none")
DEFAULT_STOP_GRACE_S: Final = 300.0
"""Seconds that a training that reads `run.should_stop` has to save a checkpoint and end, before SIGTERM."""
POLL_S: Final = 0.2


class _Process(NamedTuple):
    """A process id and the start time of the process, which differs for a later process with the same id."""

    pid: int
    started: str


def stop_when_asked(run: Run, signals: Signals, folder: LauncherFolder, grace_s: float) -> None:
    """Start a thread that sends SIGTERM (never SIGKILL) to the command when a user asks the job to stop.

    If a process of the command reads `run.should_stop`, the signal is sent only if the command still runs
    `grace_s` seconds later. Child processes that outlive the command, as those of a shell script do, get it too.
    """

    def watch() -> None:
        received = run._session.stop.received  # noqa: SLF001 - of the launcher's own run
        while not received.wait(POLL_S):
            if signals.has_ended():
                return
        until = time.monotonic() + grace_s
        while folder.has_reader_of_stop and time.monotonic() < until:
            if signals.has_ended():
                return
            time.sleep(POLL_S)
        _terminate(run, signals)

    with suppress(RuntimeError):  # the system refuses a thread: `run.should_stop` is left
        start_daemon(watch, "trainwire-stop")


def _terminate(run: Run, signals: Signals) -> None:
    while (pid := signals.pid) is None:
        time.sleep(POLL_S)  # not started yet
    if signals.has_ended():
        return
    left = _descendants(pid)
    run._is_terminated = True  # noqa: SLF001 - before the signal: the command may end at once
    run.log("trainwire: the command gets SIGTERM, as asked", log_type="stderr", level="WARNING")
    signals.terminate()
    while not signals.has_ended():
        time.sleep(POLL_S / 10)
    for process in left:
        if _read(process.pid)[0] == process:
            with suppress(OSError):
                os.kill(process.pid, SIGTERM)


def _descendants(pid: int) -> list[_Process]:
    """Return all descendants of process `pid`; an empty list on a system without /proc."""
    children: dict[int, list[_Process]] = {}
    for number in _numbers():
        process, parent = _read(number)
        if process is not None:
            children.setdefault(parent, []).append(process)
    found: list[_Process] = []
    parents = [pid]
    while parents:
        begun = children.get(parents.pop(), [])
        found += begun
        parents += [process.pid for process in begun]
    return found


def _numbers() -> Iterator[int]:
    with suppress(OSError):
        yield from (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _read(pid: int) -> tuple[_Process | None, int]:
    """Return process `pid` with its start time, and the id of its parent; (None, 0) if it does not run."""
    fields = proc_stat(pid)
    return (_Process(pid, fields[START_TIME].decode()), int(fields[PARENT])) if fields else (None, 0)
