"""The messages of one kind, numbered, from the moment they are cut until they are acked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final, TypeAlias

from trainwire.schemas.wire import Entry

Range: TypeAlias = tuple[int, int]
"""First and last seq, both included."""

ENTRY_OVERHEAD_BYTES: Final = 600
"""What the dictionary around a body takes in memory, measured on CPython 3.11."""

RESTORED: Final = "restored"
"""The reason of a loss: the message was acked and deleted, and then Postgres was restored to an older state."""
DAMAGED: Final = "damaged"
"""The reason of a loss: the message cannot be read from the spool."""


@dataclass(frozen=True, slots=True)
class Held:
    """One numbered message, encoded; `is_spooled` tells whether it is on the disk too.

    An entry that declares messages lost has the number of the last of them here.
    """

    seq: int
    entry: Entry
    is_spooled: bool = False
    items: int = 1
    """How many lines or points it carries."""

    @property
    def size_bytes(self) -> int:
        """Return the memory it takes."""
        return sys.getsizeof(self.entry["body"]) + ENTRY_OVERHEAD_BYTES


class Lane:
    """Holds messages 1, 2, 3 ... of one kind; `acked <= sent <= last`.

    What is not held in memory is read by `load`: it is given a seq, and returns messages from there on. A message
    that it does not find is gone; `declare_lost` makes the entry that tells the workers (first, last, reason).
    """

    def __init__(
        self, load: Callable[[int], Mapping[int, Entry]], declare_lost: Callable[[int, int, str], Entry]
    ) -> None:
        self.last = 0
        self.sent = 0
        self.acked = 0
        self.lost = 0
        """How many of the acked messages the workers count as lost."""
        self._load = load
        self._declare_lost = declare_lost
        self._began_at = 0
        self._deleted = 0  # up to here messages were acked once, and may be gone for that reason
        self._held: dict[int, Held] = {}  # in order of seq
        self._loaded: dict[int, Held] = {}
        self._again: list[Range] = []  # in order, disjoint

    def append(self, held: Held, *, in_memory: bool = True) -> None:
        """Take the next message; one that is not kept in memory must be where `load` finds it."""
        self.last = held.seq
        if in_memory:
            self._held[held.seq] = held

    def spool(self, append: Callable[[int, int, Entry], bool]) -> None:
        """Write to the disk, in order, what is in memory alone; `append` gets seq, items and entry."""
        for seq, held in self._held.items():
            if not held.is_spooled:
                self._held[seq] = replace(held, is_spooled=append(seq, held.items, held.entry))

    def resume(self, first: int, last: int) -> None:
        """Take over messages `first` to `last` from where `load` finds them."""
        self.acked = self.sent = self._began_at = self._deleted = first - 1
        self.last = last

    def forget(self, first: int, last: int) -> int:
        """Drop what is in memory of these messages; return the bytes that were freed."""
        self._loaded.clear()
        gone = [self._held.pop(seq, None) for seq in range(first, last + 1)]
        return sum(held.size_bytes for held in gone if held is not None)

    def to_send(self, budget_bytes: int) -> list[Held]:
        """Return what to send next, in order of seq within old and new; at least one if there is any."""
        batch: list[Held] = []
        size = 0
        for first, last in [*self._again, (self.sent + 1, self.last)]:
            seq = first
            while seq <= last:
                held = self._get(seq, last)
                size += held.size_bytes
                if batch and size > budget_bytes:
                    return batch
                batch.append(held)
                seq = held.seq + 1
        return batch

    def mark_sent(self, seqs: Iterable[int]) -> None:
        """Note that Redis took these, the first of what `to_send` returned."""
        newest = max(seqs, default=0)
        self._again = list(_above(newest, self._again))
        self.sent = max(self.sent, newest)

    def release(self, acked: int) -> int:
        """Let go of everything up to `acked`; return the bytes that were freed.

        What this process has not sent stays: the ack may be older than a restore of Postgres.
        """
        self.acked = max(self.acked, min(acked, self.sent))
        self._deleted = max(self._deleted, self.acked)
        self._again = list(_above(self.acked, self._again))
        gone = list(takewhile(lambda seq: seq <= self.acked, self._held))
        return sum(self._held.pop(seq).size_bytes for seq in gone)

    def step_back(self, acked: int) -> bool:
        """Wait for acks from `acked` on again, where that is below what was acked; return whether it is."""
        is_below = acked < self.acked
        self.acked = min(self.acked, acked)
        return is_below

    def send_again(self, ranges: Iterable[Range]) -> None:
        """Queue what was sent of `ranges` once more, before everything new."""
        wanted = [(max(first, self.acked + 1), min(last, self.sent)) for first, last in ranges]
        self._again = _joined([*self._again, *(each for each in wanted if each[0] <= each[1])])

    @property
    def is_all_sent(self) -> bool:
        """Tell whether Redis took every message."""
        return self.sent == self.last and not self._again

    @property
    def has_sent(self) -> bool:
        """Tell whether this process has sent any of the messages."""
        return self.sent > self._began_at

    @property
    def only_in_memory(self) -> int:
        """Return how many messages end with this process."""
        return sum(not held.is_spooled for held in self._held.values())

    @property
    def awaited(self) -> int | None:
        """Return the newest message that was sent and is not acked."""
        return self.sent if self.sent > self.acked else None

    def _get(self, seq: int, last: int) -> Held:
        """Return message `seq`, or where it is gone the loss of all from there that are, up to `last`."""
        held = self._held.get(seq) or self._loaded.get(seq)
        if held is None:
            self._loaded = {number: Held(number, entry) for number, entry in self._load(seq).items()}
            held = self._loaded.get(seq)
        return held or self._loss(seq, last)

    def _loss(self, first: int, last: int) -> Held:
        is_deleted = first <= self._deleted
        following = next((seq for seq in self._held if seq > first), last + 1)
        last = min([last, following - 1, *(seq - 1 for seq in self._loaded)])
        last = min(last, self._deleted) if is_deleted else last
        return Held(last, self._declare_lost(first, last, RESTORED if is_deleted else DAMAGED))


def _above(seq: int, ranges: Iterable[Range]) -> Iterator[Range]:
    """Yield what of these ranges is above `seq`."""
    return ((max(first, seq + 1), last) for first, last in ranges if last > seq)


def _joined(ranges: Iterable[Range]) -> list[Range]:
    """Return the numbers of these ranges as ranges in order, disjoint."""
    joined: list[Range] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined
