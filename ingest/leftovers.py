"""Sends what processes that are gone have left in the spool."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ingest.outbox import Outbox
from ingest.publisher import Publisher
from ingest.receipt import Receipt
from ingest.settings import Timing, server_of
from ingest.spool.folder import About, SourceFolder, read_about, source_folders
from ingest.spool.spool import Spool

logger = logging.getLogger("trainwire.ingest")

NO_LIMIT: Final = 1 << 62
SETTLE_S: Final = 10.0
"""How long workers may be silent on what they were sent; once they were, the other sources wait as told."""


@dataclass(frozen=True)
class Leftover:
    """What became of one source's leftovers: all of it stored, or how much of it is still on the disk."""

    about: About
    receipt: Receipt

    @property
    def is_done(self) -> bool:
        """Tell whether the folder is gone: everything is committed in Postgres, or was discarded."""
        return self.receipt.stored == self.receipt.produced or self.is_discarded

    @property
    def is_discarded(self) -> bool:
        """Tell whether the workers took everything and stored nothing, because the job was deleted."""
        return self.receipt.is_job_deleted and not any(self.receipt.spooled.values())


def send_leftovers(
    spool: Path,
    redis_url: str,
    timing: Timing,
    timeout_s: float,
    *,
    any_server: bool = False,
    stop: threading.Event | None = None,
    bells_url: str | None = None,
) -> Iterator[Leftover]:
    """Send what is left for this server, the oldest source first, each for at most `timeout_s`.

    `redis_url` has the streams; `bells_url` is the broker where that is another server.

    Living sources are let alone, and what was meant for another server, unless `any_server`. What cannot be read
    is said, and stays. Ends at `stop`, and after the first source that could not be sent: the others would not
    fare better.
    """
    server = server_of(redis_url)
    patient = replace(timing, settle_s=max(timing.settle_s, SETTLE_S))
    for path in source_folders(spool):
        if stop is not None and stop.is_set():
            return
        about = read_about(path)
        if about is None or not (any_server or about.server == server):
            continue
        try:
            folder = SourceFolder.claim(path)
            leftover = None if folder is None else _send(folder, redis_url, patient, timeout_s, bells_url)
        except OSError as exc:
            logger.warning("%s cannot be sent, and stays: %s", path, exc)
            continue
        if leftover is None:
            continue
        yield leftover
        if any(leftover.receipt.unsent.values()):
            return
        if not leftover.is_done:
            patient = timing


def _send(
    folder: SourceFolder, redis_url: str, timing: Timing, timeout_s: float, bells_url: str | None
) -> Leftover:
    outbox = Outbox.resumed(Spool(folder, NO_LIMIT))
    publisher = Publisher(outbox, redis_url, timing, threading.Event(), bells_url=bells_url)
    publisher.start()
    publisher.finish(timeout_s)
    receipt = outbox.receipt()
    outbox.close()
    return Leftover(folder.about, receipt)
