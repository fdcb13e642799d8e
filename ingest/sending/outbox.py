"""The numbered messages of one source, from the cut to the ack: on the disk, and in memory while they are few."""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from trainwire.ingest.origin import Origin
from trainwire.ingest.receipt import Receipt
from trainwire.ingest.sending.buffer import Intake
from trainwire.ingest.sending.encoding import BodyEncoder
from trainwire.ingest.sending.heartbeat import Backlog
from trainwire.ingest.sending.salvage import item_count
from trainwire.ingest.sending.unacked import Held, Lane, Range
from trainwire.ingest.settings import FullPolicy
from trainwire.ingest.spool.access import SpoolAccess
from trainwire.schemas.heartbeats import shows_progress
from trainwire.schemas.keys import KINDS, Kind
from trainwire.schemas.messages import ATTEMPT_UNKNOWN, KIND_OF_BODY, Body, Completion
from trainwire.schemas.wire import Entry, Loss, encode_loss

if TYPE_CHECKING:
    from trainwire.ingest.spool.spool import (
        Spool,  # opened by the sender's thread: its imports cost a trainer's start
    )

logger = logging.getLogger("trainwire.ingest")

BODIES_PER_CUT: Final = 64
"""Keeps one hold of the lock short, however much is waiting."""
MEMORY_BYTES: Final = 32 * 1024 * 1024
"""Messages beyond this are read back from the spool when they are sent."""
NAMED_LOSSES: Final = 20
"""So many lost ranges are named in the log; `trainwire status` names them all."""
DROP_ORDER: Final[tuple[Kind, ...]] = ("logs", "metrics")
"""What goes first when the spool is full; checkpoints and completions never do."""


