"""Takes what is said, from any thread, in a few microseconds and within a bound of memory."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, repeat
from typing import Final

from trainwire.ingest.sending.batching import (
    CHECKPOINT_BYTES,
    COMPLETION_BYTES,
    MAX_BATCH_BYTES,
    Line,
    LogType,
    MetricItem,
    Waiting,
    line_bytes,
    lines_bytes,
    metric_bytes,
)
from trainwire.schemas.messages import Checkpoint, Completion

SENDER_THREAD: Final = "trainwire-sender"


class Intake:
    """Holds what has no number yet, and counts the bytes of everything until its ack.

    Above `limit_bytes` new log lines are dropped and counted; everything else gets in up to twice of it.
    What is dropped never gets a seq, so it leaves no gap. `wake` is set when a batch is full. With `must_wait`
    nothing is dropped before the end: who speaks waits for room, the sender's own thread excepted.
    """

    def __init__(self, limit_bytes: int, wake: threading.Event, *, must_wait: bool = False) -> None:
        self._limit_bytes = limit_bytes
        self._must_wait = must_wait
        self._wake = wake
        # Re-entrant: a signal handler or a destructor that prints may interrupt a caller inside the lock.
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._waiting = Waiting()
        self._waiting_bytes = 0
        self._held_bytes = 0
        self._dropped: Counter[str] = Counter()
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Tell whether the completion was said."""
        return self._is_closed

    @property
    def is_empty(self) -> bool:
        """Tell whether everything that was said has its number."""
        return not self._waiting_bytes

    @property
    def waiting_bytes(self) -> int:
        """Return how much memory everything takes that has no number yet."""
        return self._waiting_bytes

    @property
    def size_bytes(self) -> int:
        """Return about how much memory everything takes that was said and is not acked."""
        return self._waiting_bytes + self._held_bytes

    @property
    def held_bytes(self) -> int:
        """Return how much memory the messages take that are not acked."""
        return self._held_bytes

    @property
    def dropped(self) -> dict[str, int]:
        """Return how much was dropped of what."""
        with self._lock:
            return dict(self._dropped)

    def add_lines(
        self, texts: Sequence[str], log_type: LogType, ts: int, levels: Iterable[str | None] = repeat(None)
    ) -> bool:
        """Take lines that were said at `ts`, each with its level; return whether all were taken.

        Each has a nanosecond of its own: by times alone stores keep the order, and page through a burst.
        """
        refused = 0
        with self._lock:
            if len(texts) > 1 and self._fits(size_bytes := lines_bytes(texts)):
                self._admit(size_bytes, self._limit_bytes)
                lines = zip(repeat(log_type), levels, count(ts), texts, strict=False)
                self._waiting.lines.extend(map(Line._make, lines))
                return True
            for line in map(Line, repeat(log_type), levels, count(ts), texts):
                if self._admit(line_bytes(line.text), self._limit_bytes):
                    self._waiting.lines.append(line)
                else:
                    refused += 1
            if refused:
                self._dropped["logs"] += refused
        return not refused

    def add_metric(self, item: MetricItem) -> bool:
        """Take a point or a header; return whether it was taken."""
        with self._lock:
            is_taken = self._admit(metric_bytes(item), 2 * self._limit_bytes)
            if is_taken:
                self._waiting.metrics.append(item)
            else:
                self._dropped["metrics"] += 1
        return is_taken

    def add_checkpoint(self, checkpoint: Checkpoint) -> bool:
        """Take a checkpoint; return whether it was taken."""
        with self._lock:
            is_taken = self._admit(CHECKPOINT_BYTES, 2 * self._limit_bytes)
            if is_taken:
                self._waiting.checkpoints.append(checkpoint)
            else:
                self._dropped["checkpoints"] += 1
        return is_taken

    def close(self, completion: Completion | None) -> None:
        """Take the completion, which is small and always fits, and nothing more after it."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._waiting.completion = completion
                self._waiting_bytes += COMPLETION_BYTES if completion is not None else 0

    def take_out(self) -> Waiting:
        """Hand over all that is waiting; its bytes count until `note_held`."""
        with self._lock:
            waiting, self._waiting = self._waiting, Waiting()
            if waiting.is_empty:
                self._waiting_bytes = 0  # heals what a re-entrant call may have miscounted
        return waiting

    def note_held(self, waited_bytes: int, held_bytes: int) -> None:
        """Count a body under the size of the message that it became (0: it was let go)."""
        with self._lock:
            self._waiting_bytes -= waited_bytes
            self._held_bytes += held_bytes
            if self._must_wait:
                self._room.notify_all()

    def count_dropped(self, what: str, how_many: int = 1) -> None:
        """Count what cannot be sent."""
        with self._lock:
            self._dropped[what] += how_many

    def recall_dropped(self, dropped: Mapping[str, int]) -> None:
        """Go on from what another process has counted."""
        with self._lock:
            self._dropped.update(dropped)

    def stop_waiting(self) -> None:
        """Let nobody wait any more: what does not fit is dropped and counted from now on."""
        with self._lock:
            self._must_wait = False
            self._room.notify_all()

    def _fits(self, size_bytes: int) -> bool:
        return not self._is_closed and self._waiting_bytes + self._held_bytes + size_bytes <= self._limit_bytes

    def _admit(self, size_bytes: int, limit_bytes: int) -> bool:
        if self._must_wait and threading.current_thread().name != SENDER_THREAD:
            self._room.wait_for(lambda: not self._must_wait or self.size_bytes + size_bytes <= limit_bytes)
        if self._is_closed or self._waiting_bytes + self._held_bytes + size_bytes > limit_bytes:
            return False
        before = self._waiting_bytes
        self._waiting_bytes = before + size_bytes
        if before < MAX_BATCH_BYTES <= self._waiting_bytes:
            self._wake.set()
        return True
