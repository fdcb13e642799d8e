"""Determines from start and end times whether a source belongs to an attempt.

The times come from the messages of the source. The tolerances allow for clocks of machines that differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from trainwire.schemas.times import to_datetime
from trainwire.schemas.wire.messages import Body, Checkpoint, Completion, Logs, Metrics

START_SPREAD: Final = timedelta(minutes=5)
"""The longest time by which a source of an attempt may have begun before the attempt.

An attempt begins with the source of its first message to arrive. The processes of a distributed attempt do not
start at the same time, and their clocks differ. Kerberos tolerates the same difference of clocks (RFC 4120,
section 8.2).
"""
RANK_SKEW: Final = timedelta(seconds=30)
"""Tolerated clock difference between two ranks when one ended before the other began."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The start time of a source or attempt, and its end time if that is known."""

    began: datetime
    ended: datetime | None = None

    @classmethod
    def of(cls, body: Body) -> Lifetime | None:
        """Return the lifetime of the source of a message; None if the message does not contain its start time.

        Only a source's own completion contains its end time. `RANK_SKEW` is added to it if the job has several
        ranks. An end before the start is ignored, because the clock was set back.
        """
        if body.started_at is None:
            return None
        ended = None
        if isinstance(body, Completion) and body.of is None and body.ts >= body.started_at:
            is_alone = not body.rank and (body.world_size or 1) == 1
            ended = to_datetime(body.ts) + (timedelta() if is_alone else RANK_SKEW)
        return cls(to_datetime(body.started_at), ended)

    def is_before(self, began: datetime) -> bool:
        """Return whether this source belongs to an earlier attempt than the one that began at `began`."""
        if self.began >= began:
            return False
        return self.began < began - START_SPREAD or (self.ended is not None and self.ended < began)


def began_at(body: Body) -> int | None:
    """Return the start time of the source of a message or, if it is not stated, the first time in the message.

    Returns None if the message contains no time. Times are nanoseconds since 1970.
    """
    if body.started_at is not None:
        return body.started_at
    match body:
        case Logs():
            return body.ts[0] if body.ts else None
        case Metrics():
            return body.ts if body.ts is not None else (body.points[0].ts if body.points else None)
        case Checkpoint() | Completion():
            return body.ts
