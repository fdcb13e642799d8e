"""The messages of one kind, numbered, from the moment they are cut until they are acked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final, TypeAlias

from schemas.wire import Entry

Range: TypeAlias = tuple[int, int]
"""First and last seq, both included."""

ENTRY_OVERHEAD_BYTES: Final = 600
"""What the dictionary around a body takes in memory, measured on CPython 3.11."""


@dataclass(frozen=True, slots=True)
class Held:
    """One numbered message, encoded; `is_spooled` tells whether it is on the disk too."""

    seq: int
    entry: Entry
    is_spooled: bool = False

    @property
    def size_bytes(self) -> int:
        """Return the memory it takes."""
        return sys.getsizeof(self.entry["body"]) + ENTRY_OVERHEAD_BYTES


class Lane:
    """Holds messages 1, 2, 3 ... of one kind; `acked <= sent <= last`.

    What is not held in memory is read by `load`: it is given a seq, and returns that message and some after it.
    """

    def __init__(self, load: Callable[[int], Mapping[int, Entry]] | None = None) -> None:
        self.last = 0
        self.sent = 0
        self.acked = 0
        self._load = load
        self._held: dict[int, Held] = {}
        self._loaded: dict[int, Held] = {}
        self._again: dict[int, None] = {}  # in order of seq

    def append(self, held: Held, *, in_memory: bool = True) -> None:
        """Take the next message; one that is not kept in memory must be where `load` finds it."""
        self.last = held.seq
        if in_memory:
            self._held[held.seq] = held

    def resume(self, first: int, last: int) -> None:
        """Take over messages `first` to `last` from where `load` finds them."""
        self.acked = self.sent = first - 1
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
        for seq in self._waiting():
            held = self._get(seq)
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
            held = self._held.pop(seq, None)
            freed += 0 if held is None else held.size_bytes
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
    def only_in_memory(self) -> int:
        """Return how many messages end with this process."""
        return sum(not held.is_spooled for held in self._held.values())

    @property
    def awaited(self) -> int | None:
        """Return the newest message that was sent and is not acked."""
        return self.sent if self.sent > self.acked else None

    def _get(self, seq: int) -> Held:
        held = self._held.get(seq) or self._loaded.get(seq)
        if held is None:
            assert self._load is not None  # noqa: S101 - else it would be in memory
            self._loaded = {number: Held(number, entry) for number, entry in self._load(seq).items()}
            held = self._loaded[seq]
        return held

    def _waiting(self) -> Iterator[int]:
        return chain(self._again, range(self.sent + 1, self.last + 1))
