"""The spool of a living source: opened with its first message, and again later where the system refused it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from trainwire.ingest.process.clock import monotonic_s
from trainwire.schemas.keys import Kind
from trainwire.schemas.wire import Entry

if TYPE_CHECKING:
    from trainwire.ingest.spool.spool import (
        Spool,  # opened by the sender's thread: its imports cost a trainer's start
    )

logger = logging.getLogger("trainwire.ingest")

REOPEN_S: Final = 2.0
"""How long it waits before it tries to open the spool again."""
WARN_EVERY_S: Final = 600.0
"""A disk that fails again and again is one warning in so long a time."""


class SpoolAccess:
    """Writes to the spool where the disk takes it; an error is a warning, and messages stay in memory."""

    def __init__(self, job_id: int, open_spool: Callable[[], Spool] | None) -> None:
        self._job_id = job_id
        self._open_spool = open_spool
        self._tried_at: float | None = None
        self._warned_at: float | None = None
        self._is_failing = False
        self.spool: Spool | None = None

    @property
    def exists(self) -> bool:
        """Return whether there is a spool that nobody has removed."""
        return self.spool is not None and os.path.exists(self.spool.folder.path)

    @property
    def is_full(self) -> bool:
        """Return whether the spool has reached its limit."""
        return self.spool is not None and self.spool.is_full

    def open(self, *, at_once: bool = False) -> bool:
        """Open the spool where it is not yet, every `REOPEN_S` or `at_once`; return whether it was opened now."""
        if self.spool is not None or self._open_spool is None:
            return False
        now = monotonic_s()
        if not at_once and self._tried_at is not None and now - self._tried_at < REOPEN_S:
            return False
        self._tried_at = now
        try:
            self.spool = self._open_spool()
        except (OSError, ImportError) as exc:  # ImportError: no descriptor is left to read a module
            self._note_failure("there is no spool", exc)
            return False
        self._note_success()
        return True

    def append(self, kind: Kind, seq: int, items: int, entry: Entry) -> bool:
        """Write a message to the disk; return whether the disk took it."""
        if self.spool is None:
            return False
        try:
            self.spool.append(kind, seq, items, entry)
        except OSError as exc:
            self._note_failure(f"the spool {self.spool.folder.path} does not take messages", exc)
            return False
        self._note_success()
        return True

    def note_drops(self, drops: Mapping[str, int]) -> None:
        """Write how much of what was dropped; after an error it is written with the next call."""
        if self.spool is not None:
            with suppress(OSError):
                self.spool.note_drops(drops)

    def release(self, kind: Kind, acked: int) -> None:
        """Remove what is committed in Postgres; a file that cannot be removed is sent again by the next run."""
        if self.spool is not None:
            with suppress(OSError):
                self.spool.release(kind, acked)

    def read(self, kind: Kind, seq: int) -> Mapping[int, Entry]:
        """Return message `seq` and some that follow it. Raises `OSError` as the disk does."""
        return {} if self.spool is None else self.spool.read(kind, seq)

    def close(self, *, is_needed: bool) -> None:
        """Remove the spool, or where it `is_needed` leave it to the process that sends the rest."""
        if self.spool is not None:
            if is_needed:
                self.spool.close()
            else:
                self.spool.remove()

    def _note_failure(self, what: str, exc: Exception) -> None:
        now = monotonic_s()
        is_due = self._warned_at is None or now - self._warned_at >= WARN_EVERY_S
        if not self._is_failing and is_due:
            self._warned_at = now
            why = getattr(exc, "strerror", None) or exc
            logger.warning("job %s: %s (%s): messages are kept in memory", self._job_id, what, why)
        self._is_failing = True

    def _note_success(self) -> None:
        if self._is_failing:
            self._is_failing = False
            logger.info("job %s: the disk takes messages again", self._job_id)
