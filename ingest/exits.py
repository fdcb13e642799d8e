"""The ends of a process that Python tells nobody about: `sys.exit(3)` at the end of a script, and SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, NoReturn, TypeVar

TERMINATED: Final = "terminated by SIGTERM: the machine or the scheduler took it away"

_said: list[object] = []
"""The argument of the last `sys.exit`, if there was one."""


def note_exits() -> None:
    """Remember what `sys.exit` is called with from now on: when the interpreter ends it is known nowhere else."""
    python_exit = sys.exit
    if getattr(python_exit, "is_noted", False):
        return

    def noted(status: Any = None, /) -> NoReturn:
        _said[:] = [status]
        python_exit(status)

    noted.is_noted = True  # type: ignore[attr-defined]
    sys.exit = noted


def said_exit() -> SystemExit | None:
    """Return the end that the script chose with `sys.exit`, None where it chose none."""
    return SystemExit(_said[0]) if _said else None


RunT = TypeVar("RunT")


def finish_with_multiprocessing(run: RunT, finish: Callable[[RunT], object]) -> None:
    """Call `finish` at the end of this forked child if multiprocessing made it: it calls no atexit functions."""
    util = sys.modules.get("multiprocessing.util")
    if util is None:
        return

    def at_end(run: RunT) -> None:
        util.Finalize(None, finish, args=(run,), exitpriority=0)

    util.register_after_fork(run, at_end)  # the child forgets what was registered before it came this far


class Terminations:
    """Tells runs of a SIGTERM before the process ends of it; where the trainer has a handler, that one rules."""

    def __init__(self) -> None:
        self._finishers: dict[object, Callable[[], object]] = {}
        self._pid = 0

    def watch(self, run: object, finish: Callable[[], object]) -> None:
        """Call `finish` on SIGTERM, until `forget`; only the main thread can ask for that."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, self._on_signal):
            return
        self._pid = os.getpid()
        self._finishers[run] = finish
        signal.signal(signal.SIGTERM, self._on_signal)

    def forget(self, run: object) -> None:
        """Call nobody for this run any more; with the last one the signal is Python's again."""
        if self._finishers.pop(run, None) is None or self._finishers:
            return
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) == self._on_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        try:
            if os.getpid() == self._pid:  # not in a forked child: its end is not the run's
                for finish in list(self._finishers.values()):
                    finish()
        finally:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


terminations: Final = Terminations()
"""Of this process."""
