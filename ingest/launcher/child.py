"""The child process of the launcher: which signals it gets and how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType, TracebackType
from typing import Any, Final, Self

from trainwire.ingest.output.terminal import Terminal

FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,  # what schedulers announce a pre-emption with
    signal.SIGUSR2,
    signal.SIGWINCH,
)
TYPED: Final = (signal.SIGINT, signal.SIGQUIT)


class Signals:
    """Passes signals on to the child instead of dying of them, until the `with` block ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._terminal: Terminal | None = None
        self._early: list[int] = []
        self._before: dict[signal.Signals, Any] = {}

    def forward_to(self, process: subprocess.Popen[bytes], terminal: Terminal | None = None) -> None:
        """Name the child and what it draws on, and send it what came before there was one."""
        self._process = process
        self._terminal = terminal
        for signum in self._early:
            process.send_signal(signum)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there Python can set handlers
            # What is ignored stays ignored, also in the child: that is how nohup works.
            heard = [signum for signum in FORWARDED if signal.getsignal(signum) is not signal.SIG_IGN]
            self._before = {signum: signal.signal(signum, self._forward) for signum in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _forward(self, signum: int, _frame: FrameType | None) -> None:
        if signum in TYPED and _is_typed_at_terminal():
            return  # ctrl-C reaches the child by itself: a second one would be taken for impatience
        if self._terminal is not None:
            self._terminal.fit()
        elif signum == signal.SIGWINCH:
            return  # the child draws on no terminal of ours
        if self._process is None:
            self._early.append(signum)
        else:
            self._process.send_signal(signum)


def exit_code_of(return_code: int) -> int:
    """Return the exit code as a shell gives it: 128+n when signal n ended the process."""
    return return_code if return_code >= 0 else 128 - return_code


def how_it_ended(return_code: int, last_error_line: str | None) -> str | None:
    """Return what went wrong in one line, or None if nothing did."""
    if return_code == 0:
        return None
    what = f"exit code {return_code}" if return_code > 0 else f"killed by signal {_signal_name(-return_code)}"
    return f"{what}: {last_error_line}" if last_error_line else what


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # real-time signals have no names
        return str(signum)


def _is_typed_at_terminal() -> bool:
    """Tell whether this process is in the foreground of a terminal, where ctrl-C goes to all its processes."""
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
