"""A file with which a child process reports to the creator of its run that it has read a request to stop."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


class StopMark:
    """The file of one run in a spool folder; without a folder there is no file, and nothing is reported.

    The creator may not read the request itself: it then learns from this file that its training was stopped.
    Errors of the disk are ignored; the job is then shown as completed.
    """

    def __init__(self, folder: Path | None, job_id: int, began_ns: int) -> None:
        """Name the file of the run that began at `began_ns`, in nanoseconds since 1970.

        `folder` is the spool folder, or None if there is none.
        """
        self._path = None if folder is None else folder / f"stopped-{job_id}-{began_ns}"
        self._is_left = False

    def leave(self) -> None:
        """Create the file; later calls do nothing, because a training asks after each step."""
        if self._path is None or self._is_left:
            return
        self._is_left = True
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path.touch(mode=0o600)

    def is_there(self) -> bool:
        """Return whether a process has left the file."""
        # Not Path.exists, which raises an error for a folder that this user may not search.
        return self._path is not None and os.path.exists(self._path)

    def remove(self) -> None:
        """Delete the file, if it exists."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()
