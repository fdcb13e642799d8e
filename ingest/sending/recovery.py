"""Sends the messages that ended processes have left in the spool."""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.receipt import Receipt
from trainwire.ingest.sending.buffer import Buffer
from trainwire.ingest.sending.outbox import Outbox
from trainwire.ingest.sending.sender import Sender
from trainwire.ingest.servers.destinations import NamedServer
from trainwire.ingest.servers.outage import is_passing
from trainwire.ingest.servers.server_names import server_of
from trainwire.ingest.settings.setting_groups import Timing
from trainwire.ingest.spool.folder import About, SourceFolder, read_about, remove_abandoned, source_folders
from trainwire.ingest.spool.spool import Spool
from trainwire.schemas.tracing import checked_traceparent
from trainwire.schemas.wire.entries import INFERRED_END
from trainwire.schemas.wire.messages import Completion

logger = logging.getLogger("trainwire.ingest")

NO_LIMIT: Final = 1 << 62
SETTLE_S: Final = 10.0
"""Minimum of `settle_s` while ended sources are sent, up to the first one that is not acknowledged completely."""


@dataclass(frozen=True)
class Leftover:
    """The result of sending the messages that one ended source left in the spool: its receipt, and its folder."""

    about: About
    receipt: Receipt
    path: Path
    is_refused: bool = False
    """Whether the server refused the messages with the given token."""

    @property
    def is_done(self) -> bool:
        """Whether the source's folder was deleted: all its messages are stored, lost or discarded."""
        return not self.receipt.unsettled or self.is_discarded

    @property
    def is_discarded(self) -> bool:
        """Whether the job was deleted: the workers have acknowledged all messages and stored none."""
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
    """Send the messages that ended sources left in the spool, the oldest source first; yield each result.

    First deletes abandoned folders without messages. The function ends when `stop` is set, and after the first
    source that could not be sent, because the next ones would fail too; a refused source is skipped. Folders of
    live sources are skipped as well. A folder that cannot be read is logged, and stays. Raises `OSError` if the
    system has no file descriptors or memory left.

    Args:
        spool: the folder of the spool.
        url: the address of Redis or of a gateway.
        timing: the intervals of the sender.
        timeout_s: the time limit for each source.
        servers: the server names in the spool that stand for `url`; by default the name of `url`.
        any_server: whether to send the messages for other servers too.
        stop: an event that ends the function before the next source.
        is_due: returns False for folders to skip this time.
        token: the access token for a gateway.
    """
    names = servers or {server_of(url)}
    destination = NamedServer(url, token)
    source_timing = replace(timing, settle_s=max(timing.settle_s, SETTLE_S))
    remove_abandoned(spool)
    for path in source_folders(spool):
        if stop is not None and stop.is_set():
            return
        about = read_about(path)
        if about is None or not (any_server or about.server in names) or not is_due(path):
            continue
        leftover = _claim_and_send(path, destination, source_timing, timeout_s)
        if leftover is None:
            continue
        yield leftover
        if any(leftover.receipt.unsent.values()) and not leftover.is_refused:
            return
        if not leftover.is_done:
            source_timing = timing


def is_of_run(path: Path, origin: Origin) -> bool:
    """Return whether the folder of a source is that of a process of the same run as `origin`."""
    about = read_about(path)
    return about is not None and (about.job_id, about.since_ns) == (origin.job_id, origin.since_ns)


def _claim_and_send(path: Path, destination: NamedServer, timing: Timing, timeout_s: float) -> Leftover | None:
    """Send the messages in a folder; return None if another process has locked it, or if it cannot be read."""
    try:
        folder = SourceFolder.claim(path)
        return None if folder is None else _send(folder, destination, timing, timeout_s)
    except OSError as exc:
        if is_passing(exc):
            raise  # the other folders cannot be read now either
        logger.warning("%s cannot be sent, and stays: %s", path, exc)
        return None


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
    """Return an outbox with the messages in an ended process's spool, and a completion inferred for this process.

    The completion is None if the process has sent its own, or has left no messages and no counts of drops. It has
    the numbers of messages according to the spool. The caller sends it as a message of another source
    (`outbox_of_inferred_end`), so that its number stays free for the completion of the process itself.
    """
    about, spans = spool.folder.about, spool.spans()
    buffer = Buffer(0, threading.Event())
    buffer.close(None)
    buffer.restore_dropped(spool.drops)
    origin = Origin(
        about.job_id,
        about.attempt,
        about.source,
        about.rank,
        about.since_ns,
        traceparent=checked_traceparent(about.traceparent),
    )
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
    """Return an outbox with one message: the inferred completion of the source `origin`.

    The name of its own source is computed from the content, so that a second recovery sends the same message
    again.
    """
    digest = zlib.crc32(repr((end.produced, end.dropped)).encode())
    buffer = Buffer(0, threading.Event())
    buffer.close(end)
    return Outbox(origin._replace(source=f"{origin.source}{INFERRED_END}{digest:08x}"), buffer)


def _joined(receipts: Sequence[Receipt]) -> Receipt:
    """Merge receipts into one; no kind of messages may occur in two of them."""
    joined = Receipt(is_job_deleted=any(receipt.is_job_deleted for receipt in receipts))
    for receipt in receipts:
        for name, counts in vars(joined).items():
            if isinstance(counts, dict):
                counts.update(getattr(receipt, name))
    return joined
