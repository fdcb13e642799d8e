"""Makes the heartbeats of one source, and the claim by which it reserves its rank."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec.structs import replace

from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.process.proc_stat import start_time_s
from trainwire.ingest.settings.setting_groups import Vitals
from trainwire.schemas.wire.heartbeats import Heartbeat, RankClaim, read_claim
from trainwire.schemas.wire.messages import ATTEMPT_UNKNOWN

if TYPE_CHECKING:
    from trainwire.ingest.identity.origin import Origin
    from trainwire.schemas.wire.stop_requests import StopRequest

logger = logging.getLogger("trainwire.ingest")

CLAIM_TTL_BEATS: Final = 3
"""Number of heartbeat intervals without renewal after which a claim expires."""
RETRY_SHARE: Final = 0.2
"""Fraction of the heartbeat interval after which a heartbeat that Redis refused is sent again."""
LEAST_PAUSES: Final = 10
"""Number of pauses that must be measured before `usual_pause_s` is known."""
USUAL_PAUSE_FACTOR: Final = 3.0
LEAST_USUAL_PAUSE_S: Final = 600.0
START_PRECISION_S: Final = 1.0
"""Tolerance in seconds when the start time of a process is compared with a time of the wall clock."""


class UnsentCounts(NamedTuple):
    """Counts of one source: messages that Redis does not have, bytes in the spool, and dropped items."""

    unsent: int
    spooled_bytes: int
    dropped: int


class Activity:
    """Measures the pauses between a training's reports; the precision is the interval of the calls of `note`."""

    def __init__(self, now: float) -> None:
        self._count = 0
        self._changed_at = now
        self._pauses = 0
        self._longest_s = 0.0

    def note(self, count: int, now: float) -> None:
        """Record that the training has made `count` reports in total up to the time `now`."""
        if count == self._count:
            return
        if self._count:
            self._pauses += 1
            self._longest_s = max(self._longest_s, now - self._changed_at)
        self._count = count
        self._changed_at = now

    def quiet_s(self, now: float) -> float:
        """Return the seconds since the last report."""
        return max(0.0, now - self._changed_at)

    @property
    def usual_pause_s(self) -> float | None:
        """The longest pause that is still normal, in seconds; None before `LEAST_PAUSES` pauses."""
        if self._pauses < LEAST_PAUSES:
            return None
        return max(LEAST_USUAL_PAUSE_S, USUAL_PAUSE_FACTOR * self._longest_s)


class StopSignal:
    """Holds a user's request to stop this source; the event `received` is set once the request has arrived."""

    def __init__(self) -> None:
        self.request: StopRequest | None = None
        self.received = threading.Event()
        self._listeners: list[Callable[[], object]] = []

    def note(self, job_id: int, request: StopRequest) -> None:
        """Store and log the first request to stop, and call the listeners; later requests are ignored."""
        if self.received.is_set():
            return
        self.request = request
        self.received.set()
        logger.warning(
            "job %s: %s asks this training to stop%s", job_id, _printable(request.by), _reason(request.reason)
        )
        self._call_listeners()

    def listen(self, listener: Callable[[], object]) -> None:
        """Call `listener` once when a request to stop arrives, or at once if one has already arrived.

        `listener` may be called in any thread, and must not raise.
        """
        self._listeners.append(listener)
        if self.received.is_set():
            self._call_listeners()

    def _call_listeners(self) -> None:
        # A request may arrive in another thread while `listen` runs: the thread that removes a listener calls it.
        while self._listeners:
            try:
                listener = self._listeners.pop()
            except IndexError:
                return
            listener()


