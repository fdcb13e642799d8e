"""The folder of one source inside the spool: who it is, and a lock that tells whether its process lives."""

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
    """Whose messages these are, and the server they are for (host:port/db); `host` and `pid` are for people.

    `since_ns` is when the source began, by its own clock.
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
    """`<spool>/<job>-<source>/`, locked as long as its process lives or somebody sends what it left."""

    def __init__(self, path: Path, about: About, lock: int) -> None:
        self.path = path
        self.about = about
        self._lock = lock

    @classmethod
    def create(cls, spool: Path, about: About) -> SourceFolder:
        """Make the folder of a new source. Raises `OSError` as the disk does."""
        path = spool / f"{about.job_id}-{about.source}"
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.mkdir(mode=0o700)
        lock = None
        try:
            lock = _locked(path)
            unborn = path / f"{_ABOUT}.new"
            unborn.write_bytes(msgspec.json.encode(about))
            unborn.rename(path / _ABOUT)
        except OSError:  # it may be made later
            cls(path, about, -1 if lock is None else lock).remove()
            raise
        if lock is None:
            raise OSError(f"the lock of {path} is taken though the folder is new")
        return cls(path, about, lock)

    @classmethod
    def claim(cls, path: Path) -> SourceFolder | None:
        """Take over what another process left; None while it lives, or where this is no such folder."""
        about = read_about(path)
        lock = None if about is None else _locked(path)
        return None if about is None or lock is None else cls(path, about, lock)

    def forget(self) -> None:
        """Give up the lock. In a forked child that leaves the parent its own: the folder is the parent's."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            with suppress(OSError):
                os.close(lock)

    def remove(self) -> None:
        """Remove the folder: nothing in it is needed any more.

        What tells whose it is goes last, and then the lock: who comes meanwhile finds the folder in use, and after
        a kill in the middle one that can be claimed.
        """
        last = [self.path / _ABOUT, self.path / _LOCK]
        with suppress(OSError):
            for path in [path for path in self.path.iterdir() if path not in last] + last:
                path.unlink(missing_ok=True)
        self.forget()
        with suppress(OSError):
            self.path.rmdir()


def read_about(path: Path) -> About | None:
    """Return whose folder it is, None where it is not one of the spool."""
    try:
        return _decode_about((path / _ABOUT).read_bytes())
    except (OSError, msgspec.DecodeError):
        return None


def is_owned(path: Path) -> bool:
    """Tell whether a process has the folder now: it writes there, or sends what is left."""
    lock = _locked(path)
    if lock is None:
        return True
    os.close(lock)
    return False


def source_folders(spool: Path) -> Iterator[Path]:
    """Yield the folders of all sources, the oldest first; those that we may not look into are among them.

    Nothing where there is no spool. Raises `OSError` where the spool itself cannot be listed.
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
    """Lock the folder; None where another process has it. The lock goes with the process that holds it."""
    file = os.open(path / _LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file
