"""A folder of one process for its snapshots, which the next process removes where this one is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

PREFIX: Final = ".trainwire-"
_UNBORN: Final = ".trainwire.new-"
_LOCK: Final = "lock"


class SnapshotFolder:
    """`.trainwire-*` inside `parent`; it appears under that name with its lock held, until `remove` or death."""

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        unborn = Path(tempfile.mkdtemp(prefix=_UNBORN, dir=parent))
        try:
            self._lock = os.open(unborn / _LOCK, os.O_WRONLY | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._path = unborn.rename(parent / unborn.name.replace(_UNBORN, PREFIX))
        except OSError:
            shutil.rmtree(unborn, ignore_errors=True)
            raise

    def new_path(self) -> Path:
        """Return a new, empty folder in it."""
        return Path(tempfile.mkdtemp(dir=self._path))

    def exists(self) -> bool:
        """Tell whether nobody else has removed it."""
        return self._path.is_dir()

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self._path, ignore_errors=True)
        os.close(self._lock)


def is_snapshot_folder(name: str) -> bool:
    """Tell whether a folder's name is one of ours."""
    return name.startswith((PREFIX, _UNBORN))


def _sweep(parent: Path) -> None:
    """Remove the folders of processes that are gone: nobody holds their locks."""
    for folder in parent.glob(f"{PREFIX}*/"):
        try:
            lock = os.open(folder / _LOCK, os.O_WRONLY)
        except OSError:  # another process of ours is removing it
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its process lives
            pass
        finally:
            os.close(lock)
