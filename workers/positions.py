"""Per source and kind: which message numbers have arrived, and which are still missing below the highest."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field


@dataclass(slots=True)
class Position:
    """Everything up to `last_seq` has arrived, except the ranges in `missing` (inclusive, ascending, disjoint)."""

    last_seq: int = 0
    missing: list[tuple[int, int]] = field(default_factory=list)
    is_discarded: bool = False
    """The job was deleted: messages are acknowledged and not stored."""

    def accept(self, seq: int) -> bool:
        """Take note that `seq` arrived; return False when it had arrived before (a resend)."""
        if seq == self.last_seq + 1:
            self.last_seq = seq
            return True
        if seq > self.last_seq:
            self.missing.append((self.last_seq + 1, seq - 1))
            self.last_seq = seq
            return True
        return self._fill(seq)

    def reopen(self, seq: int) -> None:
        """Forget that `seq` arrived, so that it may come again."""
        index = bisect_right(self.missing, (seq, seq))
        self.missing.insert(index, (seq, seq))

    @property
    def contiguous(self) -> int:
        """The highest number up to which nothing is missing: what a trainer may forget."""
        return self.missing[0][0] - 1 if self.missing else self.last_seq

    @property
    def received(self) -> int:
        """How many messages have arrived."""
        return self.last_seq - sum(last - first + 1 for first, last in self.missing)

    def missing_text(self) -> str:
        """Return the missing ranges as trainers read them: `3-5,9-9`."""
        return ",".join(f"{first}-{last}" for first, last in self.missing)

    def _fill(self, seq: int) -> bool:
        index = bisect_right(self.missing, seq, key=lambda gap: gap[0]) - 1
        if index < 0:
            return False
        first, last = self.missing[index]
        if seq > last:
            return False
        rest = [(first, seq - 1), (seq + 1, last)]
        self.missing[index : index + 1] = [gap for gap in rest if gap[0] <= gap[1]]
        return True
