"""Finds the entry that ends its drains: by a kill, a time limit or a crash, whatever the cause.

A drain that ends in good order is noted here; one that does not is noticed by the next. That one first decodes the
batch in a child process (`trainwire.workers.drain.examination`), then stores it in ever smaller pieces, until one
entry is alone.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, cast

import redis

from trainwire.schemas.keys import trials_key
from trainwire.workers.drain.stream import redis_errors
from trainwire.workers.errors import Unavailable

FIRST_PIECE: Final = 1000
"""Entries in a transaction once two drains have died."""
PIECE_DIVISOR: Final = 8
SUSPECTS: Final = 40_000
"""A batch has fewer entries: once so many are through, the one that did it is no longer here."""
ALONE_TRIES: Final = 2
MAX_CONVICTS: Final = 5
"""So many in a row that fail alone are no fault of theirs."""
_TTL_S: Final = 24 * 3600


@dataclass(slots=True)
class Caution:
    """How the next transaction is to proceed.

    `most` bounds its entries; `convicts` are the ids of entries that ended their drains when they stood alone.
    With `is_last_straw` the first other entry becomes one of them.
    """

    examine: bool = False
    most: int | None = None
    convicts: list[str] = field(default_factory=list)
    is_last_straw: bool = False


class Trials:
    """The trials of one stream, kept in Redis; a Redis that is full or away keeps none, and stops no drain."""

    def __init__(self, client: redis.Redis, stream: str) -> None:
        self._client = client
        self._key = trials_key(stream)
        self._caution = Caution()
        self._left = 0
        self._is_begun = False

    def begin(self) -> Caution:
        """Note that a transaction begins, and return how it is to proceed."""
        state: dict[bytes, bytes] = {}
        self._is_begun = True
        with suppress(Unavailable), redis_errors():
            pipeline = self._client.pipeline(transaction=False)
            pipeline.hincrby(self._key, "begun", 1)
            pipeline.expire(self._key, _TTL_S)
            pipeline.hgetall(self._key)
            state = pipeline.execute()[-1]
        self._caution = self._next(
            int(state.get(b"begun", 1)),
            int(state.get(b"piece", 0)),
            [one for one in state.get(b"convicts", b"").decode().split(",") if one],
            int(state.get(b"left", SUSPECTS)),
        )
        return self._caution

    def _next(self, begun: int, piece: int, convicts: list[str], left: int) -> Caution:
        self._left = left
        if not piece and begun <= 2:
            return Caution(examine=begun == 2)
        is_last_straw = False
        if not piece:
            piece, self._left = FIRST_PIECE, SUSPECTS
            self._note(begun=1, piece=piece, left=self._left)
        elif begun > 1 and piece > 1:
            self._left, piece = piece, max(1, piece // PIECE_DIVISOR)
            self._note(begun=1, piece=piece, left=self._left)
        elif begun > ALONE_TRIES:
            is_last_straw = True
        most = piece + len(convicts) + is_last_straw
        return Caution(True, most, convicts, is_last_straw)

    def convict(self, entry_id: str) -> None:
        """Note that this entry has ended its drains when it stood alone."""
        self._caution.convicts.append(entry_id)
        self._note(begun=1, convicts=",".join(self._caution.convicts))

    def succeed(self, entries: int, *, found_one: bool, is_all: bool) -> None:
        """Note the commit of a transaction with so many entries.

        `found_one`: one of them ended its drains; `is_all`: the stream had no others.
        """
        left = self._left - entries
        self._is_begun = False
        if self._caution.most is not None and left > 0 and not found_one and not is_all:
            self._note(begun=0, left=left)
        else:
            self.forget()
            if found_one and not is_all:
                self._note(begun=1)  # there may be another one: it is looked for before it does harm

    def pause(self) -> None:
        """Note that a transaction ended in good order, and nothing is known that was not before."""
        if self._is_begun:
            self._is_begun = False
            self._note(begun=0)

    def forget(self) -> None:
        """Begin anew."""
        self._is_begun = False
        with suppress(Unavailable), redis_errors():
            self._client.delete(self._key)

    def _note(self, **values: int | str) -> None:
        with suppress(Unavailable), redis_errors():
            self._client.hset(self._key, mapping=cast("Any", values))
