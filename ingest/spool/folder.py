"""The folder of one source in the spool: its description, and a lock that its process holds."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

_LOCK: Final = "lock"
_ABOUT: Final = "source.json"


class About(msgspec.Struct, frozen=True):
    """The source of the messages and their server (host:port/db); `host` and `pid` are for display.

    `since_ns` is the beginning of the source by its own clock, in nanoseconds since 1970.
    """

    job_id: int
    attempt: int
    source: str
    rank: int | None
    server: str
    since_ns: int | None = None
    host: str = msgspec.field(default_factory=socket.gethostname)
    pid: int = msgspec.field(default_factory=os.getpid)


_decode_about = msgspec.json.Decoder(About).decode


class SourceFolder:
    """`<spool>/<job>-<source>/`, locked by the process that writes its messages or recovers them."""

    def __init__(self, path: Path, about: About, lock: int) -> None:
        self.path = path
        self.about = about
        self._lock = lock

    @classmethod
    def create(cls, spool: Path, about: About) -> SourceFolder:
        """Create the folder of a new source. Raises `OSError`."""
        path = spool / f"{about.job_id}-{about.source}"
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.mkdir(mode=0o700)
        lock = None
        try:
            lock = _locked(path)
            unfinished = path / f"{_ABOUT}.new"
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
        """Lock the folder of another process; None while it is locked, or where this is no folder of a source."""
        about = read_about(path)
        lock = None if about is None else _locked(path)
        return None if about is None or lock is None else cls(path, about, lock)

    def forget(self) -> None:
        """Release the lock; in a forked child the parent keeps its own."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            with suppress(OSError):
                os.close(lock)

    def remove(self) -> None:
        """Delete the folder and its files.

        The description is deleted last but one, then the lock: until then other processes find the folder locked,
        and after a kill during the deletion one that they can claim.
        """
        last = [self.path / _ABOUT, self.path / _LOCK]
        with suppress(OSError):
            for path in [path for path in self.path.iterdir() if path not in last] + last:
                path.unlink(missing_ok=True)
        self.forget()
        with suppress(OSError):
            self.path.rmdir()


def read_about(path: Path) -> About | None:
    """Return the description of a folder, None where it is not the folder of a source."""
    try:
        return _decode_about((path / _ABOUT).read_bytes())
    except (OSError, msgspec.DecodeError):
        return None


def is_owned(path: Path) -> bool:
    """Return whether a process has locked the folder."""
    lock = _locked(path)
    if lock is None:
        return True
    os.close(lock)
    return False


def source_folders(spool: Path) -> Iterator[Path]:
    """Yield the folders of all sources, the oldest first, including unreadable ones; none without a spool.

    Raises `OSError` where the spool itself cannot be listed.
    """
    found = []
    with suppress(FileNotFoundError):
        for path in spool.iterdir():
            with suppress(FileNotFoundError):  # its owner has just removed it
                written_at = path.stat().st_mtime
                if _may_be_of_a_source(path):
                    found.append((written_at, path))
    yield from (path for _, path in sorted(found))


def _may_be_of_a_source(path: Path) -> bool:
    try:
        return (path / _ABOUT).exists()
    except PermissionError:
        return True


def _locked(path: Path) -> int | None:
    """Lock the folder and return the descriptor; None where another process has locked it."""
    file = os.open(path / _LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file
