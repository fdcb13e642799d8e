"""Collects lines, points and checkpoints in memory, and makes message bodies from them."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, repeat
from typing import Any, Final, NamedTuple

import msgspec

from trainwire.ingest.sending.size_limits import line_pieces
from trainwire.schemas.wire.messages import Body, Checkpoint, Completion, Logs, LogType, Metrics, Point, Progress

SENDER_THREAD: Final = "trainwire-sender"
"""The name of the threads that empty the buffer. They never wait for room in it."""

MAX_ITEMS: Final = 1000
MAX_BATCH_BYTES: Final = 256 * 1024
"""Size limit of the lines or points in one message; a larger single item has a message of its own."""
LONGEST_WHOLE_BYTES: Final = 4 * 1024 * 1024
"""A line above this size may exceed the size limit of a message, and is split into pieces if it does."""

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
    """Collects lines, points and checkpoints in memory until the sender makes messages from them.

    Limits the memory of both. Any thread may add values; this takes microseconds. Above `limit_bytes` of values
    and unacknowledged messages, new log lines are dropped and counted. Points, checkpoints and headers (a
    `Metrics` without points) have twice this limit. A dropped value gets no sequence number, so it leaves no gap.
    The event `wake` is set when there is enough for a full message. With `must_wait`, calls wait for room instead,
    until `stop_waiting`; the sender's own threads never wait.
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
        """Approximate memory, in bytes, of the values that are not part of a message yet."""
        self.unacked_bytes = 0
        """Approximate memory, in bytes, of the messages that are not acknowledged yet."""
        self.is_closed = False
        """Whether the run is finished, so that no more values are accepted."""

    @property
    def is_empty(self) -> bool:
        """Whether no value waits to become part of a message."""
        return not self.buffered_bytes

    @property
    def size_bytes(self) -> int:
        """The approximate memory, in bytes, of all values and messages that are not acknowledged."""
        return self.buffered_bytes + self.unacked_bytes

    @property
    def dropped(self) -> dict[str, int]:
        """The number of dropped lines, points, checkpoints and single values, by kind."""
        with self._lock:
            return dict(self._dropped)

    def add_lines(
        self, texts: Sequence[str], log_type: LogType, ts: int, levels: Iterable[str | None] = repeat(None)
    ) -> bool:
        """Add to the buffer lines printed at `ts`, each with its log level.

        Return False if any of them was dropped. Each line gets a time one nanosecond after the previous one, so
        that stores that sort by time keep the order.
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
        """Add to the buffer a point, or a header (a `Metrics` without points); return False if it was dropped."""
        with self._lock:
            is_taken = self._admit("metrics", _metric_bytes(metric), 2 * self._limit_bytes)
            if is_taken:
                self._metrics.append(metric)
        return is_taken

    def add_checkpoint(self, checkpoint: Checkpoint) -> bool:
        """Add a checkpoint to the buffer; return False if it was dropped."""
        with self._lock:
            is_taken = self._admit("checkpoints", CHECKPOINT_BYTES, 2 * self._limit_bytes)
            if is_taken:
                self._checkpoints.append(checkpoint)
        return is_taken

    def close(self, completion: Completion | None) -> None:
        """Add the completion of the source to the buffer, even if it is full, and reject all later values."""
        with self._lock:
            if not self.is_closed:
                self.is_closed = True
                self._completion = completion
                self.buffered_bytes += COMPLETION_BYTES if completion is not None else 0

    def take_bodies(self, rank: int | None) -> Iterator[tuple[Body, int]]:
        """Empty the buffer; yield its values as message bodies, the completion last.

        Each body comes with the size of its values in bytes, which counts as buffered until the sender calls
        `note_message`.
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
        """Update the memory accounting after a body became a message, or after an acknowledgement.

        Subtracts `buffered_bytes` from the size of the buffered values. Adds `unacked_bytes`, which is negative
        after an acknowledgement, to the size of the unacknowledged messages.
        """
        with self._lock:
            self.buffered_bytes -= buffered_bytes
            self.unacked_bytes += unacked_bytes
            if self._must_wait:
                self._room.notify_all()

    def count_dropped(self, kind: str, number: int = 1) -> None:
        """Count dropped items; `kind` is that of their message, such as `logs`, or `values` for single values."""
        with self._lock:
            self._dropped[kind] += number

    def restore_dropped(self, dropped: Mapping[str, int]) -> None:
        """Add the counts of dropped items that an earlier process has written to its spool."""
        with self._lock:
            self._dropped.update(dropped)

    def stop_waiting(self) -> None:
        """Wake all calls that wait for free memory.

        From now on, values for which there is no memory are dropped and counted.
        """
        with self._lock:
            self._must_wait = False
            self._room.notify_all()

    def _has_room(self, size_bytes: int, limit_bytes: int) -> bool:
        return not self.is_closed and self.buffered_bytes + self.unacked_bytes + size_bytes <= limit_bytes

    def _admit(self, kind: str, size_bytes: int, limit_bytes: int) -> bool:
        """Count the bytes of a value and return True.

        If that would exceed the limit, count the value as dropped and return False.
        """
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
    """Make message bodies from log lines; yield each with the size of its lines in the buffer, in bytes.

    A change between stdout and stderr begins a new body, so that sequence numbers keep the order of the lines.
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
    """Make message bodies from points and headers; yield each with the size of its values in the buffer, in bytes.

    The headers of one body are merged.
    """
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
    """Copy the fields that are set in `header` to `body`."""
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
