"""Recovers the spool: sends the messages of processes that have ended."""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trainwire.ingest.destinations import NamedServer
from trainwire.ingest.origin import Origin
from trainwire.ingest.outage import is_passing
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.receipt import Receipt
from trainwire.ingest.sending.buffer import Buffer
from trainwire.ingest.sending.outbox import Outbox
from trainwire.ingest.sending.sender import Sender
from trainwire.ingest.server_names import server_of
from trainwire.ingest.settings import Timing
from trainwire.ingest.spool.folder import About, SourceFolder, read_about, source_folders
from trainwire.ingest.spool.spool import Spool
from trainwire.schemas.messages import Completion
from trainwire.schemas.wire import INFERRED_END

logger = logging.getLogger("trainwire.ingest")

NO_LIMIT: Final = 1 << 62
SETTLE_S: Final = 10.0
"""Time for which the recovery waits for a new acknowledgement of the first source that lacks some."""


@dataclass(frozen=True)
class Leftover:
    """The result of the recovery of one source: its receipt, and its folder in the spool."""

    about: About
    receipt: Receipt
    path: Path
    is_refused: bool = False
    """Whether the server did not accept its messages with this token."""

    @property
    def is_done(self) -> bool:
        """Return whether the folder was deleted: everything is stored, declared lost or discarded."""
        return not self.receipt.unsettled or self.is_discarded

    @property
    def is_discarded(self) -> bool:
        """Return whether the workers have acknowledged everything and stored nothing, as the job was deleted."""
        return self.receipt.is_job_deleted and not any(self.receipt.spooled.values())


def send_leftovers(
    spool: Path,
    url: str,
    timing: Timing,
    timeout_s: float,
    *,
    servers: Collection[str] = (),
    any_server: bool = False,
    stop: threading.Event | None = None,
    is_due: Callable[[Path], bool] = lambda _path: True,
    token: str | None = None,
) -> Iterator[Leftover]:
    """Send the messages that ended sources left in the spool, oldest source first, each for at most `timeout_s`.

    The server is Redis, or a gateway with this `token`.
    `servers` are the names under which the spool has messages for it; without any, its address. Messages of
    other servers stay, unless `any_server`. Folders for which `is_due` returns False are left for another time,
    and so are those of living sources. What cannot be read is logged, and stays. Ends at `stop`, and after the
    first source that could not be sent, unless it was refused: the others would not fare better. Raises `OSError`
    where the system has no descriptors or no memory left.
    """
    names = servers or {server_of(url)}
    destination = NamedServer(url, token)
    patient = replace(timing, settle_s=max(timing.settle_s, SETTLE_S))
    for path in source_folders(spool):
        if stop is not None and stop.is_set():
            return
        about = read_about(path)
        if about is None or not (any_server or about.server in names) or not is_due(path):
            continue
        try:
            folder = SourceFolder.claim(path)
            leftover = None if folder is None else _send(folder, destination, patient, timeout_s)
        except OSError as exc:
            if is_passing(exc):
                raise  # the other folders cannot be read now either
            logger.warning("%s cannot be sent, and stays: %s", path, exc)
            continue
        if leftover is None:
            continue
        yield leftover
        if any(leftover.receipt.unsent.values()) and not leftover.is_refused:
            return
        if not leftover.is_done:
            patient = timing


def _send(folder: SourceFolder, destination: NamedServer, timing: Timing, timeout_s: float) -> Leftover:
    try:
        outbox, inferred_end = resumed(Spool(folder, NO_LIMIT))
    except OSError:
        folder.forget()  # for the process that tries it next
        raise
    outboxes = [outbox]
    if inferred_end is not None:
        # First: once the messages are acknowledged, the spool no longer shows how many there were.
        outboxes.insert(0, outbox_of_inferred_end(outbox.origin, inferred_end))
    senders = [Sender(each, destination, timing, threading.Event()) for each in outboxes]
    deadline = monotonic_s() + timeout_s
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.finish(max(0.0, deadline - monotonic_s()))
    receipt = _joined([each.receipt() for each in outboxes])
    if all(each.is_all_acked for each in outboxes):
        outbox.close()
    else:
        outbox.forget()
    return Leftover(folder.about, receipt, folder.path, any(sender.is_refused for sender in senders))


def resumed(spool: Spool) -> tuple[Outbox, Completion | None]:
    """Return an outbox of the messages that another process has left in its spool, and the inferred end.

    The inferred end is for a process that was killed before its completion: it has the numbers of the messages, as
    far as the spool shows them. It is sent as a message of another source (`outbox_of_inferred_end`): the
    completion of the process itself keeps its number.
    """
    about, spans = spool.folder.about, spool.spans()
    buffer = Buffer(0, threading.Event())
    buffer.close(None)
    buffer.restore_dropped(spool.drops)
    origin = Origin(about.job_id, about.attempt, about.source, about.rank, about.since_ns)
    outbox = Outbox(origin, buffer, lambda: spool)
    outbox.resume(spans)
    if "completions" in spans or not (spans or spool.drops):
        return outbox, None
    return outbox, Completion(
        ts=time.time_ns(),
        status="ended",
        of=origin.source,
        rank=origin.rank,
        produced={kind: span.last for kind, span in spans.items()},
        dropped=spool.drops or None,
        started_at=origin.since_ns,
    )


def outbox_of_inferred_end(origin: Origin, end: Completion) -> Outbox:
    """Return an outbox of one message: the inferred end of the source `origin`.

    Its source is named after the content, so that a second recovery of the same spool sends the same message.
    """
    digest = zlib.crc32(repr((end.produced, end.dropped)).encode())
    buffer = Buffer(0, threading.Event())
    buffer.close(end)
    return Outbox(origin._replace(source=f"{origin.source}{INFERRED_END}{digest:08x}"), buffer)


def _joined(receipts: Sequence[Receipt]) -> Receipt:
    """Return one receipt of outboxes with different kinds."""
    joined = Receipt(is_job_deleted=any(receipt.is_job_deleted for receipt in receipts))
    for receipt in receipts:
        for name, counts in vars(joined).items():
            if isinstance(counts, dict):
                counts.update(getattr(receipt, name))
    return joined
