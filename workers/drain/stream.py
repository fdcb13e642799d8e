"""The Redis side of one ingest stream: entries, acks, trim, and whether a drain is ordered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

import redis
from redis.exceptions import OutOfMemoryError

from trainwire.schemas.keys import (
    DRAIN_ORDERED_TTL_MS,
    HALTED_KEY,
    JOB_DELETED_FIELD,
    Kind,
    ack_field,
    acks_key,
    jammed_key,
    lost_field,
    missing_field,
    ordered_key,
    stream_key,
)
from trainwire.schemas.streams.clients import STREAM_ERRORS
from trainwire.schemas.streams.tls import redis_trouble
from trainwire.workers.drain.decoding import RawEntry
from trainwire.workers.drain.positions import Position
from trainwire.workers.drain.repairs import is_ahead, restart_if_jammed
from trainwire.workers.errors import Unavailable

ACKS_TTL_S: Final = 7 * 24 * 3600
FIRST_PAGE: Final = 1
"""An entry can be large; how large they are here is not known before the first."""
_PAGE_GROWTH: Final = 4
_LARGEST_PAGE: Final = 128
"""Entries in one reply: those that follow small ones may be large, and Redis cannot limit a reply by bytes."""
_LARGEST_REPLY: Final = 4
"""Times the bytes to be read, where all of the next entries are as large as the largest so far."""
_MAX_WHY_CHARS: Final = 2000
_LAST_ID: Final = f"{2**64 - 1}-{2**64 - 1}"
"""Nothing can be appended after it."""
_DELETED_AT_ONCE: Final = 1000
_DELETE_IF_EMPTY: Final = """
if redis.call('XLEN', KEYS[1]) > 0 then return 0 end
redis.call('DEL', KEYS[1])
return 1
"""

Ack = tuple[int, str, Kind, Position]
"""Job, source, kind, and how far it is committed."""


def write_acks(pipeline: Any, acks: Iterable[Ack]) -> None:
    """Add the commands to a pipeline that publish acknowledgements to trainers."""
    for job_id, positions in _by_job(acks).items():
        key = acks_key(job_id)
        fields: dict[str, int | str | None] = {}
        for source, kind, position in positions:
            fields[ack_field(source, kind)] = position.contiguous
            fields[missing_field(source, kind)] = position.missing_text() or None
            fields[lost_field(source, kind)] = position.lost_count or None
            if position.is_discarded:
                fields[JOB_DELETED_FIELD] = 1
        # In one command: a trainer that sees its completion acknowledged sees the other kinds of then, too.
        present = {name: value for name, value in fields.items() if value is not None}
        pipeline.hset(key, mapping=present)
        if absent := fields.keys() - present.keys():
            pipeline.hdel(key, *absent)
        pipeline.expire(key, ACKS_TTL_S)


def _by_job(acks: Iterable[Ack]) -> dict[int, list[tuple[str, Kind, Position]]]:
    found: dict[int, list[tuple[str, Kind, Position]]] = defaultdict(list)
    for job_id, source, kind, position in acks:
        found[job_id].append((source, kind, position))
    return found


@contextmanager
def redis_errors(url: str = "") -> Iterator[None]:
    """Translate what Redis says into our words; every error of Redis passes, so all are *unavailable*.

    `url` is for a server that is asked for the first time: see `redis_trouble`.
    """
    try:
        yield
    except STREAM_ERRORS as exc:
        raise Unavailable(f"Redis: {redis_trouble(exc, url)}") from exc


def next_page(count: int, largest_bytes: int, max_bytes: int) -> int:
    """Return how many entries to read after a page of `count`, of entries that had up to `largest_bytes` so far.

    The reply has at most a few times `max_bytes`, unless its entries are larger than all before.
    """
    return max(1, min(count * _PAGE_GROWTH, _LARGEST_PAGE, _LARGEST_REPLY * max_bytes // largest_bytes))


class IngestStream:
    """One stream of one kind and shard.

    `key` is its key in Redis, `name` that of its lease, cursor and dead letters in Postgres.
    """

    def __init__(self, client: redis.Redis, kind: Kind, shard: int, key: str | None = None) -> None:
        self.client = self._client = client
        self.kind = kind
        self.shard = shard
        self.key = self.name = key or stream_key(kind, shard)
        self._read_ids: list[str] = []

    def read(self, max_bytes: int, most: int | None = None) -> tuple[list[RawEntry], bool]:
        """Return the oldest entries, about as many as fit into `max_bytes`, and whether these are all.

        There are at most `most` of them.

        Always from the start: what is committed has been trimmed, so what is here is news, or a resend that
        the positions know. That holds too for a stream born anew with ids below the cursor.
        """
        entries: list[RawEntry] = []
        size = 0
        self._read_ids = []
        largest = 1
        count = FIRST_PAGE
        start = "-"
        while size < max_bytes and (most is None or len(entries) < most):
            count = count if most is None else min(count, most - len(entries))
            page = self.page(start, count)
            entries.extend(page)
            self._read_ids += [entry.entry_id for entry in page]
            if len(page) < count or page[-1].entry_id == _LAST_ID:
                return entries, True
            sizes = [entry.held_bytes for entry in page]
            size += sum(sizes)
            largest = max(largest, *sizes)
            start = f"({page[-1].entry_id}"
            fitting = (max_bytes - size) * len(entries) // max(size, 1) + 1
            count = min(max(fitting, 1), next_page(count, largest, max_bytes))
        return entries, False

    def page(self, start: str, count: int) -> list[RawEntry]:
        """Return up to `count` entries from an id on, or behind it where a bracket stands before."""
        with redis_errors():
            page = cast("list[Any]", self._client.xrange(self.key, start, "+", count))
        return [RawEntry(entry_id.decode(), fields or {}) for entry_id, fields in page]

    def newest_id(self) -> str:
        """Return the id of the last entry, `0-0` where there is none."""
        with redis_errors():
            found = cast("list[Any]", self._client.xrevrange(self.key, count=1))
        return found[0][0].decode() if found else "0-0"

    def keep_ordered(self) -> None:
        """Keep others from ordering a drain while one is at work."""
        with redis_errors(), suppress(OutOfMemoryError):  # full: another order would find the lease taken
            self._client.set(ordered_key(self.key), 1, px=DRAIN_ORDERED_TTL_MS)

    def finish(self) -> bool:
        """Let others order drains again; return whether the stream is empty.

        The order of the two commands matters: for an entry that is appended after the count a drain is ordered.
        """
        with redis_errors():
            pipeline = self._client.pipeline(transaction=False)
            pipeline.delete(ordered_key(self.key))
            pipeline.xlen(self.key)
            return not pipeline.execute()[1]

    def rest(self, seconds: int) -> None:
        """Keep others from ordering a drain for a while, because it would fail."""
        with redis_errors():
            self._client.set(ordered_key(self.key), 1, ex=seconds)

    def jammed(self) -> IngestStream:
        """Return what this stream was before it was jammed, with the same lease."""
        stream = IngestStream(self._client, self.kind, self.shard, jammed_key(self.kind, self.shard))
        stream.name = self.name
        return stream

    def has_entries(self) -> bool:
        """Tell whether anything waits."""
        with redis_errors():
            return bool(self._client.xlen(self.key))

    def delete_if_empty(self) -> bool:
        """Delete the key of an empty stream; return whether it is gone."""
        with redis_errors():
            return bool(self._client.eval(_DELETE_IF_EMPTY, 1, self.key))

    def settle(self, acks: Iterable[Ack], through_id: str) -> None:
        """After the commit: tell the trainers what is committed, and trim it.

        A full Redis refuses the acks and takes the trim, after which there is room for the acks. If they fail
        for good (in a cluster they may be on a server that is away) the trainer asks again with a resend.
        """
        acks = list(acks)
        with redis_errors():
            try:
                self._acknowledge(acks, is_drained=True)
            except OutOfMemoryError:
                self._trim(through_id)
                with suppress(OutOfMemoryError):  # still: the next batch makes more room, and a resend asks again
                    self._acknowledge(acks, is_drained=True)
            except STREAM_ERRORS:
                self._trim(through_id)
                raise
            else:
                self._trim(through_id)

    def halt(self, why: str) -> None:
        """Say where operators look why this stream is not drained; the next `settle` takes it back."""
        with redis_errors():
            self._client.hset(HALTED_KEY, self.key, why[:_MAX_WHY_CHARS])

    def acknowledge(self, acks: Iterable[Ack]) -> None:
        """Tell the trainers what is committed; the stream stays halted where it is."""
        with redis_errors():
            self._acknowledge(list(acks), is_drained=False)

    def _acknowledge(self, acks: list[Ack], *, is_drained: bool) -> None:
        pipeline = self._client.pipeline(transaction=False)
        if is_drained:
            pipeline.hdel(HALTED_KEY, self.key)
        write_acks(pipeline, acks)
        pipeline.execute()

    def _trim(self, through_id: str) -> None:
        if is_ahead(through_id):
            self._delete_read(through_id)
            return
        millis, _, number = through_id.partition("-")
        self._client.xtrim(self.key, minid=f"{millis}-{int(number) + 1}", approximate=False)

    def _delete_read(self, through_id: str) -> None:
        """Delete what was read, and start the stream anew if nothing else is in it.

        Not by XTRIM: where another worker has started the stream anew meanwhile, that would delete all of it.
        """
        ids = self._read_ids[: self._read_ids.index(through_id) + 1]
        for first in range(0, len(ids), _DELETED_AT_ONCE):
            self._client.xdel(self.key, *ids[first : first + _DELETED_AT_ONCE])
        restart_if_jammed(self._client, self.key)
