"""Stores the numbered messages of one source, in the spool and in memory, until they are acknowledged."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.receipt import Receipt
from trainwire.ingest.sending.buffer import Buffer
from trainwire.ingest.sending.encoding import BodyEncoder, item_count, joined
from trainwire.ingest.sending.heartbeat import UnsentCounts
from trainwire.ingest.sending.unacked import EncodedMessage, Range, UnackedMessages
from trainwire.ingest.settings.setting_groups import FullPolicy
from trainwire.ingest.spool.access import SpoolAccess
from trainwire.schemas.keys import KINDS, Kind
from trainwire.schemas.wire.entries import Entry, Loss, encode_loss
from trainwire.schemas.wire.heartbeats import shows_progress
from trainwire.schemas.wire.messages import ATTEMPT_UNKNOWN, KIND_OF_BODY, Body, Completion

if TYPE_CHECKING:
    from trainwire.ingest.spool.spool import Spool  # imported by the sender's thread: it is slow to import

logger = logging.getLogger("trainwire.ingest")

BODIES_PER_CUT: Final = 64
"""Maximum number of messages that one call of `cut` makes, so that it does not hold the lock for long."""
MEMORY_BYTES: Final = 32 * 1024 * 1024
"""Limit of the messages that are kept in memory; further ones are in the spool only, and read back to be sent."""
NAMED_LOSSES: Final = 20
"""Maximum number of lost ranges for which a warning is logged; `trainwire status` shows all of them."""
DROP_ORDER: Final[tuple[Kind, ...]] = ("logs", "metrics")
"""The kinds that are dropped when the spool is full, in this order; other kinds are never dropped."""


class Outbox:
    """Makes numbered messages from the values in a buffer, and keeps them until they are acknowledged.

    The messages of each kind are numbered 1, 2, 3 ... If there is a spool, each message is written to it first.
    Without a spool, or if the disk refuses a message, the message is kept in memory only. The thread that calls
    `cut` opens the spool for the first message.
    """

    def __init__(
        self,
        origin: Origin,
        buffer: Buffer,
        open_spool: Callable[[], Spool] | None = None,
        policy: FullPolicy = "drop_oldest_logs",
    ) -> None:
        self.origin = origin
        self._buffer = buffer
        self._spool = SpoolAccess(origin.job_id, open_spool)
        self._policy = policy
        self._lock = threading.Lock()  # taken before the buffer's, never after it
        self._messages: dict[Kind, UnackedMessages] = {
            kind: UnackedMessages(partial(self._spool.read, kind), partial(self._declare_lost, kind))
            for kind in KINDS
        }
        self._bodies: Iterator[tuple[Body, int]] = iter(())
        self._next: tuple[Body, int] | None = None
        self._encoder = BodyEncoder(origin, buffer.count_dropped)
        self._declared: set[tuple[Kind, int]] = set()
        self._is_job_deleted = False
        self.activity = 0
        """Number of bodies that show progress of the training, and not only metrics of the machine."""

    def resume(self, spans: Mapping[Kind, Range]) -> None:
        """Load the messages that another process has left in the spool.

        `spans` has first and last number of each kind.
        """
        self._spool.open()
        for kind, (first, last) in spans.items():
            self._messages[kind].resume(first, last)

    def cut(self) -> bool:
        """Make at most `BODIES_PER_CUT` messages from the buffer's values; return whether there may be more."""
        with self._lock:
            has_more = self._cut_some()
            self._spool.note_drops(self._buffer.dropped)
        return has_more

    def open_spool(self) -> None:
        """Try to open the spool at once if it is not open, even if this has just failed."""
        with self._lock:
            self._open(at_once=True)

    def to_send(self, budget_bytes: int, *, may_join: bool = False) -> dict[Kind, list[EncodedMessage]]:
        """Return the next messages to send by kind, up to about `budget_bytes` for each kind.

        With `may_join`, consecutive small messages are joined into one entry.
        """
        with self._lock:
            batches = {kind: messages.to_send(budget_bytes) for kind, messages in self._messages.items()}
        return {kind: joined(kind, batch) if may_join else batch for kind, batch in batches.items() if batch}

    @property
    def unsent_bytes(self) -> int:
        """The approximate memory of the messages that were not sent yet, in bytes."""
        with self._lock:
            return sum(messages.unsent_bytes for messages in self._messages.values())

    def mark_sent(self, kind: Kind, seqs: Iterable[int]) -> None:
        """Record that Redis has the messages of `kind` with these numbers."""
        with self._lock:
            self._messages[kind].mark_sent(seqs)

    def release(self, kind: Kind, acked: int, lost: int = 0) -> bool:
        """Delete the messages up to `acked`, which Postgres has committed; return whether `acked` has increased.

        `lost` is the number of those that the workers count as lost, because this process or an earlier one has
        declared them lost.
        """
        with self._lock:
            messages = self._messages[kind]
            before = messages.acked
            freed_bytes = messages.release(acked)
            messages.lost = lost
            self._spool.release(kind, messages.acked)
        self._buffer.note_message(0, -freed_bytes)
        return messages.acked > before

    def step_back(self, kind: Kind, acked: int) -> bool:
        """Lower the acknowledged number to `acked` if it is higher, and return whether it was.

        The workers report a lower number after a restore of Postgres or Redis. Messages that still exist can
        then be sent again.
        """
        with self._lock:
            is_below = self._messages[kind].step_back(acked)
        if is_below:
            logger.info(
                "job %s: the workers have %s up to message %s only, though more was acknowledged: Postgres or "
                "Redis was restored to an older state",
                *(self.origin.job_id, kind, acked),
            )
        return is_below

    def note_job_deleted(self) -> None:
        """Record that the job was deleted: the workers acknowledge its messages and store none of them."""
        if not self._is_job_deleted:
            self._is_job_deleted = True
            logger.warning("job %s was deleted: nothing more of it is stored", self.origin.job_id)

    def send_again(self, kind: Kind, ranges: Iterable[Range]) -> None:
        """Queue messages of `kind` to be sent again, because Redis has lost them."""
        with self._lock:
            self._messages[kind].send_again(ranges)

    def sent_kinds(self) -> list[Kind]:
        """Return the kinds of which this process has sent messages."""
        with self._lock:
            return [kind for kind, messages in self._messages.items() if messages.has_sent]

    def awaited(self) -> dict[Kind, int]:
        """Return, by kind, the number of the newest sent message if it is not acknowledged."""
        with self._lock:
            newest = {kind: messages.awaited for kind, messages in self._messages.items()}
        return {kind: seq for kind, seq in newest.items() if seq is not None}

    @property
    def is_all_sent(self) -> bool:
        """Whether Redis has all messages, and no value is buffered."""
        return self._is_all(lambda messages: messages.is_all_sent)

    @property
    def is_all_spooled(self) -> bool:
        """Whether all messages are in the spool or acknowledged, and no value is buffered."""
        return self._spool.exists and self._is_all(lambda messages: not messages.only_in_memory)

    @property
    def is_all_acked(self) -> bool:
        """Whether all messages are acknowledged, and no value is buffered."""
        return self._is_all(lambda messages: messages.acked == messages.last)

    def receipt(self) -> Receipt:
        """Return the receipt: the counts of this source's messages by state (stored, sent, spooled, lost ...)."""
        with self._lock:
            receipt = Receipt(dropped=self._buffer.dropped, is_job_deleted=self._is_job_deleted)
            is_kept = self._spool.exists
            for kind, messages in self._messages.items():
                if messages.last:
                    receipt.produced[kind] = messages.last
                    receipt.stored[kind] = 0 if self._is_job_deleted else max(messages.acked - messages.lost, 0)
                    receipt.sent[kind] = messages.sent
                    receipt.unsent[kind] = messages.last - messages.sent
                    spooled = messages.last - messages.acked - messages.only_in_memory
                    receipt.spooled[kind] = spooled if is_kept else 0
                    if messages.lost:
                        receipt.lost[kind] = messages.lost
            return receipt

    def unsent_counts(self) -> UnsentCounts:
        """Return the number of unsent messages, the size of the spool, and the number of dropped items."""
        with self._lock:
            unsent = sum(messages.last - messages.sent for messages in self._messages.values())
            return UnsentCounts(unsent, self._spool.size_bytes, sum(self._buffer.dropped.values()))

    def close(self) -> None:
        """Delete the spool if everything is acknowledged; else unlock it for the process that sends the rest."""
        is_all_acked = self.is_all_acked
        with self._lock:
            self._spool.close(is_needed=not is_all_acked)

    def forget(self) -> None:
        """Unlock the spool and keep its files. Called in a forked child, where the files belong to the parent."""
        self._spool.close(is_needed=True)

    def _is_all(self, is_done: Callable[[UnackedMessages], bool]) -> bool:
        """Return whether no value is buffered and `is_done` returns True for the messages of each kind."""
        with self._lock:
            return self._buffer.is_empty and all(map(is_done, self._messages.values()))

    def _cut_some(self) -> bool:
        for _ in range(BODIES_PER_CUT):
            if self._policy == "block" and not self._buffer.is_closed and self._spool.is_full:
                return False  # the values wait in the buffer, and the training for room in it
            if self._next is None:  # otherwise there was no memory to encode it
                self._next = next(self._bodies, None)
            if self._next is None:
                self._bodies = self._buffer.take_bodies(self.origin.rank)
                self._next = next(self._bodies, None)
            if self._next is None:
                return False
            self._open()
            body, buffered_bytes = self._next
            self._buffer.note_message(buffered_bytes, self._add(body))
            self.activity += shows_progress(body)
            self._next = None
        return True

    def _add(self, body: Body) -> int:
        """Make the next message from a body; return its size in memory.

        The size is 0 if the message is in the spool only, or was dropped.
        """
        kind = KIND_OF_BODY[type(body)]
        messages = self._messages[kind]
        if kind in DROP_ORDER and not self._make_room():
            self._buffer.count_dropped(kind, item_count(body))
            return 0
        if isinstance(body, Completion) and body.of is None:
            self._count_messages(body)
        if self.origin.attempt == ATTEMPT_UNKNOWN or isinstance(body, Completion):
            body.started_at = body.started_at or self.origin.since_ns
            body.resume_step = self.origin.resume_step
        seq, items = messages.last + 1, item_count(body)
        entry = self._encoder.encode(kind, seq, body)
        if entry is None:
            return 0
        message = EncodedMessage(seq, entry, self._spool.append(kind, seq, items, entry), items)
        in_memory = not message.is_spooled or self._buffer.unacked_bytes + message.size_bytes <= MEMORY_BYTES
        messages.append(message, in_memory=in_memory)
        return message.size_bytes if in_memory else 0

    def _open(self, *, at_once: bool = False) -> None:
        """Open the spool if it is not open yet, and write the messages that are only in memory to it."""
        if self._spool.open(at_once=at_once):
            for kind, messages in self._messages.items():
                messages.spool(partial(self._spool.append, kind))

    def _declare_lost(self, kind: Kind, first: int, last: int, reason: str) -> Entry:
        """Return an entry that makes the workers count messages `first` to `last` as lost, and not as missing."""
        origin = self.origin
        if (kind, first) not in self._declared and len(self._declared) < NAMED_LOSSES:
            self._declared.add((kind, first))
            logger.warning(
                "job %s: messages %s to %s of its %s cannot be sent any more (%s): those that Postgres has not "
                "count as lost",
                *(origin.job_id, first, last, kind, reason),
            )
        loss = Loss(last=last, reason=reason, started_at=origin.since_ns)
        return encode_loss(origin.job_id, origin.attempt, origin.source, first, loss)

    def _make_room(self) -> bool:
        """Drop old messages if the spool is full and the policy allows it; return whether a new one may be added.

        With the policy `block` it always may, because `cut` itself waits for room.
        """
        if not self._spool.is_full or self._policy == "block":
            return True
        return self._policy == "drop_oldest_logs" and any(self._drop_oldest(kind) for kind in DROP_ORDER)

    def _drop_oldest(self, kind: Kind) -> bool:
        """Drop the oldest file of unsent messages of a kind; return False if there is none or the disk fails."""
        assert self._spool.spool is not None  # noqa: S101 - it is full
        messages = self._messages[kind]
        try:
            dropped = self._spool.spool.drop_oldest(kind, messages.sent)
        except OSError:
            return False
        if dropped is None:
            return False
        self._buffer.note_message(0, -messages.forget(dropped.first, dropped.last))
        self._buffer.count_dropped(kind, dropped.items)
        return True

    def _count_messages(self, completion: Completion) -> None:
        """Set `produced` and `dropped` of the completion; the completion itself is included in the count."""
        produced: dict[str, int] = {
            kind: messages.last for kind, messages in self._messages.items() if messages.last
        }
        completion.produced = produced | {"completions": self._messages["completions"].last + 1}
        completion.dropped = self._buffer.dropped or None