class Outbox:
    """Cuts what the intake holds into messages with seq 1, 2, 3 ... per kind, and keeps them until acked.

    With a spool every message is on the disk before it is anywhere else; where the disk does not take it, and
    without a spool, it is in memory alone. The spool is opened with the first message, by the thread that cuts.
    """

    def __init__(
        self,
        origin: Origin,
        intake: Intake,
        open_spool: Callable[[], Spool] | None = None,
        policy: FullPolicy = "drop_oldest_logs",
    ) -> None:
        self.origin = origin
        self._intake = intake
        self._disk = SpoolAccess(origin.job_id, open_spool)
        self._policy = policy
        self._lock = threading.Lock()  # taken before the intake's, never after it
        self._lanes: dict[Kind, Lane] = {
            kind: Lane(partial(self._disk.read, kind), partial(self._declare_lost, kind)) for kind in KINDS
        }
        self._bodies: Iterator[tuple[Body, int]] = iter(())
        self._next: tuple[Body, int] | None = None
        self._encoder = BodyEncoder(origin, intake.count_dropped)
        self._declared: set[tuple[Kind, int]] = set()
        self._is_job_deleted = False
        self.inferred_end: Completion | None = None
        """For a source that was killed: that it has ended, and what it made, as far as its spool shows."""
        self.words = 0
        """How many bodies said something of the training, not of the machine alone."""

    @classmethod
    def resumed(cls, spool: Spool) -> Outbox:
        """Return an outbox of what another process has left in its spool.

        Where that one was killed before its completion, `inferred_end` is the end to send for it, as a message of
        a source of its own (`Outbox.of_inferred_end`): the number of the completion stays free.
        """
        about = spool.folder.about
        intake = Intake(0, threading.Event())
        intake.close(None)
        origin = Origin(about.job_id, about.attempt, about.source, about.rank, about.since_ns)
        outbox = cls(origin, intake, lambda: spool)
        outbox._resume()
        return outbox

    @classmethod
    def of_inferred_end(cls, origin: Origin, end: Completion) -> Outbox:
        """Return an outbox of one message: the inferred end of the source `origin`.

        Its source is named after what the end contains, so that sending the same leftovers twice resends it.
        """
        digest = zlib.crc32(repr((end.produced, end.dropped)).encode())
        intake = Intake(0, threading.Event())
        intake.close(end)
        return cls(replace(origin, source=f"{origin.source}~end-{digest:08x}"), intake)

    def cut(self) -> bool:
        """Number and encode some of what is waiting; return whether there may be more."""
        with self._lock:
            has_more = self._cut_some()
            self._disk.note_drops(self._intake.dropped)
        return has_more

    def open_spool(self) -> None:
        """Open the spool at once where the system has refused it so far."""
        with self._lock:
            self._open(at_once=True)

    def to_send(self, budget_bytes: int) -> dict[Kind, list[Held]]:
        """Return the next messages of each kind that has any, up to about `budget_bytes` a kind."""
        with self._lock:
            batches = {kind: lane.to_send(budget_bytes) for kind, lane in self._lanes.items()}
        return {kind: batch for kind, batch in batches.items() if batch}

    def mark_sent(self, kind: Kind, seqs: Iterable[int]) -> None:
        """Note that Redis took these messages."""
        with self._lock:
            self._lanes[kind].mark_sent(seqs)

    def release(self, kind: Kind, acked: int, lost: int = 0) -> bool:
        """Let go of the messages that are committed in Postgres: all up to `acked`; return whether it was news.

        `lost` of them the workers count as lost, as this process or an earlier one has declared.
        """
        with self._lock:
            lane = self._lanes[kind]
            before = lane.acked
            freed_bytes = lane.release(acked)
            lane.lost = lost
            self._disk.release(kind, lane.acked)
        self._intake.note_held(0, -freed_bytes)
        return lane.acked > before

    def step_back(self, kind: Kind, acked: int) -> bool:
        """Wait for acks from `acked` on again, where that is below what was acked; return whether it is.

        So it is after a restore of Postgres, or of Redis: what is still held can be sent again.
        """
        with self._lock:
            is_below = self._lanes[kind].step_back(acked)
        if is_below:
            logger.info(
                "job %s: the workers have %s up to message %s only, though more was acknowledged: Postgres or "
                "Redis was restored to an older state",
                *(self.origin.job_id, kind, acked),
            )
        return is_below

    def note_job_deleted(self) -> None:
        """Note that the job was deleted: workers acknowledge its messages and store none of them."""
        if not self._is_job_deleted:
            self._is_job_deleted = True
            logger.warning("job %s was deleted: nothing more of it is stored", self.origin.job_id)

    def send_again(self, kind: Kind, ranges: Iterable[Range]) -> None:
        """Queue messages once more that Redis has lost."""
        with self._lock:
            self._lanes[kind].send_again(ranges)

    def sent_kinds(self) -> list[Kind]:
        """Return the kinds of which this process has sent messages."""
        with self._lock:
            return [kind for kind, lane in self._lanes.items() if lane.has_sent]

    def awaited(self) -> dict[Kind, int]:
        """Return, for each kind with sent messages that are not acked, the newest of them."""
        with self._lock:
            newest = {kind: lane.awaited for kind, lane in self._lanes.items()}
        return {kind: seq for kind, seq in newest.items() if seq is not None}

    @property
    def is_all_sent(self) -> bool:
        """Tell whether everything that was said is in Redis."""
        with self._lock:
            return self._intake.is_empty and all(lane.is_all_sent for lane in self._lanes.values())

    @property
    def is_all_spooled(self) -> bool:
        """Tell whether everything that was said is on the disk, from where it is sent later, or stored."""
        with self._lock:
            if not self._disk.exists:
                return False
            return self._intake.is_empty and not any(lane.only_in_memory for lane in self._lanes.values())

    def receipt(self) -> Receipt:
        """Return how far everything came by now."""
        with self._lock:
            is_kept = self._disk.exists
            lanes = {kind: lane for kind, lane in self._lanes.items() if lane.last}
            return Receipt(
                produced={kind: lane.last for kind, lane in lanes.items()},
                stored={
                    kind: 0 if self._is_job_deleted else max(lane.acked - lane.lost, 0)
                    for kind, lane in lanes.items()
                },
                lost={kind: lane.lost for kind, lane in lanes.items() if lane.lost},
                sent={kind: lane.sent for kind, lane in lanes.items()},
                unsent={kind: lane.last - lane.sent for kind, lane in lanes.items()},
                spooled={
                    kind: lane.last - lane.acked - lane.only_in_memory if is_kept else 0
                    for kind, lane in lanes.items()
                },
                dropped=self._intake.dropped,
                is_job_deleted=self._is_job_deleted,
            )

    def backlog(self) -> Backlog:
        """Return what has not got through by now."""
        with self._lock:
            unsent = sum(lane.last - lane.sent for lane in self._lanes.values())
            spooled_bytes = self._disk.spool.size_bytes if self._disk.spool is not None else 0
        return Backlog(unsent, spooled_bytes, sum(self._intake.dropped.values()))

    @property
    def is_all_acked(self) -> bool:
        """Tell whether everything that was said is committed in Postgres."""
        with self._lock:
            return self._intake.is_empty and all(lane.acked == lane.last for lane in self._lanes.values())

    def close(self) -> None:
        """Leave the spool to who sends what is left of it; remove it where nothing is."""
        is_all_acked = self.is_all_acked
        with self._lock:
            self._disk.close(is_needed=not is_all_acked)

    def forget(self) -> None:
        """Leave the spool alone in a forked child: it is the parent's."""
        self._disk.close(is_needed=True)

    @property
    def _must_wait(self) -> bool:
        """Tell whether the spool is full, and those who speak are to wait for it."""
        return self._policy == "block" and not self._intake.is_closed and self._disk.is_full

    def _cut_some(self) -> bool:
        for _ in range(BODIES_PER_CUT):
            if self._must_wait:
                return False
            if self._next is None:  # else no memory was left to encode it
                self._next = next(self._bodies, None)
            if self._next is None:
                self._bodies = self._intake.take_out().bodies(self.origin.rank)
                self._next = next(self._bodies, None)
            if self._next is None:
                return False
            self._open()
            self._hold(*self._next)
            self.words += shows_progress(self._next[0])
            self._next = None
        return True

    def _hold(self, body: Body, waited_bytes: int) -> None:
        kind = KIND_OF_BODY[type(body)]
        lane = self._lanes[kind]
        if kind in DROP_ORDER and not self._has_room():
            self._intake.count_dropped(kind, item_count(body))
            self._intake.note_held(waited_bytes, 0)
            return
        if isinstance(body, Completion) and body.of is None:
            self._sum_up(body)
        if self.origin.attempt == ATTEMPT_UNKNOWN or isinstance(body, Completion):
            body.started_at = body.started_at or self.origin.since_ns
        entry = self._encoder.encode(kind, lane.last + 1, body)
        if entry is None:
            self._intake.note_held(waited_bytes, 0)
            return
        items = item_count(body)
        is_spooled = self._disk.append(kind, lane.last + 1, items, entry)
        held = Held(lane.last + 1, entry, is_spooled, items)
        in_memory = not held.is_spooled or self._intake.held_bytes + held.size_bytes <= MEMORY_BYTES
        lane.append(held, in_memory=in_memory)
        self._intake.note_held(waited_bytes, held.size_bytes if in_memory else 0)

    def _resume(self) -> None:
        self._disk.open()
        spool = self._disk.spool
        assert spool is not None  # noqa: S101 - it was given
        spans = spool.spans()
        for kind, span in spans.items():
            self._lanes[kind].resume(span.first, span.last)
        self._intake.recall_dropped(spool.drops)
        if "completions" not in spans and (spans or spool.drops):
            self.inferred_end = Completion(
                ts=time.time_ns(),
                status="ended",
                of=self.origin.source,
                rank=self.origin.rank,
                produced={kind: lane.last for kind, lane in self._lanes.items() if lane.last},
                dropped=self._intake.dropped or None,
                started_at=self.origin.since_ns,
            )

    def _open(self, *, at_once: bool = False) -> None:
        """Open the spool where it is not yet, and write what has been kept in memory for want of it."""
        if self._disk.open(at_once=at_once):
            for kind, lane in self._lanes.items():
                lane.spool(partial(self._disk.append, kind))

    def _declare_lost(self, kind: Kind, first: int, last: int, reason: str) -> Entry:
        """Return the entry by which the workers know that these messages will never come."""
        origin = self.origin
        if (kind, first) not in self._declared and len(self._declared) < NAMED_LOSSES:
            self._declared.add((kind, first))
            logger.warning(
                "job %s: messages %s to %s of its %s cannot be sent any more (%s): those that Postgres has not "
                "count as lost",
                *(origin.job_id, first, last, kind, reason),
            )
        loss = Loss(last=last, reason=reason, started_at=origin.since_ns)
        return encode_loss(origin.job_id, origin.attempt, origin.source, first, loss)

    def _has_room(self) -> bool:
        """Make room in a full spool as the policy wants it; False where what is new has to go."""
        if not self._disk.is_full or self._policy == "block":
            return True
        return self._policy == "drop_oldest_logs" and any(self._drop_oldest(kind) for kind in DROP_ORDER)

    def _drop_oldest(self, kind: Kind) -> bool:
        """Give up the oldest messages of a kind that Redis has not been given; False where there are none."""
        assert self._disk.spool is not None  # noqa: S101 - it is full
        lane = self._lanes[kind]
        try:
            gone = self._disk.spool.drop_oldest(kind, lane.sent)
        except OSError:
            return False
        if gone is None:
            return False
        self._intake.note_held(0, -lane.forget(gone.first, gone.last))
        self._intake.count_dropped(kind, gone.items)
        return True

    def _sum_up(self, completion: Completion) -> None:
        """Count the messages of each kind in the completion, itself included: it is the last to be cut."""
        produced: dict[str, int] = {kind: lane.last for kind, lane in self._lanes.items() if lane.last}
        completion.produced = produced | {"completions": self._lanes["completions"].last + 1}
        completion.dropped = self._intake.dropped or None
