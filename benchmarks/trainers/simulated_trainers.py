"""Simulates thousands of trainers in one process: each has a source, a connection and the rules of the sender.

Messages of a source are numbered. Each is kept until its acknowledgement is read, and sent again if Redis or the
workers have lost it. Sequence and content of the commands are those of `trainwire.ingest.sending`.
"""

from __future__ import annotations

import heapq
import os
import random
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, count
from typing import Any, Final, TypeAlias

from msgspec.structs import replace

from benchmarks.load import LINE
from benchmarks.trainers.trainer_connections import Connection, ignore, max_connections, pack
from trainwire.ingest.sending.acks import AckReport, AckWatch, parse_report
from trainwire.ingest.sending.flush_pace import FlushPace
from trainwire.ingest.sending.sender import LONE_ASK_FACTOR
from trainwire.ingest.settings.setting_groups import Timing, Vitals
from trainwire.schemas.keys import (
    DEFAULT_SHARDS,
    FREQUENT_KINDS,
    HOLD_KEY,
    JOB_DELETED_FIELD,
    Kind,
    ack_field,
    acks_key,
    alive_field,
    alive_key,
    behind_key,
    claim_key,
    lost_field,
    missing_field,
    read_behind_s,
    shard_of,
    stop_field,
    stream_key,
)
from trainwire.schemas.wire.entries import encode_entry
from trainwire.schemas.wire.heartbeats import Heartbeat, encode_heartbeat
from trainwire.schemas.wire.messages import Body, Logs, Message, Metrics, Point

LINE_EVERY_S: Final = 1.0
POINT_EVERY_S: Final = 5.0
TIMING: Final = Timing()
POLL_S: Final = LONE_ASK_FACTOR * TIMING.ack_interval_s
HEARTBEAT_EVERY_S: Final = Vitals().interval_s
VALUES: Final = {
    "loss": 0.1234567,
    "accuracy": 0.98,
    "learning_rate": 0.001,
    "grad_norm": 1.25,
    "images_per_s": 1234,
}


class Unacked:
    """The messages of one source and kind that are not acknowledged: number and encoded XADD."""

    def __init__(self, source: str, kind: Kind) -> None:
        self.seq = 0
        self.sent = 0
        self.messages: deque[tuple[int, int, bytes]] = deque()
        """(first number, last number, encoded XADD) of each entry."""
        self.watch = AckWatch(TIMING, time.time())
        self.fields = [name(source, kind) for name in (ack_field, missing_field, lost_field)]

    def resend(self, report: AckReport, now: float) -> Iterator[Outgoing]:
        """Remove acknowledged messages, and yield those that have to be sent again."""
        messages, acked = self.messages, report.acked or 0
        while messages and messages[0][1] <= acked:
            messages.popleft()
        awaited = self.sent if self.sent > acked else None
        for first, last in self.watch.overdue(report, awaited, now):
            yield from ((self, end, packed) for begin, end, packed in messages if begin <= last and first <= end)


Outgoing: TypeAlias = tuple[Unacked, int, bytes]


