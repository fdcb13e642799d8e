"""The messages of one kind, numbered, from the moment they are cut until they are acked."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final, TypeAlias

from schemas.messages import Entry

Range: TypeAlias = tuple[int, int]
"""First and last seq, both included."""

ENTRY_OVERHEAD_BYTES: Final = 600
"""What the dictionary around a body takes in memory, measured on CPython 3.11."""


@dataclass(frozen=True, slots=True)
class Held:
    """One numbered message, encoded."""

    seq: int
    entry: Entry

    @property
    def size_bytes(self) -> int:
        """Return the memory it takes."""
        return sys.getsizeof(self.entry["body"]) + ENTRY_OVERHEAD_BYTES


class Lane:
    """Holds messages 1, 2, 3 ... of one kind; `acked <= sent <= last`."""

    def __init__(self) -> None:
        self.last = 0
        self.sent = 0
        self.acked = 0
        self._held: dict[int, Held] = {}
        self._again: dict[int, None] = {}  # in order of seq

    def append(self, held: Held) -> None:
        """Hold the next message."""
        self.last = held.seq
        self._held[held.seq] = held

    def to_send(self, budget_bytes: int) -> list[Held]:
        """Return what to send next, in order of seq within old and new; at least one if there is any."""
        batch: list[Held] = []
        size = 0
        for seq in self._waiting():
            held = self._held[seq]
            size += held.size_bytes
            if batch and size > budget_bytes:
                break
            batch.append(held)
        return batch

    def mark_sent(self, seqs: Iterable[int]) -> None:
        """Note that Redis took these."""
        for seq in seqs:
            self._again.pop(seq, None)
            self.sent = max(self.sent, seq)

    def release(self, acked: int) -> int:
        """Let go of everything up to `acked`; return the bytes that were freed."""
        acked = min(acked, self.last)
        freed = 0
        for seq in range(self.acked + 1, acked + 1):
            self._again.pop(seq, None)
            freed += self._held.pop(seq).size_bytes
        self.acked = max(self.acked, acked)
        self.sent = max(self.sent, self.acked)
        return freed

    def send_again(self, ranges: Iterable[Range]) -> None:
        """Queue what is held of `ranges` once more, before everything new."""
        for first, last in ranges:
            for seq in range(max(first, self.acked + 1), min(last, self.sent) + 1):
                self._again[seq] = None
        self._again = dict.fromkeys(sorted(self._again))

    @property
    def is_all_sent(self) -> bool:
        """Tell whether Redis took every message."""
        return self.sent == self.last and not self._again

    @property
    def awaited(self) -> int | None:
        """Return the newest message that was sent and is not acked."""
        return self.sent if self.sent > self.acked else None

    def _waiting(self) -> Iterator[int]:
        return chain(self._again, range(self.sent + 1, self.last + 1))
