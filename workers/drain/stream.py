"""The Redis side of a drain: reads, acknowledges and trims a stream, and marks it as ordered or halted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

import redis
from redis.exceptions import OutOfMemoryError

from trainwire.schemas import keys
from trainwire.schemas.keys import Kind
from trainwire.schemas.streams.clients import STREAM_ERRORS
from trainwire.schemas.streams.tls import redis_trouble
from trainwire.workers.drain.decoding import RawEntry
from trainwire.workers.drain.positions import Position
from trainwire.workers.drain.stream_repair import is_ahead, restart_if_jammed
from trainwire.workers.errors import Unavailable
from trainwire.workers.redis_commands import Command, execute_all

ACKS_TTL_S: Final = 7 * 24 * 3600
FIRST_PAGE: Final = 1
"""Entries in the first reply: their size is not known yet, and may be large."""
_PAGE_GROWTH: Final = 4
_LARGEST_PAGE: Final = 128
"""Entries in one reply: large entries may follow small ones, and Redis cannot limit a reply by bytes."""
_LARGEST_REPLY: Final = 4
"""Size limit of a reply as a multiple of the bytes to read, if no entry is larger than those read before."""
_MAX_REASON_CHARS: Final = 2000
_LAST_ID: Final = f"{2**64 - 1}-{2**64 - 1}"
"""The highest id: XRANGE rejects a range that begins behind it."""
_DELETED_AT_ONCE: Final = 1000
_DELETE_IF_EMPTY: Final = """
if redis.call('XLEN', KEYS[1]) > 0 then return 0 end
redis.call('DEL', KEYS[1])
return 1
"""

Ack = tuple[int, str, Kind, Position]
"""Job, source, kind, and the position that is committed."""


def ack_commands(acks: Iterable[Ack]) -> Iterator[Command]:
    """Yield the commands that publish acknowledgements to trainers.

    Where a position has only advanced, one number is written. Otherwise also its ranges, or their absence, and the
    TTL of the hash: at the first message of a source, at a gap or a resend, once an hour, and at its completion.
    """
    by_job: dict[int, list[tuple[str, Kind, Position]]] = defaultdict(list)
    for job_id, source, kind, position in acks:
        by_job[job_id].append((source, kind, position))
    for job_id, positions in by_job.items():
        key = keys.acks_key(job_id)
        present: list[str | int] = []
        absent: list[str] = []
        only_advanced = True
        for source, kind, position in positions:
            present += (keys.ack_field(source, kind), position.contiguous)
            if position.only_advanced:
                continue
            only_advanced = False
            if position.is_discarded:
                present += (keys.JOB_DELETED_FIELD, 1)
            for name, value in (
                (keys.missing_field(source, kind), position.missing_text()),
                (keys.lost_field(source, kind), position.lost_count),
            ):
                if value:
                    present += (name, value)
                else:
                    absent.append(name)
        # One command for all kinds: a trainer that reads the ack of its completion also reads those of its other
        # kinds.
        yield "HSET", key, *present
        if absent:
            yield "HDEL", key, *absent
        if not only_advanced:
            yield "EXPIRE", key, ACKS_TTL_S


@contextmanager
def redis_errors(url: str = "") -> Iterator[None]:
    """Translate errors of redis-py into `Unavailable`: each of them is temporary.

    `url` adds advice to the message for a server that is contacted for the first time (`redis_trouble`).
    """
    try:
        yield
    except STREAM_ERRORS as exc:
        raise Unavailable(f"Redis: {redis_trouble(exc, url)}") from exc


def next_page(count: int, largest_bytes: int, max_bytes: int) -> int:
    """Return the number of entries to read next.

    Args:
        count: entries in the last page.
        largest_bytes: size of the largest entry so far.
        max_bytes: bytes to read; the reply exceeds a small multiple of it only if its entries are larger than
            all before.
    """
    return max(1, min(count * _PAGE_GROWTH, _LARGEST_PAGE, _LARGEST_REPLY * max_bytes // largest_bytes))


class IngestStream:
    """The stream of one kind and shard.

    `key` is its key in Redis; `name` identifies its lease, cursor and dead letters in Postgres.
    """

    def __init__(self, client: redis.Redis, kind: Kind, shard: int, key: str | None = None) -> None:
        self.client = client
        self.kind = kind
        self.shard = shard
        self.key = self.name = key or keys.stream_key(kind, shard)
        self._read_ids: list[str] = []

    def read(self, max_bytes: int, max_entries: int | None = None) -> tuple[list[RawEntry], bool]:
        """Return the oldest entries, about `max_bytes` of them, and whether the stream has no others.

        Reads from the start, not from the cursor: committed entries have been trimmed, and a resend is detected by
        its number. So a stream that was created again, with ids below the cursor, is read as well.
        """
        entries: list[RawEntry] = []
        size = 0
        self._read_ids = []
        largest = 1
        count = FIRST_PAGE
        start = "-"
        while size < max_bytes and (max_entries is None or len(entries) < max_entries):
            count = count if max_entries is None else min(count, max_entries - len(entries))
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
        """Return up to `count` entries from the id `start` on; `(ID` excludes the entry with that id."""
        with redis_errors():
            page = cast("list[Any]", self.client.xrange(self.key, start, "+", count))
        return [RawEntry(entry_id.decode(), fields or {}) for entry_id, fields in page]

    def newest_id(self) -> str:
        """Return the id of the last entry, `0-0` for an empty stream."""
        with redis_errors():
            found = cast("list[Any]", self.client.xrevrange(self.key, count=1))
        return found[0][0].decode() if found else "0-0"

    def keep_ordered(self) -> None:
        """Mark the stream as ordered, so that no other drain is ordered while this one runs."""
        with redis_errors(), suppress(OutOfMemoryError):  # without the mark another drain finds the lease taken
            self.client.set(keys.ordered_key(self.key), 1, px=keys.DRAIN_ORDERED_TTL_MS)

    def finish(self) -> bool:
        """Remove the mark that a drain is ordered; return whether the stream is empty.

        The length is read after the mark is removed: a drain is ordered for each entry that is appended later.
        """
        with redis_errors():
            pipeline = self.client.pipeline(transaction=False)
            pipeline.delete(keys.ordered_key(self.key))
            pipeline.xlen(self.key)
            return not pipeline.execute()[1]

    def rest(self, seconds: int) -> None:
        """Let no drain be ordered for a number of seconds, because it would fail."""
        with redis_errors():
            self.client.set(keys.ordered_key(self.key), 1, ex=seconds)

    def jammed(self) -> IngestStream:
        """Return the renamed stream of the same kind and shard that was jammed; it has the same lease."""
        stream = IngestStream(self.client, self.kind, self.shard, keys.jammed_key(self.kind, self.shard))
        stream.name = self.name
        return stream

    def has_entries(self) -> bool:
        """Return whether the stream has entries."""
        with redis_errors():
            return bool(self.client.xlen(self.key))

    def delete_if_empty(self) -> bool:
        """Delete the key if the stream is empty; return whether it was deleted."""
        with redis_errors():
            return bool(self.client.eval(_DELETE_IF_EMPTY, 1, self.key))

    def settle(self, acks: Iterable[Ack], through_id: str) -> None:
        """After a commit: publish the acks, and delete the entries up to `through_id` from the stream.

        A full Redis refuses the acks but accepts the trim, which makes room for them. If the acks cannot be
        written (in a cluster their server may be unavailable), the trainer resends its messages and gets them
        then.
        """
        acks = list(acks)
        with redis_errors():
            try:
                self._publish(acks, is_drained=True)
            except OutOfMemoryError:
                self._trim(through_id)
                with suppress(OutOfMemoryError):  # a resend gets the ack later
                    self._publish(acks, is_drained=True)
            except STREAM_ERRORS:
                self._trim(through_id)
                raise
            else:
                self._trim(through_id)

    def halt(self, reason: str) -> None:
        """Mark the stream as halted, with the reason for operators; the next `settle` removes the mark."""
        with redis_errors():
            self.client.hset(keys.HALTED_KEY, self.key, reason[:_MAX_REASON_CHARS])

    def acknowledge(self, acks: Iterable[Ack]) -> None:
        """Publish acks without trimming; a halted stream stays halted."""
        with redis_errors():
            self._publish(acks, is_drained=False)

    def _publish(self, acks: Iterable[Ack], *, is_drained: bool) -> None:
        commands = [*ack_commands(acks)]
        if is_drained:
            commands.insert(0, ("HDEL", keys.HALTED_KEY, self.key))
        execute_all(self.client, commands)

    def _trim(self, through_id: str) -> None:
        if is_ahead(through_id):
            self._delete_read(through_id)
            return
        millis, _, number = through_id.partition("-")
        self.client.xtrim(self.key, minid=f"{millis}-{int(number) + 1}", approximate=False)

    def _delete_read(self, through_id: str) -> None:
        """Delete the entries that were read from a jammed stream, and then the stream if it is empty.

        Not by XTRIM: if another worker has meanwhile renamed the stream, that would delete all of the new one.
        """
        ids = self._read_ids[: self._read_ids.index(through_id) + 1]
        for first in range(0, len(ids), _DELETED_AT_ONCE):
            self.client.xdel(self.key, *ids[first : first + _DELETED_AT_ONCE])
        restart_if_jammed(self.client, self.key)
