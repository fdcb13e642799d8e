"""Forwards signals to the command of `trainwire run`, and determines the cause of its failure."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final, Self

from trainwire.ingest.output.pseudo_terminal import Terminal
from trainwire.ingest.process.preemption import Preemption

FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,  # schedulers announce a pre-emption with it
    signal.SIGUSR2,
    signal.SIGWINCH,
)
NOT_TERMINATING: Final = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
"""Signals that do not ask the process to end."""
CGROUP_ROOT: Final = "/sys/fs/cgroup"
OWN_CGROUPS: Final = "/proc/self/cgroup"
TYPED: Final = (signal.SIGINT, signal.SIGQUIT)


class Signals:
    """Context manager that forwards signals received by this process (the launcher) to the command."""

    def __init__(self) -> None:
        self.preemption: Preemption | None = None
        """Gets each signal before the command does, once it is set."""
        self._process: subprocess.Popen[bytes] | None = None
        self._terminal: Terminal | None = None
        self._early: list[int] = []
        self._before: dict[signal.Signals, Any] = {}
        self.came_late = False
        """Whether a signal to end came after the command had ended: the launcher then stops waiting."""

    def forward_to(self, process: subprocess.Popen[bytes], terminal: Terminal | None = None) -> None:
        """Forward signals to `process`, first those received before it was started.

        If a pseudo-terminal `terminal` is given, it is resized when the user's terminal is.
        """
        self._process = process
        self._terminal = terminal
        for signum in self._early:
            process.send_signal(signum)

    def terminate(self) -> None:
        """Send SIGTERM to the command, if it was started."""
        if self._process is not None:
            self._process.terminate()

    @property
    def pid(self) -> int | None:
        """The process id of the command; None before it is started."""
        return None if self._process is None else self._process.pid

    def has_ended(self) -> bool:
        """Return whether the command has ended and its return code has been read."""
        return self._process is not None and self._process.returncode is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there Python can set handlers
            # Ignored signals stay ignored, also in the command: nohup depends on it.
            handled = [signum for signum in FORWARDED if signal.getsignal(signum) is not signal.SIG_IGN]
            self._before = {signum: signal.signal(signum, self._forward) for signum in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _forward(self, signum: int, _frame: FrameType | None) -> None:
        if self._process is not None and self._process.returncode is not None:
            self.came_late = self.came_late or signum not in NOT_TERMINATING
            return
        if signum in TYPED and _is_typed_at_terminal():
            return  # the terminal sends ctrl-C to the command too: twice would end it at once
        if self.preemption is not None:
            self.preemption.note(signum)
        if self._terminal is not None:
            self._terminal.fit()
        elif signum == signal.SIGWINCH:
            return  # the command has no terminal of ours
        if self._process is None:
            self._early.append(signum)
        else:
            self._process.send_signal(signum)


class MemoryKills:
    """Counts the processes in this process's cgroup that the kernel's OOM killer has killed since construction.

    Reads `memory.events` of cgroup v2 or `memory.oom_control` of v1; if neither can be read, the count stays 0.
    """

    def __init__(self, root: str = CGROUP_ROOT, own: str = OWN_CGROUPS) -> None:
        self._path = next((path for path in _counters(root, own) if _kills(path) is not None), None)
        self._before = self._count()

    def cause(self) -> str | None:
        """Return an error message with the number of OOM kills since construction; None if there were none."""
        kills = self._count() - self._before
        if kills <= 0 or self._path is None:
            return None
        killed = "a process" if kills == 1 else f"{kills} processes"
        return f"out of memory: the kernel killed {killed} of the control group {os.path.dirname(self._path)}"

    def _count(self) -> int:
        return (_kills(self._path) or 0) if self._path else 0


def exit_code_of(return_code: int) -> int:
    """Convert a return code of `Popen` to the exit code of a shell: 128+n for signal n."""
    return return_code if return_code >= 0 else 128 - return_code


def error_message(return_code: int, last_error_line: str | None) -> str | None:
    """Return exit code or signal and `last_error_line` as one line of text; None if the command succeeded."""
    if return_code == 0:
        return None
    cause = f"exit code {return_code}" if return_code > 0 else f"killed by signal {_signal_name(-return_code)}"
    return f"{cause}: {last_error_line}" if last_error_line else cause


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # real-time signals have no names
        return str(signum)


def _is_typed_at_terminal() -> bool:
    """Return whether this process is in the foreground of its terminal.

    If so, the terminal sends the SIGINT of ctrl-C to the command too, and it must not be forwarded.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _counters(root: str, own: str) -> Iterator[str]:
    """Yield paths of files in which the kernel may count OOM kills of this process's cgroup.

    The root cgroup is included, because a container may see its own cgroup as the root.
    """
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
    except OSError:  # not Linux, or no such controller
        return []
