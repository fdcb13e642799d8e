"""How far somebody is in a job: the last `seq` of each kind of rows that they have."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, cast

from trainwire.schemas.kinds import RowKind

_WRITTEN: Final = re.compile(r"(\d{1,19})-(\d{1,19})-(\d{1,19})", re.ASCII)
_MAX_SEQ: Final = 2**63 - 1


class BadPosition(ValueError):  # noqa: N818 - said to clients as it stands
    """A position is none that a feed gives out; the text names it and what one looks like."""


class Position(NamedTuple):
    """The last `seq` of each kind; clients carry it as text and need not understand it."""

    logs: int
    metrics: int
    checkpoints: int

    def __str__(self) -> str:
        return f"{self.logs}-{self.metrics}-{self.checkpoints}"

    def of(self, kind: RowKind) -> int:
        """Return the last `seq` of one kind."""
        return cast("int", getattr(self, kind))

    def moved(self, kind: RowKind, seq: int) -> Position:
        """Return the position with another last `seq` of one kind."""
        return self._replace(**{kind: seq})

    def is_beyond(self, other: Position) -> bool:
        """Tell whether this is further than `other` in any kind."""
        return any(mine > theirs for mine, theirs in zip(self, other, strict=True))


def read_position(written: str) -> Position:
    """Return the position that a client brings back; raise `BadPosition` where it is none."""
    parts = _WRITTEN.fullmatch(written)
    numbers = [int(part) for part in parts.groups()] if parts else [-1]
    if not all(0 <= number <= _MAX_SEQ for number in numbers):
        raise BadPosition(
            f"{written[:80]!r} is not a position like 120-45-3: send one that the feed gave you, or none"
        )
    return Position(*numbers)
