"""When the sources of a job began and ended, by the clocks of their machines."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from trainwire.schemas.messages import Body, Completion
from trainwire.schemas.times import to_datetime

START_SPREAD: Final = timedelta(minutes=5)
"""How much earlier than its attempt a source may have begun.

The first message that arrives dates the attempt, and ranks neither start together nor have the same time. Kerberos
tolerates clocks that differ by as much (RFC 4120, section 8.2).
"""
RANK_SKEW: Final = timedelta(seconds=30)
"""How much the clocks of two ranks may differ where one seems to end before the other began."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """When a source or an attempt began, and when it ended where that is known."""

    began: datetime
    ended: datetime | None = None

    @classmethod
    def of(cls, body: Body) -> Lifetime | None:
        """Return what a message states of its source; None where it does not state when the source began."""
        if body.started_at is None:
            return None
        ended = to_datetime(body.ts) if isinstance(body, Completion) and body.of is None else None
        return cls(to_datetime(body.started_at), ended)

    def is_before(self, began: datetime) -> bool:
        """Return whether this source is too early to be a part of the attempt that began at this time."""
        if self.began >= began:
            return False
        return self.began < began - START_SPREAD or (self.ended is not None and self.ended < began)