class Trainer:
    """One source: it makes messages, and sends them as `trainwire.ingest.sending.sender` does."""

    def __init__(self, crowd: Crowd, connection: Connection, job: int) -> None:
        self._crowd, self._connection, self._job = crowd, connection, job
        self._source = source = f"0-{os.urandom(16).hex()}"
        self._shard = shard_of(job, DEFAULT_SHARDS)
        self._kinds: dict[Kind, Unacked] = {kind: Unacked(source, kind) for kind in ("logs", "metrics")}
        names = chain.from_iterable(kind.fields for kind in self._kinds.values())
        waits = [pack(("GET", behind_key(kind, self._shard))) for kind in FREQUENT_KINDS]
        self._ask_room = [pack(("EXISTS", HOLD_KEY)), *waits]
        self._ask_acks = pack(("HMGET", acks_key(job), JOB_DELETED_FIELD, stop_field(source), *names))
        self._to_send: list[Outgoing] = []
        self._sending: list[Outgoing] = []
        self._is_busy = self._is_polling = False
        self._must_hold = True  # until the first reply
        self._asked = 0
        self._acks_read_at = self._backoff_s = 0.0
        self._flush_s = random.uniform(0, TIMING.flush_interval_s)
        self._pace = FlushPace(TIMING.flush_interval_s)
        self._flushed_at = self._planned_at = 0.0
        self._lines: list[int] = []
        self._points: list[Point] = []
        self._since = 0.0
        self._step = 0

    def start(self, at: float) -> None:
        """Send the first message and a heartbeat; plan the next line and point."""
        self._since = at
        header = Metrics(name=f"run-{self._job}", heartbeat_s=HEARTBEAT_EVERY_S, world_size=1, ts=int(at * 1e9))
        self._make("metrics", header)
        self._line(at)
        self._crowd.plan(at + random.uniform(0, POINT_EVERY_S), self._point)
        self._beat(at)

    def _line(self, at: float) -> None:
        if not self._crowd.is_ended:
            self._lines.append(int(at * 1e9))
            self._crowd.lines += 1
        self._crowd.plan(at + self._flush_s, self._flush)
        self._crowd.plan(at + LINE_EVERY_S, self._line)

    def _point(self, at: float) -> None:
        self._step += 100
        if not self._crowd.is_ended:
            self._points.append(Point(ts=int(at * 1e9), epoch=1, step=self._step, values=VALUES))
        self._crowd.plan(at + self._flush_s, self._flush)
        self._crowd.plan(at + POINT_EVERY_S, self._point)

    def _cut(self) -> None:
        """Make messages from the lines and points since the last flush."""
        if self._lines:
            lines = [LINE] * len(self._lines)
            self._make("logs", Logs(log_type="stdout", lines=lines, ts=self._lines), len(lines))
            self._lines = []
        if self._points:
            self._make("metrics", Metrics(points=self._points), len(self._points))
            self._points = []

    def _make(self, kind: Kind, body: Body, messages: int = 1) -> None:
        """Make an entry of one or more messages, each with one line or point."""
        of_kind = self._kinds[kind]
        of_kind.seq += messages
        body.started_at = int(self._since * 1e9)
        parts = (1,) * messages if messages > 1 else ()
        entry = encode_entry(Message(kind, self._job, 0, self._source, of_kind.seq, body, parts))
        packed = pack(("XADD", stream_key(kind, self._shard), "*", *chain.from_iterable(entry.items())))
        of_kind.messages.append((of_kind.seq - messages + 1, of_kind.seq, packed))
        self._to_send.append((of_kind, of_kind.seq, packed))
        self._crowd.produced[kind] += messages
        self._crowd.entries += kind == "logs"

    def _flush(self, _: float) -> None:
        """Send what waits, or plan it for later while the workers are behind."""
        if self._is_busy or not (self._to_send or self._lines or self._points):
            return
        now, due_at = self._crowd.now, self._flushed_at + self._pace.interval_s
        if self._pace.is_slow and now < due_at and not self._crowd.is_ended:
            if due_at > self._planned_at:
                self._planned_at = due_at
                self._crowd.plan(due_at, self._flush)
            return
        self._cut()
        self._exchange(now)

    def finish(self) -> None:
        """Send what waits at once, as the end of a run does."""
        self._flush(self._crowd.now)

    def _poll(self, _: float) -> None:
        self._is_polling = False
        if self.awaited and not self._is_busy and self._acks_read_at + POLL_S <= self._crowd.now:
            self._exchange(self._crowd.now)
        else:
            self._poll_later()

    def _poll_later(self) -> None:
        if not self._is_polling and self.awaited:
            self._is_polling = True
            self._crowd.plan(
                max(self._crowd.now + TIMING.flush_interval_s, self._acks_read_at + POLL_S), self._poll
            )

    @property
    def awaited(self) -> int:
        """The number of messages, lines and points that are not acknowledged."""
        made = sum(len(kind.messages) for kind in self._kinds.values())
        return made + len(self._lines) + len(self._points)

    def _exchange(self, now: float) -> None:
        """Ask whether Redis accepts messages, and for acknowledgements if it is time; send messages with it."""
        self._is_busy = True
        commands = [*self._ask_room]
        interval_s = TIMING.ack_interval_s * (1 if self._to_send else LONE_ASK_FACTOR)
        if self.awaited > len(self._to_send) and now - self._acks_read_at >= interval_s:
            commands.append(self._ask_acks)
        self._asked = len(commands)
        if not self._must_hold:
            self._sending, self._to_send = self._to_send, []
            self._flushed_at = now if self._sending else self._flushed_at
            commands += [packed for *_, packed in self._sending]
        self._connection.send_packed(commands, self._on_replies)

    def _on_replies(self, replies: list[Any]) -> None:
        self._must_hold = bool(replies[0])
        self._pace = self._pace.after(read_behind_s(replies[1 : len(self._ask_room)]))
        if any(isinstance(reply, Exception) for reply in replies[self._asked :]):  # Redis is full: all again
            self._to_send, self._must_hold = self._sending + self._to_send, True
        elif self._sending:
            self._backoff_s = 0.0
            for kind, seq, _ in self._sending:
                kind.sent = max(kind.sent, seq)
        self._sending = []
        if self._asked > len(self._ask_room):
            self._acks_read_at = self._crowd.now
            values = iter(replies[self._asked - 1][2:])
            for of_kind in self._kinds.values():
                report = parse_report(next(values), next(values), next(values))
                resends = [*of_kind.resend(report, self._crowd.now)]
                self._crowd.resent += len(resends)
                self._to_send = resends + self._to_send
        if self._must_hold:
            self._crowd.held += 1
            self._retry_later()
            return
        self._is_busy = False
        self._poll_later()
        self._flush(0)

    def _retry_later(self) -> None:
        self._backoff_s = min(max(2 * self._backoff_s, TIMING.first_backoff_s), TIMING.longest_backoff_s)
        self._crowd.plan(self._crowd.now + self._backoff_s * random.uniform(0.5, 1), self._retry)

    def _retry(self, _: float) -> None:
        self._exchange(self._crowd.now)

    def _beat(self, at: float) -> None:
        claim = ("GETRANGE", claim_key(self._job, 0, 0, ""), 0, 4095)
        ask = [("TIME",), ("HMGET", acks_key(self._job), stop_field(self._source)), claim]
        self._connection.send(ask, self._on_time)
        self._crowd.plan(at + HEARTBEAT_EVERY_S, self._beat)

    def _on_time(self, replies: list[Any]) -> None:
        now_ms = int(replies[0][0]) * 1000 + int(replies[0][1]) // 1000
        beat = Heartbeat(
            job=self._job, source=self._source, at=now_ms, rank=0, host="bench", pid=1, since=self._since, unsent=0
        )
        written = ("HSET", alive_key(self._shard), alive_field(self._job, self._source), encode_heartbeat(beat))
        holder = encode_heartbeat(replace(beat, source="hash-of-the-source"))
        ttl_ms = int(3000 * HEARTBEAT_EVERY_S)
        claim = ("SET", claim_key(self._job, 0, 0, ""), holder, "PX", ttl_ms)
        self._connection.send([written, claim], ignore)


