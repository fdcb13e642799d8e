"""What the sender says of its own process every few seconds: that it lives, and how long it has been quiet."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.settings import Vitals
from trainwire.schemas.heartbeats import Heartbeat, decode_heartbeat
from trainwire.schemas.messages import ATTEMPT_UNKNOWN
from trainwire.schemas.validation import InvalidMessage

if TYPE_CHECKING:
    from trainwire.ingest.origin import Origin

logger = logging.getLogger("trainwire.ingest")

CLAIM_TTL_BEATS: Final = 3
"""A claim that was not renewed for so many intervals is anybody's."""
RETRY_SHARE: Final = 0.2
"""Of the interval: how soon a heartbeat that Redis refused is tried again."""
LEAST_PAUSES: Final = 10
"""A rhythm is known after so many pauses."""
RHYTHM_FACTOR: Final = 3.0
LEAST_USUAL_PAUSE_S: Final = 600.0


class Backlog(NamedTuple):
    """What a source has not got rid of: messages that Redis has not, bytes on the disk, and what it dropped."""

    unsent: int
    spooled_bytes: int
    dropped: int


class Rhythm:
    """How often something is said, to the interval between two looks."""

    def __init__(self, now: float) -> None:
        self._words = 0
        self._said_at = now
        self._pauses = 0
        self._longest_s = 0.0

    def note(self, words: int, now: float) -> None:
        """Take note that `words` were said by now."""
        if words == self._words:
            return
        if self._words:
            self._pauses += 1
            self._longest_s = max(self._longest_s, now - self._said_at)
        self._words = words
        self._said_at = now

    def quiet_s(self, now: float) -> float:
        """Return for how long nothing was said."""
        return max(0.0, now - self._said_at)

    @property
    def usual_pause_s(self) -> float | None:
        """Return the longest pause that is to be expected; None while too few are known."""
        if self._pauses < LEAST_PAUSES:
            return None
        return max(LEAST_USUAL_PAUSE_S, RHYTHM_FACTOR * self._longest_s)


class Heart:
    """Makes the heartbeats of one source, and finds another live process that is the same rank of the attempt.

    `words` counts what was said, `backlog` says what of it has not got through; `may_claim` is False in a forked
    child, which is its parent's rank rightly.
    """

    def __init__(
        self,
        origin: Origin,
        vitals: Vitals,
        words: Callable[[], int],
        *,
        backlog: Callable[[], Backlog] | None = None,
        may_claim: bool = True,
        clock: Callable[[], float] = monotonic_s,
    ) -> None:
        self.origin = origin
        # A launcher stands for its machine, of which a job may have many; within it one may run under another.
        self.launcher = f"{os.uname().nodename}/{vitals.launcher}" if vitals.is_launcher else ""
        """Which launcher this is; empty for a trainer. Launchers and trainers are no rivals of each other."""
        self.may_claim = may_claim
        self.claimant = hashlib.sha256(origin.source.encode()).hexdigest()
        """Stands for the source in claims, which all trainers may read: its name would let them write under it."""
        self._vitals = vitals
        self._words = words
        self._backlog = backlog
        self._clock = clock
        self._since = time.time()
        self._rhythm = Rhythm(clock())
        self._due_at = clock()
        self._rival: Heartbeat | None = None
        self._has_warned = False
        self.is_known = False

    @property
    def is_due(self) -> bool:
        """Tell whether it is time for the next heartbeat."""
        return self._clock() >= self._due_at

    @property
    def claim_ttl_ms(self) -> int:
        """Return how long a claim holds without a heartbeat."""
        return max(1, int(1000 * CLAIM_TTL_BEATS * self._vitals.interval_s))

    def note_outcome(self, *, is_taken: bool) -> None:
        """Set when the next heartbeat is due; `is_taken`: Redis has this one."""
        self.is_known = self.is_known or is_taken
        self._due_at = self._clock() + self._vitals.interval_s * (1 if is_taken else RETRY_SHARE)

    def heartbeat(self, at_ms: int) -> Heartbeat:
        """Return what there is to say at this time of Redis's clock."""
        now = self._clock()
        self._rhythm.note(self._words(), now)
        backlog = self._backlog() if self._backlog is not None else None
        return Heartbeat(
            job=self.origin.job_id,
            source=self.origin.source,
            at=at_ms,
            attempt=self.origin.attempt,
            rank=self.origin.rank,
            host=os.uname().nodename or None,
            pid=os.getpid(),
            since=self._since,
            every_s=self._vitals.interval_s,
            quiet_s=round(self._rhythm.quiet_s(now), 1),
            stall_after_s=self._vitals.stall_after_s,
            usual_pause_s=self._rhythm.usual_pause_s,
            **(backlog._asdict() if backlog is not None else {}),
        )

    def claim(self, at_ms: int) -> Heartbeat:
        """Return the heartbeat that claims the rank at this time of Redis's clock."""
        return Heartbeat(
            job=self.origin.job_id,
            source=self.claimant,
            at=at_ms,
            attempt=self.origin.attempt,
            rank=self.origin.rank,
            host=os.uname().nodename or None,
            pid=os.getpid(),
            since=self._since,
            every_s=self._vitals.interval_s,
        )

    def may_take(self, claim: bytes | None) -> bool:
        """Tell whether the claim found in Redis is ours to set; warn once where a live process holds it.

        That it lives is seen by its next heartbeat: what a killed one has left expires.
        """
        holder = read_claim(claim)
        if holder is None or holder.source == self.claimant:
            return True
        seen, self._rival = self._rival, holder
        is_alive = seen is not None and seen.source == holder.source and holder.at > seen.at
        if is_alive and not self._has_warned:
            self._has_warned = True
            logger.warning("%s", self.words_on(holder))
        return False

    def words_on(self, rival: Heartbeat) -> str:
        """Return who the two are that are the same, and what to do."""
        origin = self.origin
        who = "launchers" if self.launcher else "trainers"
        attempt = "" if origin.attempt == ATTEMPT_UNKNOWN else f" attempt {origin.attempt}"
        here = f"host {os.uname().nodename}, pid {os.getpid()}, since {_local(self._since)}"
        there = f"host {_printable(rival.host)}, pid {rival.pid}, since {_local(rival.since)}"
        return (
            f"two live {who} are job {origin.job_id}{attempt} rank {origin.rank or 0}: this one ({here}) and "
            f"another ({there}); nothing is lost, but their messages are mixed. End one of them, or give it a "
            "rank (TRAINWIRE_RANK), an attempt (TRAINWIRE_ATTEMPT) or a job id of its own"
        )


def read_claim(claim: bytes | None) -> Heartbeat | None:
    """Return the heartbeat of who has a rank; None where nobody has, or where it cannot be read."""
    try:
        return None if claim is None else decode_heartbeat(claim)
    except InvalidMessage:
        return None


def _printable(name: str | None) -> str:
    """Return a name from a claim without control characters, which a terminal would obey."""
    return "unknown" if name is None else "".join(char if char.isprintable() else "\ufffd" for char in name)


def _local(at: float | None) -> str:
    return "unknown" if at is None else time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(at))
