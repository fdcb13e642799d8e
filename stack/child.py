"""A child process with a log file and a pid file.

After a crash of `trainwire up`, the next one stops the process named in the pid file.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Final, Protocol

import psutil

from trainwire.stack.errors import PartEnded, PartFailed
from trainwire.stack.persisted_config import write_private

POLL_S: Final = 0.02
SHOWN_LINES: Final = 8
"""Number of the last lines of a log that an error message contains."""
KILL_TIMEOUT_S: Final = 5.0
KEEP_LOG_BYTES: Final = 16 * 1024 * 1024
SIGNAL_NAMES: Final = {number.value: number.name for number in signal.Signals}


class RunningProcess(Protocol):
    """The part of the interface of `subprocess.Popen` that `Child` uses."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit code, or the negated number of the signal that ended the process; None while it runs."""

    def wait(self, timeout: float) -> int:
        """Wait for the end of the process; raise `subprocess.TimeoutExpired` after `timeout` seconds."""

    def send_signal(self, number: int) -> None:
        """Send a signal to the process unless it has ended."""


OpenProcess = Callable[[Sequence[str], Mapping[str, str] | None, IO[bytes], Path], RunningProcess]
"""Function that starts a command with an environment, a log file for its output, and a working folder."""


class Child:
    """A child process named `name`, with its log and its pid file in the data folder.

    The log is `<data_dir>/logs/<name>.log`; at a start, one of more than KEEP_LOG_BYTES becomes `<name>.log.1`.
    The pid file is `<data_dir>/run/<name>.json`. `stop` sends `stop_signal`, and kills the process after
    `stop_timeout_s`.
    """

    def __init__(
        self,
        name: str,
        data_dir: Path,
        *,
        stop_signal: signal.Signals = signal.SIGTERM,
        stop_timeout_s: float = 10.0,
    ) -> None:
        self.name = name
        self.log_path = data_dir / "logs" / f"{name}.log"
        self._data_dir = data_dir
        self._pid_path = data_dir / "run" / f"{name}.json"
        self._stop_signal = stop_signal
        self._stop_timeout_s = stop_timeout_s
        self._process: RunningProcess | None = None
        self._is_waiting_cancelled = False

    @property
    def pid(self) -> int | None:
        """The process id; None before the first start."""
        return None if self._process is None else self._process.pid

    def start(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        opener: OpenProcess | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        """Start `command` in a new session, by `opener` if there is one.

        Its environment is `env` (None: that of this process), and it inherits the open `descriptors`. A process of
        this name that a killed `trainwire up` has left is stopped first.
        """
        for folder in (self.log_path.parent, self._pid_path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        stop_leftover(self._pid_path, self._stop_signal, self._stop_timeout_s)
        with _open_log(self.log_path) as log:
            start = opener or partial(open_process, descriptors=descriptors)
            self._process = start(command, env, log, self._data_dir)
        _write_pid(self._pid_path, self._process.pid)

    def exit_code(self) -> int | None:
        """Return the exit code, or the negated number of the signal that ended the process.

        Returns None while it runs, and before the first start.
        """
        return None if self._process is None else self._process.poll()

    def is_running(self) -> bool:
        """Return whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def listens_on(self, port: int) -> bool:
        """Return whether this process itself, and no other process, listens on the TCP port."""
        try:
            sockets = psutil.Process(self.pid).net_connections("tcp")
        except psutil.Error:
            return False
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets)

    def wait_ready(self, is_ready: Callable[[], bool], timeout_s: float) -> None:
        """Poll `is_ready` until it returns True.

        Raises `PartEnded` if the process ends first, and `PartFailed` after `timeout_s` seconds or a call of
        `stop_waiting`.
        """
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            code = self.exit_code()
            if code is not None:
                raise PartEnded(f"{self.name} ended at once, {shown_exit(code)}{self.log_tail()}")
            if self._is_waiting_cancelled:
                raise PartFailed(f"{self.name} was not waited for")
            if time.monotonic() > deadline:
                raise PartFailed(f"{self.name} is not ready after {timeout_s:.0f} s{self.log_tail()}")
            time.sleep(POLL_S)

    def stop_waiting(self) -> None:
        """Make a running `wait_ready` raise `PartFailed`; safe in a signal handler."""
        self._is_waiting_cancelled = True

    def stop(self) -> None:
        """Send the stop signal and wait until the process has ended.

        After the stop timeout, kill it and its children.
        """
        if self._process is not None and self.is_running():
            self._process.send_signal(self._stop_signal)
            try:
                self._process.wait(self._stop_timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        self._pid_path.unlink(missing_ok=True)

    def kill(self) -> None:
        """Send SIGKILL to the process and all its children; wait at most KILL_TIMEOUT_S until they have ended."""
        if self._process is None:
            return
        if self.is_running():
            _kill_tree(self._process.pid)
        # With a timeout: a signal handler may run this while `stop`, which it interrupted, waits for the process.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_TIMEOUT_S)
        self._pid_path.unlink(missing_ok=True)

    def log_tail(self) -> str:
        """Return the path of the log and its last lines, as a suffix for an error message."""
        return f" (log: {self.log_path}){_last_lines(self.log_path)}"


def open_process(
    command: Sequence[str],
    env: Mapping[str, str] | None,
    log: IO[bytes],
    folder: Path,
    *,
    descriptors: Sequence[int] = (),
) -> RunningProcess:
    """Start a command as a new program in a new session.

    Ctrl-C then signals only `trainwire up`, which stops its parts in order.
    """
    return subprocess.Popen(  # noqa: S603 - our own command lists, no shell
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=env,
        cwd=folder,
        start_new_session=True,
        pass_fds=descriptors,
    )


def shown_exit(code: int) -> str:
    """Return a return code of `Popen` as text, such as `exit code 1` or `killed by SIGKILL`."""
    return f"exit code {code}" if code >= 0 else f"killed by {SIGNAL_NAMES.get(-code, f'signal {-code}')}"


def stop_leftover(pid_path: Path, stop_signal: signal.Signals, timeout_s: float) -> bool:
    """Stop the process that a killed `trainwire up` recorded in the pid file; return whether it was running.

    If the process is still running `timeout_s` seconds after the stop signal, kill it and its children.
    """
    process = _recorded_process(pid_path)
    if process is not None:
        process.send_signal(stop_signal)
        if not _have_ended([process], timeout_s):
            _kill_tree(process.pid)
    pid_path.unlink(missing_ok=True)
    return process is not None


def _recorded_process(pid_path: Path) -> psutil.Process | None:
    try:
        recorded = json.loads(pid_path.read_text())
        process = psutil.Process(int(recorded["pid"]))
        # The kernel reuses process ids: the start time identifies the process.
        same = abs(process.create_time() - float(recorded["created"])) < 0.01
    except (FileNotFoundError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
        return None
    return process if same and process.status() != psutil.STATUS_ZOMBIE else None


def _write_pid(pid_path: Path, pid: int) -> None:
    try:
        created = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return
    write_private(pid_path, json.dumps({"pid": pid, "created": created}))


def _kill_tree(pid: int) -> None:
    try:
        root = psutil.Process(pid)
        root.suspend()  # a stopped parent makes no new children between the listing and the kill
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    _have_ended(tree, KILL_TIMEOUT_S)


def _have_ended(processes: Sequence[psutil.Process], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while any(_is_alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _is_alive(process: psutil.Process) -> bool:
    # A zombie has ended; its parent was killed and has not waited for it.
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _open_log(path: Path) -> IO[bytes]:
    if path.exists() and path.stat().st_size > KEEP_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


def _last_lines(path: Path) -> str:
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 16_384))
            tail = log.read().decode(errors="replace").splitlines()[-SHOWN_LINES:]
    except FileNotFoundError:
        return ""
    return "".join(f"\n  | {line}" for line in tail)