class Crowd:
    """All trainers of a benchmark, and the times at which each has something to do.

    Args:
        url: the address of Redis.
        trainers: number of trainers; their jobs are 1 to `trainers`.
        start_s: seconds in which they start one after another.
    """

    def __init__(self, url: str, trainers: int, start_s: float) -> None:
        self.now = time.time()
        self.is_ended = False
        self.produced: dict[Kind, int] = {"logs": 0, "metrics": 0}
        self.lines = self.entries = 0
        self.resent = self.held = 0
        self.late_s = 0.0
        """The longest delay of a planned action, because this process was too slow."""
        self._plan: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()
        connections = [Connection(url) for _ in range(min(trainers, max_connections()))]
        self._connections = {connection.fileno: connection for connection in connections}
        self._poll = select.epoll()
        for fileno in self._connections:
            self._poll.register(fileno, select.EPOLLIN)
        self.trainers = [
            Trainer(self, connections[number % len(connections)], number + 1) for number in range(trainers)
        ]
        self._start_s = start_s

    def plan(self, at: float, action: Callable[[float], None]) -> None:
        """Call `action` with the planned time once that time has come."""
        heapq.heappush(self._plan, (at, next(self._numbers), action))

    def run(self, began: float, ended: float, wait_s: float) -> float:
        """Start the trainers at `began`, stop their messages at `ended`.

        Return the seconds from then until the last acknowledgement was read, at most `wait_s`.
        """
        for number, trainer in enumerate(self.trainers):
            self.plan(began + self._start_s * number / len(self.trainers), trainer.start)
        while self.now < ended:
            self._step(ended)
        self.is_ended = True
        for trainer in self.trainers:
            trainer.finish()
        while any(trainer.awaited for trainer in self.trainers) and self.now < ended + wait_s:
            until = time.time() + 0.1
            while self.now < until:
                self._step(until)
        return self.now - ended

    def _step(self, until: float) -> None:
        plan = self._plan
        self.now = now = time.time()
        while plan and plan[0][0] <= now:
            at, _, action = heapq.heappop(plan)
            self.late_s = max(self.late_s, now - at)
            action(at)
        wait_s = max(0.0, min(until, plan[0][0] if plan else until) - time.time())
        found = self._poll.poll(wait_s, len(self._connections))
        self.now = time.time()
        for fileno, _ in found:
            self._connections[fileno].read()
