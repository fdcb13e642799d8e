"""Sends what processes that are gone have left in the spool."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trainwire.ingest.destinations import NamedServer
from trainwire.ingest.outage import is_passing
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.receipt import Receipt
from trainwire.ingest.sending.outbox import Outbox
from trainwire.ingest.sending.sender import Publisher
from trainwire.ingest.settings import Timing, server_of
from trainwire.ingest.spool.folder import About, SourceFolder, read_about, source_folders
from trainwire.ingest.spool.spool import Spool

logger = logging.getLogger("trainwire.ingest")

NO_LIMIT: Final = 1 << 62
SETTLE_S: Final = 10.0
"""How long workers may be silent on what they were sent; once they were, the other sources wait as told."""


@dataclass(frozen=True)
class Leftover:
    """What became of one source's leftovers: all of it stored, or how much of it is still on the disk."""

    about: About
    receipt: Receipt
    path: Path

    @property
    def is_done(self) -> bool:
        """Return whether the folder is gone: everything is stored or declared lost, or was discarded."""
        return not self.receipt.unsettled or self.is_discarded

    @property
    def is_discarded(self) -> bool:
        """Return whether the workers took everything and stored nothing, because the job was deleted."""
        return self.receipt.is_job_deleted and not any(self.receipt.spooled.values())


def send_leftovers(
    spool: Path,
    redis_url: str,
    timing: Timing,
    timeout_s: float,
    *,
    servers: Collection[str] = (),
    any_server: bool = False,
    stop: threading.Event | None = None,
    is_due: Callable[[Path], bool] = lambda _path: True,
) -> Iterator[Leftover]:
    """Send what is left for this server, the oldest source first, each for at most `timeout_s`.

    `servers` are the names under which the spool has messages for it; without any, its address. Messages of
    other servers stay, unless `any_server`. Folders for which `is_due` returns False are left for another time,
    and so are those of living sources. What cannot be read is logged, and stays. Ends at `stop`, and after the
    first source that could not be sent: the others would not fare better. Raises `OSError` where the system has no
    descriptors or no memory left.
    """
    names = servers or {server_of(redis_url)}
    patient = replace(timing, settle_s=max(timing.settle_s, SETTLE_S))
    for path in source_folders(spool):
        if stop is not None and stop.is_set():
            return
        about = read_about(path)
        if about is None or not (any_server or about.server in names) or not is_due(path):
            continue
        try:
            folder = SourceFolder.claim(path)
            leftover = None if folder is None else _send(folder, redis_url, patient, timeout_s)
        except OSError as exc:
            if is_passing(exc):
                raise  # the others cannot be read now either
            logger.warning("%s cannot be sent, and stays: %s", path, exc)
            continue
        if leftover is None:
            continue
        yield leftover
        if any(leftover.receipt.unsent.values()):
            return
        if not leftover.is_done:
            patient = timing


def _send(folder: SourceFolder, redis_url: str, timing: Timing, timeout_s: float) -> Leftover:
    try:
        outbox = Outbox.resumed(Spool(folder, NO_LIMIT))
    except OSError:
        folder.forget()  # for the process that tries it next
        raise
    outboxes = [outbox]
    if outbox.inferred_end is not None:
        # First: once the messages are acked, the spool no longer shows how many there were.
        outboxes.insert(0, Outbox.of_inferred_end(outbox.origin, outbox.inferred_end))
    publishers = [Publisher(each, NamedServer(redis_url), timing, threading.Event()) for each in outboxes]
    deadline = monotonic_s() + timeout_s
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.finish(max(0.0, deadline - monotonic_s()))
    receipt = _joined([each.receipt() for each in outboxes])
    if all(each.is_all_acked for each in outboxes):
        outbox.close()
    else:
        outbox.forget()
    return Leftover(folder.about, receipt, folder.path)


def _joined(receipts: Sequence[Receipt]) -> Receipt:
    """Return one receipt of outboxes that have no kind in common."""
    joined = Receipt(is_job_deleted=any(receipt.is_job_deleted for receipt in receipts))
    for receipt in receipts:
        for name, counts in vars(joined).items():
            if isinstance(counts, dict):
                counts.update(getattr(receipt, name))
    return joined
