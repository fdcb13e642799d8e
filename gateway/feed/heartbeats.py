"""Heartbeats of the live feed: they report whether new rows can arrive, and that the gateway itself still runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import redis
import structlog
from anyio import CapacityLimiter, to_thread
from sqlalchemy import Connection, text

from trainwire.gateway.feed.client_queues import ClientQueue
from trainwire.gateway.feed.frames import FrameBatch, gateway_frame
from trainwire.gateway.feed.read_pool import PostgresUnavailable, ReadPool
from trainwire.schemas.keys import HALTED_KEY, KINDS, SHARDS_KEY, read_shards, stream_key
from trainwire.schemas.streams.clients import STREAM_ERRORS, server_options
from trainwire.schemas.streams.servers import ask_each

CHECK_EVERY_S: Final = 2.0
BEAT_EVERY_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 5.0
"""Seconds after which a store that does not answer is reported; its answer is still awaited."""
OLD_S: Final = 10
"""Seconds after which a message in a stream is old: workers usually need less than one."""
STUCK_S: Final = 5.0
"""Seconds for which an old message may remain the oldest one of its stream."""

log = structlog.get_logger("trainwire.gateway.feed.heartbeats")


class Heartbeats:
    """Checks the stores, and sends `heartbeat` frames to its clients: every BEAT_EVERY_S, and at each change.

    `problem` in the frame is the reason why no new rows can arrive, or null.
    """

    def __init__(self, read: ReadPool, streams: redis.Redis) -> None:
        self._clients: dict[ClientQueue, None] = {}
        self._problem: str | None = None
        self._checks = (
            _Check("Postgres", partial(_ask_postgres, read)),
            _Check("Redis", _Backlogs(streams)),
        )

    def add_client(self, queue: ClientQueue) -> None:
        """Send heartbeats to a client, the first at once."""
        self._clients[queue] = None
        queue.send(_heartbeat(self._problem))

    def remove_client(self, queue: ClientQueue) -> None:
        """Send no more heartbeats to a client."""
        self._clients.pop(queue, None)

    async def run(self) -> None:
        """Check the stores while there are clients, and send heartbeats, until cancelled."""
        clock = asyncio.get_running_loop().time
        next_beat_at = clock()
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            if not self._clients:
                continue
            problems = [check.problem() for check in self._checks]
            problem = next(filter(None, problems), None)
            if problem == self._problem and clock() < next_beat_at:
                continue
            if problem != self._problem:
                log.warning("feed.no_new_rows" if problem else "feed.new_rows_again", reason=problem)
            self._problem = problem
            next_beat_at = clock() + BEAT_EVERY_S
            batch = _heartbeat(problem)
            for queue in list(self._clients):
                queue.send(batch)


class _Check:
    """Asks a store again and again; one question at a time, because a frozen server answers none."""

    def __init__(self, store: str, ask: Callable[[], Awaitable[str | None]]) -> None:
        self._store = store
        self._ask = ask
        self._task: asyncio.Task[str | None] | None = None
        self._asked_at = 0.0
        self._problem: str | None = None

    def problem(self) -> str | None:
        """Return the store's newest known problem, and ask again if it has answered."""
        clock = asyncio.get_running_loop().time
        if self._task is not None and not self._task.done():
            if clock() - self._asked_at > ANSWER_TIMEOUT_S:
                self._problem = f"{self._store} does not answer"
            return self._problem
        if self._task is not None:
            self._problem = self._task.result()
        self._task = asyncio.ensure_future(self._outcome())
        self._asked_at = clock()
        return self._problem

    async def _outcome(self) -> str | None:
        try:
            return await self._ask()
        except (PostgresUnavailable, *STREAM_ERRORS):
            return f"{self._store} does not answer"


async def _ask_postgres(read: ReadPool) -> None:
    await read(_select_one)


def _select_one(connection: Connection) -> None:
    connection.execute(text("SELECT 1"))


class _Backlogs:
    """Finds streams whose oldest message no worker removes, although it has waited for long."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._thread = CapacityLimiter(1)
        self._oldest: dict[str, tuple[bytes, float]] = {}
        """Stream -> its oldest message, if that is old, and the monotonic time of its first check."""

    async def __call__(self) -> str | None:
        """Return a problem if workers have made no progress in a stream for STUCK_S seconds."""
        # A thread that waits for a frozen Redis must not delay the end of the gateway.
        found = await to_thread.run_sync(_old_messages, self._client, limiter=self._thread, abandon_on_cancel=True)
        now = time.monotonic()
        known = self._oldest
        # A worker that is behind removes messages all the time, and stores those of quiet jobs first.
        self._oldest = {
            stream: known[stream] if known.get(stream, (b"",))[0] == message else (message, now)
            for stream, message in found.items()
        }
        is_stuck = any(now - since > STUCK_S for _, since in self._oldest.values())
        return "no worker stores messages" if is_stuck else None


def _old_messages(client: redis.Redis) -> dict[str, bytes]:
    """Return the id of the oldest message of each stream in which one has waited for more than OLD_S seconds.

    Halted streams are left out: workers wait there for an operator, and go on with the others.
    """
    published: Any = client.get(SHARDS_KEY)
    halted: Any = client.hkeys(HALTED_KEY)
    now: Any = client.time(**server_options(client, SHARDS_KEY))
    streams = {shard: [stream_key(kind, shard) for kind in KINDS] for shard in range(read_shards(published))}
    until_ms = (now[0] - OLD_S) * 1000
    found = ask_each(
        client,
        {shard: [("XRANGE", key, "-", until_ms, "COUNT", 1) for key in keys] for shard, keys in streams.items()},
    )
    return {
        key: messages[0][0]
        for shard, replies in found.replies.items()
        for key, messages in zip(streams[shard], replies, strict=True)
        if messages and key.encode() not in halted
    }


def _heartbeat(problem: str | None) -> FrameBatch:
    return FrameBatch([gateway_frame("heartbeat", problem=problem)])
