"""Opens the spool of a source at its first message, retries after failures, and logs disk errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.process.forks import importing
from trainwire.ingest.settings.setting_groups import SpoolSettings
from trainwire.schemas.keys import Kind
from trainwire.schemas.wire.entries import Entry

if TYPE_CHECKING:
    from pathlib import Path

    from trainwire.ingest.servers.destinations import Destination
    from trainwire.ingest.spool.spool import Spool  # imported by the sender's thread: it is slow to import

logger = logging.getLogger("trainwire.ingest")

REOPEN_S: Final = 2.0
"""Seconds between two attempts to open the spool."""
WARN_EVERY_S: Final = 600.0
"""Shortest time, in seconds, between two warnings about disk errors."""


def spool_opener(settings: SpoolSettings, destination: Destination, origin: Origin) -> Callable[[], Spool] | None:
    """Return a function that creates the spool of the source `origin`; None if the spool is disabled."""
    folder = settings.folder
    return None if folder is None else partial(_new_spool, folder, settings.limit_bytes, destination, origin)


def _new_spool(folder: Path, limit_bytes: int, destination: Destination, origin: Origin) -> Spool:
    with importing():  # in the sender's thread: the start of the trainer does not wait for it
        from trainwire.ingest.spool.folder import About, SourceFolder  # noqa: PLC0415
        from trainwire.ingest.spool.spool import Spool  # noqa: PLC0415
    server = destination.server
    about = About(
        origin.job_id,
        origin.attempt,
        origin.source,
        origin.rank,
        server,
        origin.since_ns,
        origin.traceparent,
    )
    created = SourceFolder.create(folder, about)
    try:
        return Spool(created, limit_bytes)
    except OSError:
        created.remove()
        raise


class SpoolAccess:
    """Writes messages to the spool. A disk error is only logged: the caller then keeps the message in memory."""

    def __init__(self, job_id: int, open_spool: Callable[[], Spool] | None) -> None:
        self._job_id = job_id
        self._open_spool = open_spool
        self._tried_at: float | None = None
        self._warned_at: float | None = None
        self._is_failing = False
        self.spool: Spool | None = None

    @property
    def exists(self) -> bool:
        """Whether the spool is open and its folder still exists."""
        return self.spool is not None and os.path.exists(self.spool.folder.path)

    @property
    def is_full(self) -> bool:
        """Whether the spool has reached its size limit."""
        return self.spool is not None and self.spool.is_full

    @property
    def size_bytes(self) -> int:
        """The size of the messages on the disk in bytes."""
        return 0 if self.spool is None else self.spool.size_bytes

    def open(self, *, at_once: bool = False) -> bool:
        """Open the spool if it is not open; return whether this call has opened it.

        After a failure, a call tries again only if `REOPEN_S` has passed or `at_once` is True.
        """
        if self.spool is not None or self._open_spool is None:
            return False
        now = monotonic_s()
        if not at_once and self._tried_at is not None and now - self._tried_at < REOPEN_S:
            return False
        self._tried_at = now
        try:
            self.spool = self._open_spool()
        except (OSError, ImportError) as exc:  # ImportError: no file descriptor is left to read a module
            self._note_failure("there is no spool", exc)
            return False
        self._note_success()
        return True

    def append(self, kind: Kind, seq: int, items: int, entry: Entry) -> bool:
        """Write message `seq`, which has `items` lines or points, to the spool; return whether it was written."""
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
        """Write the counts of dropped lines and points to the spool.

        After a disk error, the next call writes them.
        """
        if self.spool is not None:
            with suppress(OSError):
                self.spool.note_drops(drops)

    def release(self, kind: Kind, acked: int) -> None:
        """Delete the files whose messages are all acknowledged, except the newest.

        If a file cannot be deleted, the next run sends its messages again.
        """
        if self.spool is not None:
            with suppress(OSError):
                self.spool.release(kind, acked)

    def read(self, kind: Kind, seq: int) -> Mapping[int, Entry]:
        """Return message `seq` and some messages that follow it, by number; {} without a spool.

        Raises `OSError` for a disk error.
        """
        return {} if self.spool is None else self.spool.read(kind, seq)

    def close(self, *, is_needed: bool) -> None:
        """Delete the spool; if it `is_needed`, keep it and unlock it for the process that sends the rest."""
        if self.spool is not None:
            if is_needed:
                self.spool.close()
            else:
                self.spool.remove()

    def _note_failure(self, problem: str, exc: Exception) -> None:
        now = monotonic_s()
        is_due = self._warned_at is None or now - self._warned_at >= WARN_EVERY_S
        if not self._is_failing and is_due:
            self._warned_at = now
            cause = getattr(exc, "strerror", None) or exc
            logger.warning("job %s: %s (%s): messages are kept in memory", self._job_id, problem, cause)
        self._is_failing = True

    def _note_success(self) -> None:
        if self._is_failing:
            self._is_failing = False
            logger.warning("job %s: the disk takes messages again", self._job_id)
