"""The numbered messages of one source, held in memory from the cut to the ack; issue 5 puts a disk behind it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ingest.intake import Intake
from ingest.lane import Held, Lane, Range
from ingest.receipt import Receipt
from ingest.salvage import item_count, salvaged
from schemas.messages import KIND_OF_BODY, Body, Completion, Entry, Message, encode_entry
from schemas.routes import KINDS, Kind

logger = logging.getLogger("trainwire.ingest")

BODIES_PER_CUT: Final = 64
"""Keeps one hold of the lock short, however much is waiting."""


@dataclass(frozen=True)
class Origin:
    """Who says it."""

    job_id: int
    attempt: int
    source: str
    rank: int | None


class Outbox:
    """Cuts what the intake holds into messages with seq 1, 2, 3 ... per kind, and keeps them until acked."""

    def __init__(self, origin: Origin, intake: Intake) -> None:
        self.origin = origin
        self._intake = intake
        self._lock = threading.Lock()  # taken before the intake's, never after it
        self._lanes: dict[Kind, Lane] = {kind: Lane() for kind in KINDS}
        self._bodies: Iterator[tuple[Body, int]] = iter(())

    def cut(self) -> bool:
        """Number and encode some of what is waiting; return whether there may be more."""
        with self._lock:
            for _ in range(BODIES_PER_CUT):
                found = next(self._bodies, None)
                if found is None:
                    self._bodies = self._intake.take_out().bodies(self.origin.rank)
                    found = next(self._bodies, None)
                if found is None:
                    return False
                self._hold(*found)
        return True

    def to_send(self, budget_bytes: int) -> dict[Kind, list[Held]]:
        """Return the next messages of each kind that has any, up to about `budget_bytes` a kind."""
        with self._lock:
            batches = {kind: lane.to_send(budget_bytes) for kind, lane in self._lanes.items()}
        return {kind: batch for kind, batch in batches.items() if batch}

    def mark_sent(self, kind: Kind, seqs: Iterable[int]) -> None:
        """Note that Redis took these messages."""
        with self._lock:
            self._lanes[kind].mark_sent(seqs)

    def release(self, kind: Kind, acked: int) -> None:
        """Let go of the messages that are committed in Postgres: all up to `acked`."""
        with self._lock:
            freed_bytes = self._lanes[kind].release(acked)
        self._intake.note_held(0, -freed_bytes)

    def send_again(self, kind: Kind, ranges: Iterable[Range]) -> None:
        """Queue messages once more that Redis has lost."""
        with self._lock:
            self._lanes[kind].send_again(ranges)

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

    def receipt(self) -> Receipt:
        """Return how far everything came by now."""
        with self._lock:
            lanes = {kind: lane for kind, lane in self._lanes.items() if lane.last}
            return Receipt(
                produced={kind: lane.last for kind, lane in lanes.items()},
                stored={kind: lane.acked for kind, lane in lanes.items()},
                sent={kind: lane.sent for kind, lane in lanes.items()},
                unsent={kind: lane.last - lane.sent for kind, lane in lanes.items()},
                dropped=self._intake.dropped,
            )

    def _hold(self, body: Body, waited_bytes: int) -> None:
        kind = KIND_OF_BODY[type(body)]
        lane = self._lanes[kind]
        if isinstance(body, Completion):
            self._sum_up(body)
        entry = self._encode(kind, lane.last + 1, body)
        if entry is None:
            self._intake.note_held(waited_bytes, 0)
            return
        held = Held(lane.last + 1, entry)
        lane.append(held)
        self._intake.note_held(waited_bytes, held.size_bytes)

    def _sum_up(self, completion: Completion) -> None:
        """Say how much there is of each kind, this completion included: it is the last to be cut."""
        produced: dict[str, int] = {kind: lane.last for kind, lane in self._lanes.items() if lane.last}
        completion.produced = produced | {"completions": self._lanes["completions"].last + 1}
        completion.dropped = self._intake.dropped or None

    def _encode(self, kind: Kind, seq: int, body: Body) -> Entry | None:
        """Encode the body, or what of it can be sent; None when it has no form on the wire at all."""
        entry = self._encoded(kind, seq, body)
        if entry is not None:
            return entry
        kept, dropped = salvaged(body)
        entry = None if kept is None else self._encoded(kind, seq, kept)
        if entry is None:
            dropped = item_count(body)
        if dropped:
            self._intake.count_dropped(kind, dropped)
            logger.warning("job %s: %s of %s cannot be sent: dropped", self.origin.job_id, dropped, kind)
        return entry

    def _encoded(self, kind: Kind, seq: int, body: Body) -> Entry | None:
        origin = self.origin
        try:
            return encode_entry(Message(kind, origin.job_id, origin.attempt, origin.source, seq, body))
        except Exception:
            # Whatever it is: the body is ours alone by now, and what follows it must go out.
            logger.debug("%s of job %s cannot be encoded as they are", kind, origin.job_id, exc_info=True)
            return None
