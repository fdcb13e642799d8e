"""Postgres for the event loop: reads in a few threads of their own, and none of them twice at the same time."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar

import structlog
from anyio import CapacityLimiter, to_thread
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft

from trainwire.gateway.feed.feed_queries import read_rows
from trainwire.gateway.feed.rows import Hole, Rows
from trainwire.schemas.kinds import RowKind

READERS: Final = 4
KEPT_PIECES: Final = 4
KEPT_S: Final = 60.0

log = structlog.get_logger("trainwire.gateway.feed.read_pool")
P = ParamSpec("P")
T = TypeVar("T")


class Documents(Protocol):
    """Jobs as HTTP shows them: the feed begins with the same documents."""

    def detail(self, connection: Connection, job_id: int) -> object:
        """Return one job; None where no message of it has been stored."""

    def items(self, connection: Connection, job_ids: Sequence[int]) -> Sequence[object]:
        """Return these jobs as lists show them, the newest first."""


class PostgresAway(Exception):  # noqa: N818 - said to clients as it stands
    """Postgres cannot be asked just now."""


class Reader:
    """Reads from Postgres without holding up the event loop, and without queueing behind HTTP requests."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._threads = CapacityLimiter(READERS)

    async def __call__(
        self, read: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what `read(connection, ...)` returns; raise `PostgresAway`."""

        def work() -> T:
            with self._engine.connect() as connection:
                return read(connection, *args, **kwargs)

        try:
            return await to_thread.run_sync(work, limiter=self._threads)
        except (DBAPIError, NoConnectionLeft) as exc:
            said = str(getattr(exc, "orig", exc)).strip().partition("\n")[0]
            raise PostgresAway(f"Postgres cannot be read: {said}") from exc


class Shared(Generic[T]):
    """One result for all who ask while it is made, and for a moment after."""

    def __init__(self, make: Callable[[], Awaitable[T]], fresh_s: float = 0.0) -> None:
        self._make = make
        self._fresh_s = fresh_s
        self._task: asyncio.Task[T] | None = None
        self._until = 0.0

    async def get(self) -> T:
        """Return the result; who is cancelled meanwhile takes it from nobody."""
        if self._task is None or (self._task.done() and time.monotonic() >= self._until):
            self._task = asyncio.ensure_future(self._timed())
        return await asyncio.shield(self._task)

    def forget(self) -> None:
        """Have the next one who asks get what is made after now."""
        self._task = None

    async def _timed(self) -> T:
        self._until = 0.0
        result = await self._make()
        self._until = time.monotonic() + self._fresh_s
        return result


class Backlog:
    """The rows of one job in pieces; clients that catch up side by side share them."""

    def __init__(self, read: Reader, job_id: int) -> None:
        self._read = read
        self._job_id = job_id
        self._pieces: OrderedDict[tuple[RowKind, int], Shared[Rows]] = OrderedDict()

    async def rows(self, hole: Hole) -> Rows:
        """Return some of the first rows of a hole; none where Postgres has none. May have more than the hole."""
        key = (hole.kind, hole.have)
        piece = self._pieces.get(key)
        if piece is None:
            piece = self._pieces[key] = Shared(lambda: self._read(read_rows, self._job_id, *key), KEPT_S)
            if len(self._pieces) > KEPT_PIECES:
                self._pieces.popitem(last=False)
        try:
            rows = await piece.get()
        except BaseException:
            self._pieces.pop(key, None)
            raise
        if rows.last <= rows.have:
            self._pieces.pop(key, None)  # none yet; what is there never changes
        return rows
