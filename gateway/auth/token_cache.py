"""Caches tokens by hash: most requests need no query, and callbacks work for a while without Postgres."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog
from anyio import CapacityLimiter, to_thread
from sqlalchemy import Engine
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft

from trainwire.gateway.auth.tokens import ValidToken, find_token, hash_of, note_use
from trainwire.stores.postgres.connections import postgres_trouble

FRESH_S: Final = 5.0
"""Lifetime of a cached result: a revoked token works for at most this time while Postgres is available."""
OUTAGE_S: Final = 300.0
"""Time after the last successful lookup for which a token stays valid while Postgres is unavailable."""
QUERY_TIMEOUT_S: Final = 2.0
"""Timeout of a lookup if the cached token may be used instead."""
MAX_CACHED: Final = 1000
"""Number of valid tokens, and of invalid ones: a flood of invalid tokens evicts no valid one."""
THREADS: Final = 2
"""Threads and connections for tokens alone, so that slow requests do not delay authorization."""
UNAVAILABLE: Final = (OperationalError, InterfaceError, InternalError, NoConnectionLeft, TimeoutError)

K = TypeVar("K")
V = TypeVar("V")
log = structlog.get_logger("trainwire.gateway.auth.token_cache")


@dataclass(slots=True)
class _Cached:
    """A valid token, and the times of the clock until which it may be used without a query."""

    token: ValidToken
    fresh_until: float
    outage_until: float
    retry_at: float = 0.0
    """Postgres was unavailable at the last lookup; the next is not before this time."""


class TokenCache:
    """The cached tokens of one gateway; to be used on its event loop only."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._threads = CapacityLimiter(THREADS)
        self._valid: OrderedDict[bytes, _Cached] = OrderedDict()
        self._refused_until: OrderedDict[bytes, float] = OrderedDict()
        self._lookups: dict[bytes, asyncio.Task[ValidToken | None]] = {}

    async def find(self, token: str, *, may_outlast_postgres: bool = False) -> ValidToken | None:
        """Return a valid token, else None; raise SQLAlchemy's errors.

        With `may_outlast_postgres` a token that was valid at most `OUTAGE_S` ago is returned while Postgres is
        unavailable.
        """
        key, now = hash_of(token), self._clock()
        cached = self._valid.get(key)
        if cached is not None and now < cached.fresh_until:
            self._valid.move_to_end(key)
            return cached.token
        if now < self._refused_until.get(key, -math.inf):
            return None
        if cached is None or not may_outlast_postgres or now >= cached.outage_until:
            return await self._shared_lookup(key, token)
        if now < cached.retry_at:
            return cached.token
        try:
            return await asyncio.wait_for(self._shared_lookup(key, token), QUERY_TIMEOUT_S)
        except UNAVAILABLE as exc:
            cached.retry_at = self._clock() + FRESH_S
            log.warning("token.accepted_from_cache", token_id=cached.token.id, reason=postgres_trouble(exc))
            return cached.token

    async def _shared_lookup(self, key: bytes, token: str) -> ValidToken | None:
        """Look a token up in Postgres, once for all concurrent callers."""
        task = self._lookups.get(key)
        if task is None:
            task = self._lookups[key] = asyncio.create_task(self._look_up(key, token))
            task.add_done_callback(lambda done: self._looked_up(key, done))
        return await asyncio.shield(task)

    def _looked_up(self, key: bytes, task: asyncio.Task[ValidToken | None]) -> None:
        del self._lookups[key]
        if not task.cancelled():
            task.exception()  # retrieved, because all callers may have been cancelled

    async def _look_up(self, key: bytes, token: str) -> ValidToken | None:
        began_at = self._clock()
        valid = await to_thread.run_sync(self._find, token, limiter=self._threads)
        self._valid.pop(key, None)
        self._refused_until.pop(key, None)
        if valid is None:
            put(self._refused_until, key, began_at + FRESH_S, MAX_CACHED)
        else:
            expires_at = math.inf if valid.expires_in_s is None else began_at + valid.expires_in_s
            until = (min(began_at + FRESH_S, expires_at), min(began_at + OUTAGE_S, expires_at))
            put(self._valid, key, _Cached(valid, *until), MAX_CACHED)
        return valid

    def _find(self, token: str) -> ValidToken | None:
        with self._engine.begin() as connection:
            valid = find_token(connection, token)
        if valid is not None and valid.must_note_use:
            try:
                with self._engine.begin() as connection:
                    note_use(connection, valid.id)
            except SQLAlchemyError as exc:  # a standby, or a server with a full disk
                log.warning("token.use_not_noted", token_id=valid.id, reason=postgres_trouble(exc))
        return valid


def put(cache: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Set a value as the newest one of a cache, and remove the oldest ones beyond `most`."""
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > most:
        cache.popitem(last=False)
