"""The Redis side of one ingest stream: read, bell, acks, trim."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import redis
from redis.exceptions import OutOfMemoryError

from schemas.routes import (
    HALTED_KEY,
    JOB_DELETED_FIELD,
    Kind,
    ack_field,
    acks_key,
    bell_key,
    missing_field,
    stream_key,
)
from schemas.stream_clients import STREAM_ERRORS
from schemas.tls import redis_trouble
from workers.decoding import RawEntry
from workers.errors import Unavailable
from workers.positions import Position

ACKS_TTL_S: Final = 7 * 24 * 3600
_FIRST_PAGE: Final = 1
"""An entry can be large; how large they are here is not known before the first."""
_LARGEST_PAGE: Final = 5000
_MAX_WHY_CHARS: Final = 2000

Ack = tuple[int, str, Kind, Position]
"""Job, source, kind, and how far it is committed."""


@contextmanager
def redis_errors(url: str = "") -> Iterator[None]:
    """Translate what Redis says into our words; every error of Redis passes, so all are *unavailable*.

    `url` is for a server that is asked for the first time: see `redis_trouble`.
    """
    try:
        yield
    except STREAM_ERRORS as exc:
        raise Unavailable(f"Redis: {redis_trouble(exc, url)}") from exc


class IngestStream:
    """One stream of one kind and shard."""

    def __init__(self, client: redis.Redis, kind: Kind, shard: int) -> None:
        self._client = client
        self.kind = kind
        self.shard = shard
        self.key = stream_key(kind, shard)

    def read(self, max_bytes: int) -> tuple[list[RawEntry], bool]:
        """Return the oldest entries, about as many as fit into `max_bytes`, and whether these are all.

        Always from the start: what is committed has been trimmed, so what is here is news, or a resend that
        the positions know. That holds too for a stream born anew with ids below the cursor.
        """
        entries: list[RawEntry] = []
        size = 0
        count = _FIRST_PAGE
        start = "-"
        while size < max_bytes:
            page = self._page(start, count)
            entries.extend(page)
            if len(page) < count:
                return entries, True
            size += sum(entry.size_bytes for entry in page)
            start = f"({page[-1].entry_id}"
            fitting = (max_bytes - size) * len(entries) // max(size, 1) + 1
            count = min(max(fitting, 1), count * 8, _LARGEST_PAGE)
        return entries, False

    def _page(self, start: str, count: int) -> list[RawEntry]:
        with redis_errors():
            page = cast("list[Any]", self._client.xrange(self.key, start, "+", count))
        return [RawEntry(entry_id.decode(), fields or {}) for entry_id, fields in page]

    def silence_bell(self) -> None:
        """Delete the bell: whoever publishes from now on rings anew."""
        with redis_errors():
            self._client.delete(bell_key(self.key))

    def bell_rang(self) -> bool:
        """Tell whether someone published since the bell was silenced."""
        with redis_errors():
            return bool(self._client.exists(bell_key(self.key)))

    def rest(self, seconds: int) -> None:
        """Keep the bell ringing for a while, so that nobody orders another drain in vain."""
        with redis_errors():
            self._client.set(bell_key(self.key), 1, ex=seconds)

    def has_entries(self) -> bool:
        """Tell whether anything waits."""
        with redis_errors():
            return bool(self._client.xlen(self.key))

    def settle(self, acks: Iterable[Ack], through_id: str) -> None:
        """After the commit: tell the trainers what is committed, and trim it.

        A full Redis refuses the acks and takes the trim, after which there is room for the acks. If they fail
        for good (in a cluster they may be on a server that is away) the trainer asks again with a resend.
        """
        acks = list(acks)
        with redis_errors():
            try:
                self._acknowledge(acks)
            except OutOfMemoryError:
                self._trim(through_id)
                self._acknowledge(acks)
            except STREAM_ERRORS:
                self._trim(through_id)
                raise
            else:
                self._trim(through_id)

    def halt(self, why: str) -> None:
        """Say where operators look why this stream is not drained; the next `settle` takes it back."""
        with redis_errors():
            self._client.hset(HALTED_KEY, self.key, why[:_MAX_WHY_CHARS])

    def _acknowledge(self, acks: list[Ack]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hdel(HALTED_KEY, self.key)
        for job_id, source, kind, position in acks:
            key, missing = acks_key(job_id), missing_field(source, kind)
            fields: dict[str | bytes, int | str] = {ack_field(source, kind): position.contiguous}
            if position.is_discarded:
                fields[JOB_DELETED_FIELD] = 1
            pipeline.hset(key, mapping=cast("Any", fields))
            if position.missing:
                pipeline.hset(key, missing, position.missing_text())
            else:
                pipeline.hdel(key, missing)
            pipeline.expire(key, ACKS_TTL_S)
        pipeline.execute()

    def _trim(self, through_id: str) -> None:
        millis, _, number = through_id.partition("-")
        self._client.xtrim(self.key, minid=f"{millis}-{int(number) + 1}", approximate=False)
