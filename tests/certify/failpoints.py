"""Failpoints at the calls that leave a process: one call of a run fails in a chosen way.

`install` replaces the few functions through which all such calls pass (redis-py's connection, psycopg's cursor,
`http.client`, the functions for files), in a child process of a test: the product contains no code for it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal, get_args

ROOT: Final = Path(__file__).parents[2]
PRODUCT: Final = ("ingest", "workers", "gateway", "stores", "schemas", "cli", "stack", "client")
LIBRARIES: Final = ("pathlib.py", "_local.py", "shutil.py", "tempfile.py", "contextlib.py")
"""Modules between the product and a function for files; calls by other modules are not the product's."""

Mode = Literal["refused", "answer-lost", "hanging", "killed-before", "killed-after"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
HANG_S: Final = 0.3
"""Seconds that a hanging call takes until its timeout, which is that of a failpoint and not of the product."""
OUTAGE_S: Final = 0.15
"""Seconds after the failed call and its hang in which the same call fails again: libraries retry once at once."""
MOST_OF_A_SITE: Final = 4
"""Calls of one site that count in a run: periodic ones would never end."""

_write, _open = os.write, os.open  # these must not count


@dataclass(frozen=True)
class Failure:
    """The call that has to fail: the one with this number, counted from 1, of a role, and the mode of its failure.

    A role is a part of the product that one run watches. With a `site` (`call_sites.sites_of`), only the calls of
    this site count, all of them: the number of a call in a whole run depends on its timing.
    """

    role: str
    number: int
    mode: Mode
    site: str = ""

    def concerns(self, role: str, callers: str) -> bool:
        """Return whether a call of a role counts, whose callers are `callers` (`_callers`)."""
        from tests.certify.call_sites import sites_of  # noqa: PLC0415 - it imports this module

        return role == self.role and (not self.site or self.site in sites_of(callers.split()))


class Failpoints:
    """Counts the calls of a process by role, records them in a file, and lets one of them fail.

    Of each call site, the first `MOST_OF_A_SITE` calls count; none does before the file `armed_by` exists. After
    the failure no call is recorded.
    """

    def __init__(self, record: Path, failure: Failure | None, armed_by: Path | None = None) -> None:
        self._record = _open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._failure = failure
        self._lock = threading.Lock()
        self._count = 0
        self._seen: Counter[tuple[str, str]] = Counter()
        self._failed: tuple[str, float] | None = None
        self._armed_by = armed_by
        self.role = ""
        """The part of the product that runs now; nothing is counted while it is empty."""

    def arrive(self, edge: str) -> Mode | None:
        """Count a call, and return the mode in which it has to fail; None lets it go through.

        Kills the process in the mode `killed-before`.
        """
        site = _site(edge)
        if not self.role or site is None or not self._is_armed():
            return None
        mode = None
        with self._lock:
            called = f"{edge} {site}"
            if self._failed is not None:
                site_of_failure, until = self._failed
                if called != site_of_failure or time.monotonic() > until or edge.startswith("file"):
                    return None
                return "refused"
            self._seen[self.role, called] += 1
            failure = self._failure
            has_site = failure is not None and failure.site and failure.role == self.role
            if self._seen[self.role, called] > MOST_OF_A_SITE and not has_site:
                return None
            callers, is_failing = _callers(), False
            if failure is not None and failure.concerns(self.role, callers):
                self._count += 1
                is_failing = self._count == failure.number
            if is_failing and failure is not None:
                mode = failure.mode
                self._failed = called, time.monotonic() + HANG_S + OUTAGE_S
            state = "FAILED" if is_failing else "called"
            _write(self._record, f"{state}\t{self.role}\t{called}\t{callers}\n".encode())
        if mode == "killed-before":
            os.kill(os.getpid(), signal.SIGKILL)
        return mode

    def _is_armed(self) -> bool:
        if self._armed_by is not None and self._armed_by.exists():
            self._armed_by = None
        return self._armed_by is None


def _place(name: str) -> str | None:
    """Return the path of a module of the product below `ROOT`; None if it is not the product's."""
    path = name.removeprefix(f"{ROOT}{os.sep}").removeprefix(f"trainwire{os.sep}")
    return path if name.startswith(str(ROOT)) and path.partition(os.sep)[0] in PRODUCT else None


def _callers() -> str:
    """Return module:line of all functions of the product that the present call goes through, innermost first."""
    frame: FrameType | None = sys._getframe(3)
    found = []
    while frame is not None:
        if (path := _place(frame.f_code.co_filename)) is not None:
            found.append(f"{path}:{frame.f_lineno}")
        frame = frame.f_back
    return " ".join(found)


def _site(edge: str) -> str | None:
    """Return module:function of the product that makes the call; None if it is not the product."""
    frame: FrameType | None = sys._getframe(3)
    while frame is not None:
        name = frame.f_code.co_filename
        if (path := _place(name)) is not None:
            return f"{path}:{frame.f_code.co_qualname}"
        if edge.startswith("file") and not name.endswith(LIBRARIES):
            return None
        frame = frame.f_back
    return None


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _replace(
    points: Failpoints,
    holder: Any,
    name: str,
    edge: str,
    error: Callable[[str], Exception],
    *,
    break_off: Callable[[Any], object] = lambda _: None,
) -> None:
    """Replace a function or method by one with a failpoint; `break_off` ends its connection when it fails."""
    original = getattr(holder, name)

    def call(*arguments: Any, **options: Any) -> Any:
        mode = points.arrive(edge)
        if mode is None:
            return original(*arguments, **options)
        if mode in ("answer-lost", "killed-after"):
            original(*arguments, **options)
        if mode == "killed-after":
            _die()
        if mode == "hanging":
            time.sleep(HANG_S)
        break_off(arguments[0] if arguments else None)
        raise error("timed out" if mode == "hanging" else f"failpoint: {mode}")

    setattr(holder, name, call)


def install(points: Failpoints) -> None:
    """Install the failpoints in this process."""
    _install_redis(points)
    _install_async_redis(points)
    _install_postgres(points)
    _install_http(points)
    _install_files(points)


def _install_redis(points: Failpoints) -> None:
    from redis import exceptions  # noqa: PLC0415 - a process without Redis does not need it
    from redis.connection import AbstractConnection  # noqa: PLC0415

    send: Any = AbstractConnection.send_packed_command  # without types
    read: Any = AbstractConnection.read_response

    def send_packed_command(self: Any, command: Any, check_health: bool = True) -> None:
        mode = None if getattr(self, "is_read_by_us", False) else points.arrive("redis")
        if mode is None:
            send(self, command, check_health)
            return
        if mode in ("answer-lost", "killed-after", "hanging"):
            self.is_read_by_us = True
            send(self, command, check_health)
            try:
                read(self)  # Redis has executed it
            except exceptions.ResponseError:
                pass
            finally:
                self.is_read_by_us = False
        if mode == "killed-after":
            _die()
        if mode == "hanging":
            time.sleep(HANG_S)
        self.disconnect()
        if mode == "hanging":
            raise exceptions.TimeoutError("Timeout reading from socket (failpoint)")
        raise exceptions.ConnectionError(f"Connection closed by server (failpoint: {mode})")

    AbstractConnection.send_packed_command = send_packed_command  # type: ignore[method-assign]


def _install_async_redis(points: Failpoints) -> None:
    from redis import exceptions  # noqa: PLC0415 - only the gateway has it
    from redis.asyncio.connection import AbstractConnection  # noqa: PLC0415

    send = AbstractConnection.send_packed_command

    async def send_packed_command(self: Any, command: Any, check_health: bool = True) -> None:
        mode = points.arrive("redis.async")
        if mode is None:
            await send(self, command, check_health)
            return
        if mode in ("answer-lost", "killed-after", "hanging"):
            await send(self, command, check_health)
            await asyncio.sleep(HANG_S if mode == "hanging" else 0.01)
        if mode == "killed-after":
            _die()
        await self.disconnect()
        raise exceptions.ConnectionError(f"Connection closed by server (failpoint: {mode})")

    AbstractConnection.send_packed_command = send_packed_command  # type: ignore[method-assign]


def _install_postgres(points: Failpoints) -> None:
    try:
        import psycopg  # noqa: PLC0415 - a trainer has none
    except ImportError:
        return

    def error(text: str) -> Exception:
        return psycopg.OperationalError(f"server closed the connection unexpectedly ({text})")

    def close(of: Any) -> None:
        connection = getattr(of, "connection", of)
        connection.close()

    _replace(points, psycopg.Cursor, "execute", "postgres.execute", error, break_off=close)
    _replace(points, psycopg.Cursor, "executemany", "postgres.executemany", error, break_off=close)
    _replace(points, psycopg.Cursor, "copy", "postgres.copy", error, break_off=close)
    _replace(points, psycopg.Connection, "commit", "postgres.commit", error, break_off=close)
    _replace(points, psycopg, "connect", "postgres.connect", error)


def _install_http(points: Failpoints) -> None:
    import http.client  # noqa: PLC0415 - as the others

    def error(text: str) -> Exception:
        return TimeoutError(text) if text == "timed out" else ConnectionResetError(104, text)

    def close(connection: Any) -> None:
        connection.close()

    _replace(points, http.client.HTTPConnection, "endheaders", "http.request", error, break_off=close)
    _replace(points, http.client.HTTPConnection, "getresponse", "http.response", error, break_off=close)


FILE_CALLS: Final = [
    "open",
    "write",
    "pwrite",
    "fsync",
    "fdatasync",
    "ftruncate",
    "rename",
    "replace",
    "unlink",
    "mkdir",
    "rmdir",
    "link",
    "listdir",
    "scandir",
]


def _install_files(points: Failpoints) -> None:
    import builtins  # noqa: PLC0415 - as the others
    import fcntl  # noqa: PLC0415
    import io  # noqa: PLC0415

    def error(text: str) -> Exception:
        return OSError(5, f"Input/output error ({text})")

    for name in FILE_CALLS:
        _replace(points, os, name, f"file.{name}", error)
    _replace(points, fcntl, "flock", "file.flock", error)
    _replace(points, io, "open", "file.open", error)
    builtins.open = io.open
