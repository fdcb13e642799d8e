"""Child process of the launcher that keeps reading the command's output when the launcher is killed or suspended.

Without this process, a command would be killed by SIGPIPE at its next print after the launcher was killed, and
would block on a full pipe while the launcher is suspended. `Keeper` runs this file as a script, so it imports the
standard library alone.

Its arguments are two file descriptors (a control pipe to read from, a report pipe to write to), the process ids of
the launcher and of the command, then two file descriptors `source:shown` for each output: output of the command is
read from `source` and written to `shown` (if empty: discarded).

The script does not read while the launcher runs. When the launcher has ended, it reads until the end of the
output. If the launcher has ended normally (it has written a byte to the control pipe), the output is discarded; if
it was killed, the output is written to `shown`. If a signal suspends the launcher alone for longer than
`STOPPED_S` seconds and a pipe is filling up, the script writes its content to `shown`, and reports the number of
bytes.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

CHUNK_BYTES = 64 * 1024
STOPPED_S = 10.0
CHECK_S = 1.0
CHECK_SHOWING_S = 0.01
"""Interval of the checks, in seconds, while the script shows output in place of a stopped launcher."""
TERMINAL_ROOM_BYTES = 4096
"""Size of the kernel buffer for the output of a terminal on Linux."""
END_TIMEOUT_S = 1.0


class Keeper:
    """Starts this file as a child process, and signals to it by a pipe that the launcher ends normally."""

    def __init__(self, command: int, outputs: Sequence[tuple[int, int | None]]) -> None:
        """Start the child process.

        `command` is the process id of the command. Each item of `outputs` is a pair of file descriptors: one to
        read from, and one to write to (None: discard). Raises `OSError` if the process cannot be started.
        """
        import subprocess  # noqa: PLC0415 - would slow the start of the script

        if not sys.executable or not os.path.isfile(__file__):
            raise FileNotFoundError(f"Python is {sys.executable or 'unknown'!r}, the keeper's file is {__file__}")
        (control, self._control), (self._report, report) = os.pipe(), os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own file
                [
                    *(sys.executable, "-I", "-S", __file__),
                    *map(str, (control, report, os.getpid(), command)),
                    *(f"{source}:{'' if shown is None else shown}" for source, shown in outputs),
                ],
                pass_fds=[control, report, *(fd for pair in outputs for fd in pair if fd is not None and fd > 2)],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # no signal of the terminal ends it
            )
        except BaseException:
            os.close(self._control)
            os.close(self._report)
            raise
        finally:
            os.close(control)
            os.close(report)

    def close(self) -> int:
        """Make the child process discard further output; return the number of bytes that it has shown so far.

        Returns 0 if the child was killed or does not answer within `END_TIMEOUT_S` seconds.
        """
        try:
            os.write(self._control, b".")
            os.close(self._control)
            is_reported = select.select([self._report], [], [], END_TIMEOUT_S)[0]
            return int(os.read(self._report, 32) or 0) if is_reported else 0
        except OSError:  # it was killed
            return 0
        finally:
            os.close(self._report)
            if self._process.poll() is None:
                self._process.returncode = 0  # it may outlive the launcher: avoids the ResourceWarning


class Output:
    """One output of the command, and the file descriptor to which it is copied (None: it is discarded)."""

    def __init__(self, source: int, shown: int | None) -> None:
        self._source = source
        self.shown = shown

    def drain(self) -> None:
        """Read and copy the output until its end."""
        while self.pass_on():
            pass

    def pass_on(self) -> int:
        """Read a chunk of the output and write it to `shown`; return its size in bytes (0 at the end)."""
        try:
            chunk = os.read(self._source, CHUNK_BYTES)
        except OSError:  # EIO on Linux: no process has the terminal open
            return 0
        size_bytes = len(chunk)
        while chunk and self.shown is not None:
            try:
                chunk = chunk[os.write(self.shown, chunk) :]
            except BlockingIOError:  # the descriptor that the launcher inherited is non-blocking
                poll = select.poll()  # `select.select` refuses descriptors above 1023
                poll.register(self.shown, select.POLLOUT)
                poll.poll()
            except OSError:  # its reader has ended (`| head`), or the disk is full, maybe for a minute
                break
        return size_bytes

    def is_full(self) -> bool:
        """Return whether the pipe is at least half full.

        The command may then already block, because small writes do not fill the pages of a pipe.
        """
        waiting = array.array("i", [0])
        room_bytes = TERMINAL_ROOM_BYTES
        with suppress(OSError):
            fcntl.ioctl(self._source, termios.FIONREAD, waiting)
            room_bytes = fcntl.fcntl(self._source, fcntl.F_GETPIPE_SZ)  # refused by a terminal
        return waiting[0] >= room_bytes // 2


def watch(control: int, launcher: int, command: int, outputs: Sequence[Output]) -> tuple[bytes, int]:
    """Wait until the launcher ends; while it is suspended but the command is not, show the output in its place.

    Return the byte that the launcher wrote to `control` before its end (empty if it was killed), and the number of
    bytes shown.
    """
    shown_bytes, since_s, pause_s = 0, None, CHECK_S
    while not select.select([control], [], [], pause_s)[0]:
        pause_s = CHECK_S
        # ctrl-Z stops the command too: its output can wait.
        if not is_stopped(launcher) or is_stopped(command):
            since_s = None
            continue
        since_s = since_s or time.monotonic()
        if time.monotonic() - since_s < STOPPED_S:
            continue
        for output in outputs:
            while output.is_full() and is_stopped(launcher):
                shown_bytes += output.pass_on()
                pause_s = CHECK_SHOWING_S
    return os.read(control, 1), shown_bytes


def is_stopped(pid: int) -> bool:
    """Return whether a process was stopped by a signal (SIGSTOP or ctrl-Z); False if unknown."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b") ")[2][:1] in (b"T", b"t")
    except OSError:
        return False


def main(arguments: Sequence[str]) -> None:
    """Run the script: wait until the launcher ends, then read the outputs until no process has them open."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # a scheduler may signal the whole control group
    control, report, launcher, command = map(int, arguments[:4])
    pairs = [argument.partition(":") for argument in arguments[4:]]
    outputs = [Output(int(source), int(shown) if shown else None) for source, _, shown in pairs]
    left, shown_bytes = watch(control, launcher, command, outputs)
    if left:
        with suppress(OSError):  # the launcher was killed meanwhile
            os.write(report, b"%d" % shown_bytes)
        os.close(report)
        for descriptor in {1, 2, *(output.shown for output in outputs if output.shown is not None)}:
            with suppress(OSError):
                os.close(descriptor)  # the reader of the shown output waits until all descriptors are closed
        for output in outputs:
            output.shown = None
    threads = [threading.Thread(target=output.drain) for output in outputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1:])
