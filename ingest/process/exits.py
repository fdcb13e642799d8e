"""Detects the cause of this process's end: exit code, exception or SIGTERM. Python does not pass it to atexit."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from opcode import opname
from types import FrameType, TracebackType
from typing import Any, Final, NamedTuple, TypeVar

from trainwire.ingest.process.clock import monotonic_s

TERMINATED: Final = "terminated by SIGTERM"
_INIT_PID: Final = 1


class ProcessEnd(NamedTuple):
    """The end of the process: by the exception `error`, or successful if it is None.

    If `is_known` is False, the exit code is unknown.
    """

    error: BaseException | None = None
    is_known: bool = True


class _Released:
    """An object attached to a SystemExit; its `__del__` runs when the exception is freed.

    If no Python frame is on the stack at that time, nothing has caught the exception, and the process exits with
    the code of the exception.
    """

    def __init__(self, exits: Exits, code: object) -> None:
        self._exits = exits
        self._code = code

    def __del__(self) -> None:
        is_main = threading.get_ident() == threading.main_thread().ident
        if is_main and sys._getframe().f_back is None:  # noqa: SLF001 - documented; inspect is slow to import
            self._exits.note_code(self._code)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # an exception that is pickled takes its attributes with it


class Exits:
    """Detects at the exit of the interpreter whether the main program returned, and its exit code.

    Python does not pass the exit code to atexit functions. A call of `sys.exit` proves nothing, because a
    caller may catch its SystemExit. Two facts can be used: whether the last instruction of the outermost frame
    is a return, and whether the SystemExit was freed. `raise SystemExit(code)` without `sys.exit` is not
    noticed, so its code is unknown.
    """

    def __init__(self) -> None:
        self._outermost: FrameType | None = None
        self._is_program = False
        self._codes: list[object] = []

    def watch(self) -> None:
        """Remember the outermost frame of the main program, and wrap `sys.exit`, `exit` and `quit`."""
        self._codes.clear()
        frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001 - documented
        while frame is not None and frame.f_back is not None:
            frame = frame.f_back
        self._outermost = frame
        self._is_program = hasattr(sys.modules.get("__main__"), "__file__")  # removed before atexit functions run
        sys.exit = self._noting(sys.exit)
        site = sys.modules.get("_sitebuiltins")  # absent with `python -S`
        if site is not None:
            site.Quitter.__call__ = self._noting(site.Quitter.__call__)

    def note_code(self, code: object) -> None:
        """Record the exit code of the process, which `process_end` then returns."""
        self._codes[:] = [code]

    def process_end(self) -> ProcessEnd:
        """Return the end of the process; to be called from an atexit function."""
        if self._codes and not sys.flags.inspect:  # with `python -i` a SystemExit is shown, and a prompt follows
            return ProcessEnd(SystemExit(self._codes[0]))
        shown = getattr(sys, "last_value", None)  # set by the interpreter at its end, or by a prompt long before
        if (last_cell := _last_cell()) is not None:
            error = last_cell.error_before_exec or last_cell.error_in_exec
            return ProcessEnd(error, is_known=error is None)
        is_prompt = hasattr(sys, "ps1") and not self._is_program  # and no program that opens one
        if self._outermost is None or is_prompt or sys.flags.inspect:
            return ProcessEnd(is_known=shown is None)
        code = self._outermost.f_code.co_code
        if opname[code[self._outermost.f_lasti]].startswith("RETURN"):
            return ProcessEnd()
        trace: TracebackType | None = getattr(shown, "__traceback__", None)
        if trace is not None and trace.tb_frame is self._outermost:
            return ProcessEnd(shown)
        return ProcessEnd(is_known=False)

    def keep_interrupt(self) -> None:
        """After ctrl-C, make the interpreter end by SIGINT, as it would without trainwire.

        Python forgets the ctrl-C when any thread executes a string, as `dataclass` does during imports.
        """
        if isinstance(self.process_end().error, KeyboardInterrupt):
            with suppress(KeyboardInterrupt):
                exec("raise KeyboardInterrupt")  # noqa: S102 - sets _Py_UnhandledKeyboardInterrupt (pythonrun.c)

    def _noting(self, leave: Callable[..., Any]) -> Callable[..., Any]:
        if getattr(leave, "is_noted", False):
            return leave

        @wraps(leave)
        def noted(*args: Any, **named: Any) -> Any:
            try:
                return leave(*args, **named)
            except SystemExit as exc:
                exc._trainwire = _Released(self, exc.code)  # type: ignore[attr-defined]  # noqa: SLF001
                raise

        noted.is_noted = True  # type: ignore[attr-defined]
        return noted


exits: Final = Exits()
"""The `Exits` object of this process."""


def _last_cell() -> Any:
    """Return the result of the last cell if this process is an IPython shell or a notebook kernel; else None."""
    ipython = sys.modules.get("IPython")
    try:
        return ipython and ipython.get_ipython().last_execution_result
    except Exception:  # noqa: BLE001 - foreign code, of any version: None where there is no shell
        return None


RunT = TypeVar("RunT")


def finish_with_multiprocessing(run: RunT, finish: Callable[[RunT], object]) -> None:
    """Call `finish(run)` at the end of each forked child of multiprocessing; atexit functions do not run there.

    Does nothing if multiprocessing is not imported yet.
    """
    util = sys.modules.get("multiprocessing.util")
    if util is None:
        return

    def at_end(run: RunT) -> None:
        util.Finalize(None, finish, args=(run,), exitpriority=0)

    util.register_after_fork(run, at_end)  # the child clears earlier registrations


def at_end_of_target(finish: Callable[[BaseException | None], object]) -> Callable[[], object]:
    """In a child of multiprocessing, call `finish` when the child's target function ends.

    `finish` gets the exception of the target, or None. The returned function cancels the call. In any other
    process nothing happens.
    """
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None:
        return lambda: None
    from multiprocessing.util import Finalize  # noqa: PLC0415 - already imported in a child of multiprocessing

    return Finalize(None, lambda: finish(sys.exc_info()[1]), exitpriority=0).cancel


class Terminations:
    """Finishes runs on SIGTERM, before the signal ends the process. Handlers of the training take precedence."""

    def __init__(self) -> None:
        self._finishers: dict[object, Callable[[float], object]] = {}
        self._forking = threading.local()
        # Blocked during a fork: Python would lose a signal that the child receives before it is initialized.
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._after_fork_in_child
        )

    def watch(self, run: object, finish: Callable[[float], object]) -> None:
        """Call `finish` with a timeout in seconds on SIGTERM, until `forget(run)`.

        Does nothing outside of the main thread, or if the training handles SIGTERM itself.
        """
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and (self._is_installed or _has_default_action(signal.SIGTERM)):
            self._finishers[run] = finish
            signal.signal(signal.SIGTERM, self._on_signal)

    def forget(self, run: object) -> None:
        """Do not finish `run` on SIGTERM any more. After the last run, restore the default action of SIGTERM."""
        if self._finishers.pop(run, None) is not None and not self._finishers:
            self._restore()

    @property
    def _is_installed(self) -> bool:
        return signal.getsignal(signal.SIGTERM) == self._on_signal

    def _restore(self) -> None:
        if self._is_installed:
            with suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _before_fork(self) -> None:
        if self._is_installed:
            self._forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def _after_fork(self) -> None:
        mask = self._forking.__dict__.pop("mask", None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _after_fork_in_child(self) -> None:
        """Restore the default action in a forked child, so that SIGTERM ends it even outside of Python code."""
        self._finishers.clear()
        self._restore()
        self._after_fork()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Finish all runs, then end the process as the default action would have done.

        Nothing happens if another handler, which was installed later, has called this one: that handler
        decides. Nothing happens either in the first process of a container, for which the kernel ignores the
        default action (kill(2)).
        """
        if not self._is_installed or os.getpid() == _INIT_PID:
            return
        deadline = monotonic_s() + SIGTERM_TIMEOUT_S
        try:
            for finish in list(self._finishers.values()):
                finish(max(0.0, deadline - monotonic_s()))
        finally:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
            os.kill(os.getpid(), number)


SIGTERM_TIMEOUT_S: Final = 5.0
"""Seconds for finishing all runs on SIGTERM: schedulers send SIGKILL soon after it.

Messages that are not sent by then stay in the spool, if there is one.
"""

terminations: Final = Terminations()
"""The `Terminations` object of this process."""


def _has_default_action(number: signal.Signals) -> bool:
    """Return whether neither Python code nor C code (MPI) handles a signal or ignores it.

    `signal.getsignal` does not report handlers of C code.
    """
    if signal.getsignal(number) is not signal.SIG_DFL:
        return False
    try:
        with open("/proc/self/status", "rb") as status:
            masks = [int(line.split()[1], 16) for line in status if line.startswith((b"SigIgn:", b"SigCgt:"))]
    except (OSError, ValueError, IndexError):  # not Linux
        return True
    return not any(mask >> (number - 1) & 1 for mask in masks)
