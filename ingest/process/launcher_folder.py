"""The folder of a launcher, in which its scripts leave files: their begin and end, and tracebacks to log once."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, Self

from trainwire.ingest.process.proc_stat import is_alive

LEFTOVER_S: Final = 24 * 3600
"""Seconds without a change after which the folder of a launcher that was killed is removed."""
_PREFIX: Final = "trainwire-"
_LOCK_NAME: Final = "launcher"
_TRACEBACK: Final = ".traceback"
_READS_STOP: Final = "reads-stop"
_BEGUN: Final = ".begun"


class LauncherFolder:
    """The temporary folder of a launcher: reads the files that the scripts of its command have left.

    A context manager. `path` is None outside of its block, or if the folder could not be created.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._lock: IO[bytes] | None = None

    def take_tracebacks(self) -> list[str]:
        """Return the tracebacks in the folder; scripts that end later log their tracebacks themselves.

        Returns an empty list if there is no folder, and at the second call.
        """
        if self._lock is None or self.path is None:
            return []
        self._lock.close()
        self._lock = None
        return [text for path in self._paths(_TRACEBACK) if (text := read_note(path))]

    def killed_sources(self) -> list[str]:
        """Return the sources of scripts that have begun and whose processes have ended without a completion."""
        return [mark.name.removesuffix(_BEGUN) for mark in self._paths(_BEGUN) if _was_killed(mark)]

    def _paths(self, suffix: str) -> list[Path]:
        with suppress(OSError):
            return [] if self.path is None else sorted(self.path.glob(f"*{suffix}"))
        return []

    @property
    def has_reader_of_stop(self) -> bool:
        """Whether a script reads `run.should_stop`, so that it ends by itself when a user asks the job to stop."""
        return self.path is not None and (self.path / _READS_STOP).exists()

    def __enter__(self) -> Self:
        import tempfile  # noqa: PLC0415 - a trainer does not need it

        _remove_leftovers(Path(tempfile.gettempdir()))
        with suppress(OSError):  # a full disk: scripts log their tracebacks themselves
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            self._lock = (self.path / _LOCK_NAME).open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
        if self.path is not None:
            import shutil  # noqa: PLC0415 - as above

            shutil.rmtree(self.path, ignore_errors=True)


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders of launchers in `parent` that were killed at least `LEFTOVER_S` seconds ago."""
    import shutil  # noqa: PLC0415 - a trainer does not need it

    with suppress(OSError):  # of the search
        for path in parent.glob(f"{_PREFIX}*/{_LOCK_NAME}"):
            with suppress(OSError), path.open("rb") as lock:
                if time.time() - path.parent.stat().st_mtime > LEFTOVER_S:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while the launcher runs
                    shutil.rmtree(path.parent)


def leave_traceback(folder: Path, source: str, traceback: str) -> bool:
    """Write a traceback to `folder`, so that the launcher logs it; return whether this succeeded.

    It fails if the launcher has ended or has already read the tracebacks.
    """
    try:
        with (folder / _LOCK_NAME).open("rb") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        unfinished = folder / source
        unfinished.write_text(traceback, errors="replace")
        unfinished.replace(folder / f"{source}{_TRACEBACK}")
    except OSError:
        return False
    return True


def note_reader_of_stop(folder: Path) -> None:
    """Report to the launcher, by a file in `folder`, that this script reads `run.should_stop`."""
    leave_note(folder, _READS_STOP, "")


def note_begin(folder: Path, source: str) -> None:
    """Report to the launcher that this process sends messages as `source`."""
    leave_note(folder, f"{source}{_BEGUN}", str(os.getpid()))


def note_end(folder: Path, source: str) -> None:
    """Report to the launcher that the completion of `source` has been sent, or is in the spool."""
    leave_note(folder, f"{source}{_BEGUN}", "")


def leave_note(folder: Path, name: str, text: str) -> None:
    """Write `text` to a file of this name in the folder of a launcher; nothing is written if that fails."""
    with suppress(OSError):
        (folder / name).write_text(text, errors="replace")


def read_note(path: Path) -> str:
    """Return the text of a file in the folder of a launcher, empty if it cannot be read."""
    with suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def _was_killed(mark: Path) -> bool:
    """Return whether the process that left the file `mark` has ended without a completion."""
    pid = read_note(mark)  # empty if the process has reported its end
    return pid.isdecimal() and not is_alive(int(pid))
