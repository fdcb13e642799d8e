"""Tracks the unacknowledged messages of one kind: which of them are sent, spooled, or only in memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Final, NamedTuple, TypeAlias

from trainwire.schemas.wire.entries import Entry

Range: TypeAlias = tuple[int, int]
"""First and last sequence number, both inclusive."""

ENTRY_OVERHEAD_BYTES: Final = 600
"""Memory of an entry in addition to its body, measured on CPython 3.11."""

RESTORED: Final = "restored"
"""The reason of a loss: the message was acknowledged and deleted, then an older state of Postgres was restored."""
DAMAGED: Final = "damaged"
"""The reason of a loss: the message cannot be read from the spool."""


class EncodedMessage(NamedTuple):
    """One message as a stream entry; `is_spooled` is True if the spool has it too.

    An entry that declares a range of messages lost has the number of the last message in the range.
    """

    seq: int
    entry: Entry
    is_spooled: bool = False
    items: int = 1
    """Number of lines or points in the message."""

    @property
    def size_bytes(self) -> int:
        """The approximate memory of the message in bytes."""
        return sys.getsizeof(self.entry["body"]) + ENTRY_OVERHEAD_BYTES


class UnackedMessages:
    """Tracks messages 1, 2, 3 ... of one kind; always `acked <= sent <= last`.

    `load` reads messages that are not in memory: it returns entries by number, beginning with the given number.
    For messages that it does not return, `declare_lost` (first, last, reason) makes an entry that lets the
    workers count them as lost.
    """

    def __init__(
        self, load: Callable[[int], Mapping[int, Entry]], declare_lost: Callable[[int, int, str], Entry]
    ) -> None:
        self.last = 0
        self.sent = 0
        self.acked = 0
        self.lost = 0
        """The number of acknowledged messages that the workers count as lost."""
        self._load = load
        self._declare_lost = declare_lost
        self._began_at = 0
        self._deleted = 0  # up to here messages were acknowledged once: their files may be deleted
        self._in_memory: dict[int, EncodedMessage] = {}  # in order of seq
        self._loaded: dict[int, EncodedMessage] = {}
        self._resend: list[Range] = []  # in order, disjoint

    def append(self, message: EncodedMessage, *, in_memory: bool = True) -> None:
        """Add the message with the next number.

        If `in_memory` is False, only its number is kept, and `load` reads the message.
        """
        self.last = message.seq
        if in_memory:
            self._in_memory[message.seq] = message

    def spool(self, append: Callable[[int, int, Entry], bool]) -> None:
        """Write the messages that are only in memory to the spool: call `append` (seq, items, entry) for each."""
        for seq, message in self._in_memory.items():
            if not message.is_spooled:
                self._in_memory[seq] = message._replace(is_spooled=append(seq, message.items, message.entry))

    def resume(self, first: int, last: int) -> None:
        """Start with the messages `first` to `last` that another process left in the spool; `load` reads them."""
        self.acked = self.sent = self._began_at = self._deleted = first - 1
        self.last = last

    def forget(self, first: int, last: int) -> int:
        """Remove messages `first` to `last` from memory; return the number of bytes freed."""
        self._loaded.clear()
        removed = [self._in_memory.pop(seq, None) for seq in range(first, last + 1)]
        return sum(message.size_bytes for message in removed if message is not None)

    def to_send(self, budget_bytes: int) -> list[EncodedMessage]:
        """Return the next messages to send: resends first, then new ones; at least one if there is any."""
        batch: list[EncodedMessage] = []
        size = 0
        for first, last in [*self._resend, (self.sent + 1, self.last)]:
            seq = first
            while seq <= last:
                message = self._get(seq, last)
                size += message.size_bytes
                if batch and size > budget_bytes:
                    return batch
                batch.append(message)
                seq = message.seq + 1
        return batch

    def mark_sent(self, seqs: Iterable[int]) -> None:
        """Record that Redis has the messages with these numbers, the first ones that `to_send` returned."""
        newest = max(seqs, default=0)
        self._resend = list(_above(newest, self._resend))
        self.sent = max(self.sent, newest)

    def release(self, acked: int) -> int:
        """Remove all messages up to `acked` from memory; return the number of bytes freed.

        Messages that this process has not sent are kept: their acknowledgement may be older than a restore of
        Postgres.
        """
        self.acked = max(self.acked, min(acked, self.sent))
        self._deleted = max(self._deleted, self.acked)
        self._resend = list(_above(self.acked, self._resend))
        released = list(takewhile(lambda seq: seq <= self.acked, self._in_memory))
        return sum(self._in_memory.pop(seq).size_bytes for seq in released)

    def step_back(self, acked: int) -> bool:
        """Set `acked` to a lower number and return True; return False if the number is not lower."""
        is_below = acked < self.acked
        self.acked = min(self.acked, acked)
        return is_below

    def send_again(self, ranges: Iterable[Range]) -> None:
        """Queue messages in `ranges` to be sent again, before all new messages.

        Messages that are acknowledged or have not been sent yet are ignored.
        """
        wanted = [(max(first, self.acked + 1), min(last, self.sent)) for first, last in ranges]
        self._resend = _joined([*self._resend, *(each for each in wanted if each[0] <= each[1])])

    @property
    def is_all_sent(self) -> bool:
        """Whether Redis has every message."""
        return self.sent == self.last and not self._resend

    @property
    def unsent_bytes(self) -> int:
        """The approximate memory of the messages that were not sent yet, in bytes."""
        unsent = takewhile(lambda message: message.seq > self.sent, reversed(self._in_memory.values()))
        return sum(message.size_bytes for message in unsent)

    @property
    def has_sent(self) -> bool:
        """Whether this process has sent any messages of this kind."""
        return self.sent > self._began_at

    @property
    def only_in_memory(self) -> int:
        """The number of messages that are not in the spool."""
        return sum(not message.is_spooled for message in self._in_memory.values())

    @property
    def awaited(self) -> int | None:
        """The number of the newest sent message if it is not acknowledged; else None."""
        return self.sent if self.sent > self.acked else None

    def _get(self, seq: int, last: int) -> EncodedMessage:
        """Return message `seq`. If it cannot be read, return an entry that declares it lost.

        This entry also covers the unreadable messages that follow, up to `last`.
        """
        message = self._in_memory.get(seq) or self._loaded.get(seq)
        if message is None:
            self._loaded = {number: EncodedMessage(number, entry) for number, entry in self._load(seq).items()}
            message = self._loaded.get(seq)
        return message or self._loss(seq, last)

    def _loss(self, first: int, last: int) -> EncodedMessage:
        is_deleted = first <= self._deleted
        following = next((seq for seq in self._in_memory if seq > first), last + 1)
        last = min([last, following - 1, *(seq - 1 for seq in self._loaded)])
        last = min(last, self._deleted) if is_deleted else last
        return EncodedMessage(last, self._declare_lost(first, last, RESTORED if is_deleted else DAMAGED))


def _above(seq: int, ranges: Iterable[Range]) -> Iterator[Range]:
    """Yield the parts of `ranges` (pairs of first and last message number) that are above `seq`."""
    return ((max(first, seq + 1), last) for first, last in ranges if last > seq)


def _joined(ranges: Iterable[Range]) -> list[Range]:
    """Merge `ranges` of message numbers: return sorted ranges that neither overlap nor touch."""
    joined: list[Range] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined
