"""The folder of one source in the spool: a description of the source, and a lock held by its process."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from trainwire.schemas.decode_errors import DECODE_ERRORS

_LOCK: Final = "lock"
_ABOUT: Final = "source.json"
_UNFINISHED: Final = f"{_ABOUT}.new"
_NAME: Final = re.compile(r"\d+-\d+-[0-9a-f]{24}")
"""The name of a folder, in a spool that may have folders of other programs beside them."""
_ABANDONED_S: Final = 3600
"""Age in seconds after which a folder without a description counts as abandoned; its creation takes far less."""


class About(msgspec.Struct, frozen=True):
    """Describes the source of the messages in a folder, and the server that they are for (host:port/db).

    `since_ns` is the start of the source by its own clock, in nanoseconds since 1970. `traceparent` identifies the
    span of its run, if that is traced. `host` and `pid` are for display.
    """

    job_id: int
    attempt: int
    source: str
    rank: int | None
    server: str
    since_ns: int | None = None
    traceparent: str | None = None
    host: str = msgspec.field(default_factory=socket.gethostname)
    pid: int = msgspec.field(default_factory=os.getpid)


_decode_about = msgspec.json.Decoder(About).decode


class SourceFolder:
    """The folder `<spool>/<job>-<source>/`, locked by the process that writes or sends its messages."""

    def __init__(self, path: Path, about: About, lock: int) -> None:
        self.path = path
        self.about = about
        self._lock = lock

    @classmethod
    def create(cls, spool: Path, about: About) -> SourceFolder:
        """Create and lock the folder of a new source. Raises `OSError` if this fails."""
        path = spool / f"{about.job_id}-{about.source}"
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.mkdir(mode=0o700)
        lock = None
        try:
            lock = _locked(path)
            unfinished = path / _UNFINISHED
            unfinished.write_bytes(msgspec.json.encode(about))
            unfinished.rename(path / _ABOUT)
        except OSError:  # the caller tries again later
            cls(path, about, -1 if lock is None else lock).remove()
            raise
        if lock is None:
            raise OSError(f"the lock of {path} is taken though the folder is new")
        return cls(path, about, lock)

    @classmethod
    def claim(cls, path: Path) -> SourceFolder | None:
        """Lock the folder of another process and return it.

        Returns None if any process holds the lock, or if `path` is not the folder of a source. Raises `OSError` if
        the lock file cannot be opened.
        """
        about = read_about(path)
        lock = None if about is None else _locked(path)
        return None if about is None or lock is None else cls(path, about, lock)

    def forget(self) -> None:
        """Release the lock. In a forked child this does not release the lock of the parent."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            with suppress(OSError):
                os.close(lock)

    def remove(self) -> None:
        """Delete the folder and its files.

        The description is deleted after the messages, and the lock file last. Other processes find the folder
        locked until the end; after a kill during the deletion they can lock it themselves.
        """
        last = [self.path / _ABOUT, self.path / _LOCK]
        with suppress(OSError):
            for path in [path for path in self.path.iterdir() if path not in last] + last:
                path.unlink(missing_ok=True)
        self.forget()
        with suppress(OSError):
            self.path.rmdir()


def read_about(path: Path) -> About | None:
    """Return the description of the source whose folder is at `path`; None if it is not the folder of a source."""
    try:
        return _decode_about((path / _ABOUT).read_bytes())
    except (OSError, *DECODE_ERRORS):
        return None


def is_owned(path: Path) -> bool:
    """Return whether a process has locked the folder."""
    lock = _locked(path)
    if lock is None:
        return True
    os.close(lock)
    return False


def source_folders(spool: Path) -> Iterator[Path]:
    """Yield the folders of all sources, the oldest first, including unreadable ones; none if there is no spool.

    Raises `OSError` if the spool itself cannot be listed.
    """
    found = []
    with suppress(FileNotFoundError):
        for path in spool.iterdir():
            with suppress(FileNotFoundError):  # its owner has just removed it
                written_at = path.stat().st_mtime
                if _may_be_of_a_source(path):
                    found.append((written_at, path))
    yield from (path for _, path in sorted(found))


def remove_abandoned(spool: Path) -> None:
    """Delete folders without messages that processes left which were killed while they created or deleted them.

    Only folders that were unchanged for an hour are deleted.
    """
    with suppress(OSError):
        for path in spool.iterdir():
            with suppress(OSError):  # of another user, or its owner has just removed it
                if _NAME.fullmatch(path.name) and time.time() - path.stat().st_mtime > _ABANDONED_S:
                    _remove_without_messages(path)


def _remove_without_messages(path: Path) -> None:
    if not {file.name for file in path.iterdir()} <= {_LOCK, _UNFINISHED}:
        return
    lock = _locked(path)
    if lock is None:
        return
    try:
        for name in (_UNFINISHED, _LOCK):
            (path / name).unlink(missing_ok=True)
    finally:
        os.close(lock)
    path.rmdir()


def _may_be_of_a_source(path: Path) -> bool:
    try:
        return (path / _ABOUT).exists()
    except PermissionError:
        return True


def _locked(path: Path) -> int | None:
    """Lock the folder and return the descriptor of the lock file; None if another process has locked it."""
    file = os.open(path / _LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file
