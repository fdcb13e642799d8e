"""Collects lines, points and checkpoints in memory, and makes message bodies of them."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, repeat
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from trainwire.ingest.sending.size_limits import line_pieces
from trainwire.schemas.messages import Body, Checkpoint, Completion, Logs, Metrics, Point, Progress

LogType: TypeAlias = Literal["stdout", "stderr"]

SENDER_THREAD: Final = "trainwire-sender"
"""The name of the threads that empty the buffer: they never wait for room in it."""

MAX_ITEMS: Final = 1000
MAX_BATCH_BYTES: Final = 256 * 1024
"""Lines or points of one message; a single one that is larger is sent alone."""
LONGEST_WHOLE_BYTES: Final = 4 * 1024 * 1024
"""A longer line may exceed the limit of a message."""

# About how much memory each takes in the buffer.
LINE_OVERHEAD_BYTES: Final = 150
POINT_BYTES: Final = 300
VALUE_BYTES: Final = 100
HEADER_BYTES: Final = 1000
CHECKPOINT_BYTES: Final = 1000
COMPLETION_BYTES: Final = 1000


class Line(NamedTuple):
    """One line of output; `ts` is its time in nanoseconds since 1970."""

    log_type: LogType
    level: str | None
    ts: int
    text: str


class Buffer:
    """Takes values from any thread in microseconds, and counts their memory until they are acknowledged.

    Above `limit_bytes` new log lines are dropped and counted; points, checkpoints and headers (a `Metrics` without
    points) are taken up to twice as much. A dropped value gets no sequence number, so it leaves no gap. `wake` is
    set when there is enough for a full message. With `must_wait` nothing is dropped before `close` or
    `stop_waiting`: calls wait for room, except those of the sender's own threads.
    """

    def __init__(self, limit_bytes: int, wake: threading.Event, *, must_wait: bool = False) -> None:
        self._limit_bytes = limit_bytes
        self._must_wait = must_wait
        self._wake = wake
        # Re-entrant: a signal handler or a destructor that prints may interrupt a caller that holds the lock.
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._lines: list[Line] = []
        self._metrics: list[Point | Metrics] = []
        self._checkpoints: list[Checkpoint] = []
        self._completion: Completion | None = None
        self._dropped: Counter[str] = Counter()
        self.buffered_bytes = 0
        """About how much memory the values take that no message carries yet."""
        self.unacked_bytes = 0
        """About how much memory the messages take that are not acknowledged yet."""
        self.is_closed = False
        """Whether the run is finished: nothing more is taken."""

    @property
    def is_empty(self) -> bool:
        """Return whether every value has become part of a message."""
        return not self.buffered_bytes

    @property
    def size_bytes(self) -> int:
        """Return the approximate memory of all values that are not acknowledged, in bytes."""
        return self.buffered_bytes + self.unacked_bytes

    @property
    def dropped(self) -> dict[str, int]:
        """Return the number of dropped lines, points, checkpoints and values by kind of item."""
        with self._lock:
            return dict(self._dropped)

    def add_lines(
        self, texts: Sequence[str], log_type: LogType, ts: int, levels: Iterable[str | None] = repeat(None)
    ) -> bool:
        """Take lines printed at `ts`, each with its level; return whether all were taken.

        Each next line gets a time one nanosecond later: stores that sort by time then keep the order.
        """
        are_taken = True
        with self._lock:
            size_bytes = sum(map(sys.getsizeof, texts)) + LINE_OVERHEAD_BYTES * len(texts)
            if len(texts) > 1 and self._has_room(size_bytes, self._limit_bytes):
                self._admit("logs", size_bytes, self._limit_bytes)
                lines = zip(repeat(log_type), levels, count(ts), texts, strict=False)
                self._lines.extend(map(Line._make, lines))
                return True
            for line in map(Line, repeat(log_type), levels, count(ts), texts):
                if self._admit("logs", _line_bytes(line.text), self._limit_bytes):
                    self._lines.append(line)
                else:
                    are_taken = False
        return are_taken

    def add_metric(self, metric: Point | Metrics) -> bool:
        """Take a point, or a `Metrics` without points; return whether it was taken."""
        with self._lock:
            is_taken = self._admit("metrics", _metric_bytes(metric), 2 * self._limit_bytes)
            if is_taken:
                self._metrics.append(metric)
        return is_taken

    def add_checkpoint(self, checkpoint: Checkpoint) -> bool:
        """Take a checkpoint; return whether it was taken."""
        with self._lock:
            is_taken = self._admit("checkpoints", CHECKPOINT_BYTES, 2 * self._limit_bytes)
            if is_taken:
                self._checkpoints.append(checkpoint)
        return is_taken

    def close(self, completion: Completion | None) -> None:
        """Take the completion, even if the buffer is full, and reject all later values."""
        with self._lock:
            if not self.is_closed:
                self.is_closed = True
                self._completion = completion
                self.buffered_bytes += COMPLETION_BYTES if completion is not None else 0

    def take_bodies(self, rank: int | None) -> Iterator[tuple[Body, int]]:
        """Empty the buffer; yield message bodies with the bytes that they took in it, the completion last.

        The bytes still count as buffered until `note_message`.
        """
        with self._lock:
            lines, self._lines = self._lines, []
            metrics, self._metrics = self._metrics, []
            checkpoints, self._checkpoints = self._checkpoints, []
            completions = [] if self._completion is None else [self._completion]
            self._completion = None
            if not (lines or metrics or checkpoints or completions):
                self.buffered_bytes = 0  # corrects what a re-entrant call may have counted wrongly
        return chain(
            log_bodies(lines, rank),
            _metric_bodies(metrics, rank),
            zip(checkpoints, repeat(CHECKPOINT_BYTES)),
            zip(completions, repeat(COMPLETION_BYTES)),
        )

    def note_message(self, buffered_bytes: int, unacked_bytes: int) -> None:
        """Note that a body is no longer buffered, and that unacknowledged messages take more memory, or less."""
        with self._lock:
            self.buffered_bytes -= buffered_bytes
            self.unacked_bytes += unacked_bytes
            if self._must_wait:
                self._room.notify_all()

    def count_dropped(self, kind: str, number: int = 1) -> None:
        """Count lines, points or `values` that cannot be sent."""
        with self._lock:
            self._dropped[kind] += number

    def restore_dropped(self, dropped: Mapping[str, int]) -> None:
        """Add the counts of dropped items that an earlier process has left in the spool."""
        with self._lock:
            self._dropped.update(dropped)

    def stop_waiting(self) -> None:
        """Wake all calls that wait for room: from now on values without room are dropped and counted."""
        with self._lock:
            self._must_wait = False
            self._room.notify_all()

    def _has_room(self, size_bytes: int, limit_bytes: int) -> bool:
        return not self.is_closed and self.buffered_bytes + self.unacked_bytes + size_bytes <= limit_bytes

    def _admit(self, kind: str, size_bytes: int, limit_bytes: int) -> bool:
        """Count the bytes of a value and return True; where there is no room for it, count it as dropped."""
        if self._must_wait and threading.current_thread().name != SENDER_THREAD:
            self._room.wait_for(lambda: not self._must_wait or self.size_bytes + size_bytes <= limit_bytes)
        if not self._has_room(size_bytes, limit_bytes):
            self._dropped[kind] += 1
            return False
        before = self.buffered_bytes
        self.buffered_bytes = before + size_bytes
        if before < MAX_BATCH_BYTES <= self.buffered_bytes:
            self._wake.set()
        return True


def log_bodies(lines: Iterable[Line], rank: int | None) -> Iterator[tuple[Logs, int]]:
    """Yield message bodies with the bytes that their lines took in the buffer.

    A change between stdout and stderr begins a new body: sequence numbers then keep the order of the lines.
    """
    batch: list[Line] = []
    size = 0
    for line in lines:
        cost = _line_bytes(line.text)
        is_full = len(batch) >= MAX_ITEMS or size + cost > MAX_BATCH_BYTES
        if batch and (is_full or line.log_type != batch[0].log_type):
            yield _logs(batch, rank), size
            batch, size = [], 0
        if cost > LONGEST_WHOLE_BYTES and len(pieces := line_pieces(line.text)) > 1:
            for number, piece in enumerate(pieces):
                part = line._replace(text=piece, ts=line.ts + number)
                yield _logs([part], rank), 0 if number else cost
            continue
        batch.append(line)
        size += cost
    if batch:
        yield _logs(batch, rank), size


def _metric_bodies(metrics: Iterable[Point | Metrics], rank: int | None) -> Iterator[tuple[Metrics, int]]:
    """Yield message bodies with the bytes that their points took in the buffer; headers of one body are merged."""
    body, size = Metrics(rank=rank), 0
    for metric in metrics:
        cost = _metric_bytes(metric)
        if size and (len(body.points) >= MAX_ITEMS or size + cost > MAX_BATCH_BYTES):
            yield body, size
            body, size = Metrics(rank=rank), 0
        size += cost
        if isinstance(metric, Point):
            body.points.append(metric)
        else:
            _merge(body, metric)
    if size:
        yield body, size


def _line_bytes(text: str) -> int:
    return sys.getsizeof(text) + LINE_OVERHEAD_BYTES


def _metric_bytes(metric: Point | Metrics) -> int:
    if isinstance(metric, Point):
        return POINT_BYTES + VALUE_BYTES * len(metric.values)
    return HEADER_BYTES + sum(sys.getsizeof(alert.text) for alert in metric.alerts or ())


def _logs(batch: list[Line], rank: int | None) -> Logs:
    levels = [line.level for line in batch]
    return Logs(
        log_type=batch[0].log_type,
        lines=[line.text for line in batch],
        ts=[line.ts for line in batch],
        levels=levels if any(levels) else None,
        rank=rank,
    )


def _merge(body: Metrics, header: Metrics) -> None:
    """Copy the fields that a header has set into the body."""
    for name in _REPLACED:
        if getattr(header, name) is not None:
            setattr(body, name, getattr(header, name))
    if header.provenance is not None:
        body.provenance = {**(body.provenance or {}), **header.provenance}
    if header.alerts is not None:
        body.alerts = [*(body.alerts or ()), *header.alerts]
    if header.progress is None:
        return
    known: dict[str, Any] = msgspec.structs.asdict(body.progress) if body.progress else {}
    new = {name: value for name, value in msgspec.structs.asdict(header.progress).items() if value is not None}
    body.progress = Progress(**{**known, **new})


_REPLACED: Final = (
    *("ts", "name", "params", "tags", "mlflow_run_id", "world_size", "launcher", "heartbeat_s"),
    *("parent_id", "fork_step"),
)
"""The fields of metrics of which the newest value counts."""
