"""Reads from Postgres for the live feed: in threads, with results shared by concurrent readers."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Concatenate, Final, Generic, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft

from trainwire.gateway.feed.feed_queries import read_rows
from trainwire.gateway.feed.feed_rows import RowBatch, RowGap
from trainwire.schemas.tables.kinds import RowKind

THREADS: Final = 4
KEPT_BATCHES: Final = 4
KEPT_S: Final = 60.0

P = ParamSpec("P")
T = TypeVar("T")


class PostgresUnavailable(Exception):  # noqa: N818 - its text is sent to clients
    """A read from Postgres failed and may be retried."""


class ReadPool:
    """Runs queries of the live feed in separate threads and connections: they do not wait for HTTP requests."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._threads = CapacityLimiter(THREADS)

    async def __call__(
        self, read: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return the result of `read(connection, ...)`, run in a thread.

        Raises `PostgresUnavailable` if Postgres fails or no connection is free.
        """

        def run() -> T:
            with self._engine.connect() as connection:
                return read(connection, *args, **kwargs)

        try:
            return await to_thread.run_sync(run, limiter=self._threads)
        except (DBAPIError, NoConnectionLeft) as exc:
            reason = str(getattr(exc, "orig", exc)).strip().partition("\n")[0]
            raise PostgresUnavailable(f"Postgres cannot be read: {reason}") from exc


class SharedResult(Generic[T]):
    """The result of `make()`, called once for all concurrent callers, and cached for `fresh_s` seconds.

    An error is raised to all of them and not cached.
    """

    def __init__(self, make: Callable[[], Awaitable[T]], fresh_s: float) -> None:
        self._make = make
        self._fresh_s = fresh_s
        self._task: asyncio.Task[T] | None = None
        self._fresh_until = 0.0

    async def get(self) -> T:
        """Return the result; the cancellation of one caller does not affect the others."""
        if self._task is None or (self._task.done() and time.monotonic() >= self._fresh_until):
            self._task = asyncio.ensure_future(self._run())
        return await asyncio.shield(self._task)

    def invalidate(self) -> None:
        """Discard the cached result: the next call of `get` computes it anew."""
        self._task = None

    async def _run(self) -> T:
        self._fresh_until = 0.0
        result = await self._make()
        self._fresh_until = time.monotonic() + self._fresh_s
        return result


class SharedRows:
    """Batches of rows of one job; clients that catch up at the same time share them.

    At most KEPT_BATCHES batches are kept, each for KEPT_S seconds.
    """

    def __init__(self, read: ReadPool, job_id: int) -> None:
        self._read = read
        self._job_id = job_id
        self._batches: OrderedDict[tuple[RowKind, int], SharedResult[RowBatch]] = OrderedDict()

    async def read(self, gap: RowGap) -> RowBatch:
        """Return a batch with the first rows of the range `gap`; it is empty if there are no such rows.

        The batch may also contain rows after the end of the range.
        """
        key = (gap.kind, gap.after)
        shared = self._batches.get(key)
        if shared is None:
            shared = self._batches[key] = SharedResult(lambda: self._read(read_rows, self._job_id, *key), KEPT_S)
            if len(self._batches) > KEPT_BATCHES:
                self._batches.popitem(last=False)
        try:
            batch = await shared.get()
        except BaseException:
            self._batches.pop(key, None)
            raise
        if batch.last <= batch.after:
            self._batches.pop(key, None)  # rows may follow; only a batch with rows remains valid
        return batch
