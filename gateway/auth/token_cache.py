"""Cache of access tokens by hash: it saves queries, and lets trainers send messages during Postgres outages."""

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
"""Seconds for which a lookup is cached; a revoked token works at most this long while Postgres is available."""
OUTAGE_S: Final = 300.0
"""Seconds after its last successful lookup for which a token is accepted while Postgres is unavailable."""
QUERY_TIMEOUT_S: Final = 2.0
"""Timeout, in seconds, of a lookup that can fall back to a cached token."""
MAX_CACHED: Final = 1000
"""Maximum number of valid tokens, and of invalid tokens, in the cache; invalid ones evict no valid one."""
THREADS: Final = 2
"""Threads and database connections reserved for tokens, so that slow requests do not delay authorization."""
UNAVAILABLE: Final = (OperationalError, InterfaceError, InternalError, NoConnectionLeft, TimeoutError)

K = TypeVar("K")
V = TypeVar("V")
log = structlog.get_logger("trainwire.gateway.auth.token_cache")


@dataclass(slots=True)
class _Cached:
    """A valid token with its deadlines on the cache's clock, in seconds.

    Until `fresh_until` it is used without a query; until `outage_until` it may be used while Postgres is
    unavailable.
    """

    token: ValidToken
    fresh_until: float
    outage_until: float
    retry_at: float = 0.0
    """Time before which Postgres is not queried again, after a lookup found it unavailable."""


class TokenCache:
    """Looks up tokens in Postgres through a cache; not thread-safe: to be used on one event loop only."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._threads = CapacityLimiter(THREADS)
        self._valid: OrderedDict[bytes, _Cached] = OrderedDict()
        self._refused_until: OrderedDict[bytes, float] = OrderedDict()
        self._lookups: dict[bytes, asyncio.Task[ValidToken | None]] = {}

    async def find(self, token: str, *, may_outlast_postgres: bool = False) -> ValidToken | None:
        """Return the role and limits of a valid token, or None if it is not valid.

        If `may_outlast_postgres` is True, a token that was valid at most `OUTAGE_S` seconds ago is accepted while
        Postgres is unavailable. Otherwise SQLAlchemy's errors are raised.
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
        """Look up a token in Postgres; concurrent callers with the same token share one query."""
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
    """Insert a value as the newest entry of a cache, and evict the oldest entries above the maximum `most`."""
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > most:
        cache.popitem(last=False)