class SourceHeartbeat:
    """Makes the heartbeats of one source, and warns if another live process has the same job, attempt and rank.

    `activity` returns the number of reports so far, and `unsent_counts` the `UnsentCounts`. `may_claim` is False
    in a forked child, because it has the rank of its parent.
    """

    def __init__(
        self,
        origin: Origin,
        vitals: Vitals,
        activity: Callable[[], int],
        *,
        unsent_counts: Callable[[], UnsentCounts] | None = None,
        may_claim: bool = True,
        clock: Callable[[], float] = monotonic_s,
    ) -> None:
        self.origin = origin
        # One launcher per machine is normal, and one may run another: the name distinguishes them.
        self.launcher = f"{os.uname().nodename}/{vitals.launcher}" if vitals.is_launcher else ""
        """The name of this launcher; empty for a trainer. Claims of launchers and trainers are separate."""
        self.may_claim = may_claim
        self.claimant = hashlib.sha256(origin.source.encode()).hexdigest()
        """The hash of the source name, for claims: a trainer that reads the name could send as this source."""
        self._vitals = vitals
        self._count = activity
        self._unsent_counts = unsent_counts
        self._clock = clock
        self._since = time.time()
        self._activity = Activity(clock())
        self._due_at = clock()
        self._rival: Heartbeat | None = None
        self._has_warned = False
        self._informs: str | None = None
        """The claimant hash of a live process that our next claim replaces, to inform it of this process."""
        self._has_informed = False
        self.is_known = False
        """Whether Redis has accepted a heartbeat of this source."""
        self.stop = StopSignal()
        """The request to stop this source."""

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next heartbeat."""
        return self._clock() >= self._due_at

    @property
    def claim_ttl_ms(self) -> int:
        """The milliseconds after which a claim expires without a heartbeat."""
        return max(1, int(1000 * CLAIM_TTL_BEATS * self._vitals.interval_s))

    def note_answer(self, claim: object, *, is_taken: bool) -> None:
        """Record the response to a heartbeat: the `claim` in Redis, and whether it was accepted (`is_taken`).

        If a claim must inform another process of this one, the next heartbeat becomes due at once.
        """
        informed = self._informs
        self.note_claim(claim)
        self.note_outcome(is_taken=is_taken)
        if self._informs != informed and self._informs is not None and is_taken:
            self._due_at = self._clock()  # this process may end soon

    def note_claim(self, claim: object) -> None:
        """Record the claim of the rank in Redis, and warn if another live process has the rank."""
        if self.may_claim:
            self.may_take(claim)

    def note_outcome(self, *, is_taken: bool) -> None:
        """Set the time of the next heartbeat: an interval from now, or earlier if this one was not accepted."""
        self.is_known = self.is_known or is_taken
        self._due_at = self._clock() + self._vitals.interval_s * (1 if is_taken else RETRY_SHARE)

    def heartbeat(self, at_ms: int) -> Heartbeat:
        """Return a heartbeat with the time `at_ms`, in milliseconds of Redis's clock."""
        now = self._clock()
        self._activity.note(self._count(), now)
        return replace(
            self.claim(at_ms),
            source=self.origin.source,
            quiet_s=round(self._activity.quiet_s(now), 1),
            stall_after_s=self._vitals.stall_after_s,
            usual_pause_s=self._activity.usual_pause_s,
            **({} if self._unsent_counts is None else self._unsent_counts()._asdict()),
        )

    def rank_claim(self) -> RankClaim:
        """Return the claim of the rank; the server sets its time."""
        return RankClaim(holder=self.claim(0), ttl_ms=self.claim_ttl_ms, launcher=self.launcher)

    def claim(self, at_ms: int) -> Heartbeat:
        """Return the content of the claim: a heartbeat with the hashed source name, at Redis's time `at_ms`."""
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
            rival=self._informs,
        )

    def may_take(self, claim: object) -> bool:
        """Return whether this process may claim its rank, given the `claim` in Redis.

        Warn once if a live process has the rank. A process counts as live if it runs on this machine, if it has
        renewed its claim between two calls, or if it has replaced our claim to inform us. The claim of a killed
        process expires.
        """
        holder = read_claim(claim)
        if holder is None or holder.source == self.claimant:
            return True
        if holder.rival == self.claimant:
            self._warn_of(holder)
            return True  # it has replaced our claim to inform us
        if self._informs == holder.source:  # our claim has replaced its claim, or does so now
            self._informs = None if self._has_informed else self._informs
            self._has_informed = True
            return False
        seen, self._rival = self._rival, holder
        is_renewed = seen is not None and seen.source == holder.source and holder.at > seen.at
        if is_renewed or _runs_here(holder):
            if not self._has_warned:
                self._informs = holder.source
            self._warn_of(holder)
        return False

    def _warn_of(self, rival: Heartbeat) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning("%s", self.conflict_text(rival))

    def conflict_text(self, rival: Heartbeat) -> str:
        """Return a warning that names both processes with the same rank, and the remedy."""
        origin = self.origin
        processes = "launchers" if self.launcher else "trainers"
        attempt = "" if origin.attempt == ATTEMPT_UNKNOWN else f" attempt {origin.attempt}"
        here = f"host {os.uname().nodename}, pid {os.getpid()}, since {_local(self._since)}"
        there = f"host {_printable(rival.host)}, pid {rival.pid}, since {_local(rival.since)}"
        return (
            f"two live {processes} are job {origin.job_id}{attempt} rank {origin.rank or 0}: this one ({here}) "
            f"and another ({there}); nothing is lost, but their messages are mixed. End one of them, or give it a "
            "rank (TRAINWIRE_RANK), an attempt (TRAINWIRE_ATTEMPT) or a job id of its own"
        )


def _runs_here(holder: Heartbeat) -> bool:
    """Return whether the process with this claim certainly runs on this machine, and is not this process.

    A process that started after the claim's `since` is another one with the same number.
    """
    if holder.host != os.uname().nodename or holder.pid in (None, os.getpid()) or holder.since is None:
        return False
    started_s = start_time_s(holder.pid)
    return started_s is not None and started_s <= holder.since + START_PRECISION_S


def _reason(text: str | None) -> str:
    return f": {_printable(text)}" if text else ""


def _printable(name: str | None) -> str:
    """Return a name from a claim with control characters replaced, because a terminal would interpret them."""
    return "unknown" if name is None else "".join(char if char.isprintable() else "\ufffd" for char in name)


def _local(at: float | None) -> str:
    return "unknown" if at is None else time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(at))
