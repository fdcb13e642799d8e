"""Tokens that were looked up lately, by their hashes: few requests ask Postgres, and callbacks outlast it."""

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

from trainwire.gateway.auth.tokens import KnownToken, find_token, hash_of, note_use
from trainwire.stores.postgres.connections import postgres_trouble

REMEMBERED_S: Final = 5.0
"""How long a token counts as what it was: a revoked one works no longer than this while Postgres answers."""
OUTAGE_S: Final = 300.0
"""How long after Postgres last said that a token is valid it is believed while Postgres is away."""
PATIENCE_S: Final = 2.0
"""How long Postgres is waited for where the token is known from before."""
MOST_REMEMBERED: Final = 1000
"""Of valid tokens, and as many of others: whoever makes up tokens pushes out no valid one."""
THREADS: Final = 2
"""Their own, as their connections are: who reads much keeps nobody from coming in."""
AWAY: Final = (OperationalError, InterfaceError, InternalError, NoConnectionLeft, TimeoutError)

V = TypeVar("V")
log = structlog.get_logger("trainwire.gateway.auth.token_cache")


@dataclass(slots=True)
class _Valid:
    """A token that Postgres said is valid, and the times (of the clock) until which that counts."""

    known: KnownToken
    fresh_until: float
    outage_until: float
    unasked_until: float = 0.0
    """Postgres was away when it was asked for the token, and is not asked before this."""


class KnownTokens:
    """The tokens of one gateway; used on its event loop only."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._threads = CapacityLimiter(THREADS)
        self._valid: OrderedDict[bytes, _Valid] = OrderedDict()
        self._refused_until: OrderedDict[bytes, float] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[KnownToken | None]] = {}

    async def find(self, token: str, *, may_outlast_postgres: bool = False) -> KnownToken | None:
        """Return what a token allows, None where it is not valid; raises what SQLAlchemy raises.

        With `may_outlast_postgres` a token that was valid at most `OUTAGE_S` ago still is while Postgres is away.
        """
        key, now = hash_of(token), self._clock()
        valid = self._valid.get(key)
        if valid is not None and now < valid.fresh_until:
            self._valid.move_to_end(key)
            return valid.known
        if now < self._refused_until.get(key, -math.inf):
            return None
        if valid is None or not may_outlast_postgres or now >= valid.outage_until:
            return await self._ask(key, token)
        if now < valid.unasked_until:
            return valid.known
        try:
            return await asyncio.wait_for(self._ask(key, token), PATIENCE_S)
        except AWAY as exc:
            valid.unasked_until = self._clock() + REMEMBERED_S
            log.warning("token.believed_without_postgres", token_id=valid.known.id, reason=postgres_trouble(exc))
            return valid.known

    async def _ask(self, key: bytes, token: str) -> KnownToken | None:
        """Ask Postgres, once for all who wait for the same token."""
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._look_up(key, token))
            task.add_done_callback(lambda done: self._asked(key, done))
        return await asyncio.shield(task)

    def _asked(self, key: bytes, task: asyncio.Task[KnownToken | None]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # whoever still waits is told; nobody may be left

    async def _look_up(self, key: bytes, token: str) -> KnownToken | None:
        asked_at = self._clock()
        known = await to_thread.run_sync(self._find, token, limiter=self._threads)
        self._valid.pop(key, None)
        self._refused_until.pop(key, None)
        if known is None:
            _put(self._refused_until, key, asked_at + REMEMBERED_S)
        else:
            ends = math.inf if known.lasts_s is None else asked_at + known.lasts_s
            until = (min(asked_at + REMEMBERED_S, ends), min(asked_at + OUTAGE_S, ends))
            _put(self._valid, key, _Valid(known, *until))
        return known

    def _find(self, token: str) -> KnownToken | None:
        with self._engine.begin() as connection:
            known = find_token(connection, token)
        if known is not None and known.is_use_news:
            self._note_use(known)
        return known

    def _note_use(self, known: KnownToken) -> None:
        """Note the use of a token, where Postgres can: a standby cannot, nor a server whose disk is full."""
        try:
            with self._engine.begin() as connection:
                note_use(connection, known.id)
        except SQLAlchemyError as exc:
            log.warning("token.use_not_noted", token_id=known.id, reason=postgres_trouble(exc))


def _put(kept: OrderedDict[bytes, V], key: bytes, value: V) -> None:
    kept[key] = value
    while len(kept) > MOST_REMEMBERED:
        kept.popitem(last=False)
