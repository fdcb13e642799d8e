"""Redis commands of a drain: read, acknowledge and trim a stream, and set the keys that prevent work orders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import redis
from redis.exceptions import OutOfMemoryError

from trainwire.schemas import keys
from trainwire.schemas.keys import Kind
from trainwire.schemas.streams.clients import STREAM_ERRORS, server_options
from trainwire.schemas.streams.tls import redis_trouble
from trainwire.schemas.tracing import TRACEPARENT
from trainwire.workers.drain.decoding import RawEntry
from trainwire.workers.drain.positions import Position
from trainwire.workers.drain.stream_repair import is_ahead, restart_if_jammed
from trainwire.workers.errors import Unavailable
from trainwire.workers.job_traces import NO_TRACES
from trainwire.workers.redis_commands import Command, execute_all

ACKS_TTL_S: Final = 7 * 24 * 3600
FIRST_PAGE: Final = 1
"""Number of entries in the first reply: the size of entries is not known yet, and they may be large."""
_PAGE_GROWTH: Final = 32
"""Factor from one reply to the next, so that a small transaction reads its entries in two replies."""
_LARGEST_PAGE: Final = 128
"""Maximum number of entries in one reply: Redis cannot limit a reply by bytes, and large entries may follow."""
_LARGEST_REPLY: Final = 4
"""Size limit of a reply as a multiple of the bytes to read, if no entry is larger than those before."""
_MAX_REASON_CHARS: Final = 2000
_LAST_ID: Final = f"{2**64 - 1}-{2**64 - 1}"
"""The highest possible entry id: XRANGE rejects a range that begins after it."""
_DELETED_AT_ONCE: Final = 1000
_DELETE_IF_EMPTY: Final = """
if redis.call('XLEN', KEYS[1]) > 0 then return 0 end
redis.call('DEL', KEYS[1])
return 1
"""

Ack = tuple[int, str, Kind, Position]
"""An acknowledgement: (job, source, kind, committed position)."""


def ack_commands(acks: Iterable[Ack], traces: Mapping[int, str] = NO_TRACES) -> Iterator[Command]:
    """Yield the Redis commands that publish acknowledgements to trainers, with the `traces` of their jobs.

    For a position in which only the last number has advanced, one number is written. Otherwise, its missing ranges
    and its count of lost messages are written or removed, and the TTL of the hash is renewed: at the first message
    of a source, at a gap or resend, once an hour, and at the completion.
    """
    by_job: dict[int, list[tuple[str, Kind, Position]]] = defaultdict(list)
    for job_id, source, kind, position in acks:
        by_job[job_id].append((source, kind, position))
    for job_id, positions in by_job.items():
        key = keys.acks_key(job_id)
        present: list[str | int] = [TRACEPARENT, traces[job_id]] if job_id in traces else []
        absent: list[str] = []
        only_advanced = True
        for source, kind, position in positions:
            present += (keys.ack_field(source, kind), position.contiguous)
            if position.only_advanced:
                continue
            only_advanced = False
            present += _marks(source, position)
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


def _marks(source: str, position: Position) -> list[str | int]:
    """Return the fields, with their values, that mark a deleted job or the resumption of an unknown one."""
    deleted: list[str | int] = [keys.JOB_DELETED_FIELD, 1] if position.is_discarded else []
    return deleted + ([keys.unknown_resume_field(source), 1] if position.is_unknown_resume else [])


@contextmanager
def redis_errors(url: str = "") -> Iterator[None]:
    """Raise `Unavailable`, so that the caller retries, for every redis-py error in the block.

    Pass `url` on the first connection to a server: the error text then includes connection advice
    (`redis_trouble`).
    """
    try:
        yield
    except STREAM_ERRORS as exc:
        raise Unavailable(f"Redis: {redis_trouble(exc, url)}") from exc


def next_page(count: int, largest_bytes: int, max_bytes: int) -> int:
    """Return the number of entries to request in the next reply.

    Args:
        count: number of entries in the last reply.
        largest_bytes: size of the largest entry so far.
        max_bytes: bytes to read. The next reply exceeds a small multiple of this only if its entries are larger
            than all earlier ones.
    """
    return max(1, min(count * _PAGE_GROWTH, _LARGEST_PAGE, _LARGEST_REPLY * max_bytes // largest_bytes))


@dataclass(frozen=True, slots=True)
class Beginning:
    """The replies of Redis at the beginning of a transaction.

    `now_ms` is the time of the Redis server in milliseconds since 1970, `replies` are those of the given commands
    (an exception for a command that failed), and `first_page` is at most one entry.
    """

    now_ms: int
    replies: list[Any]
    first_page: list[RawEntry]


class IngestStream:
    """The Redis stream of one kind and shard.

    `key` is its key in Redis; `name` identifies its lease, cursor and dead letters in Postgres.
    """

    def __init__(self, client: redis.Redis, kind: Kind, shard: int, key: str | None = None) -> None:
        self.client = client
        self.kind = kind
        self.shard = shard
        self.key = self.name = key or keys.stream_key(kind, shard)
        self._read_ids: list[str] = []

    def begin(self, commands: Sequence[Command]) -> Beginning:
        """Set the key of a pending order, execute `commands`, and read the first entry, in one round trip.

        While the key exists, no second drain of the stream is ordered; it expires after `DRAIN_ORDERED_TTL_MS`. A
        full Redis does not set it.
        """
        with redis_errors():
            pipeline: Any = self.client.pipeline(transaction=False)
            pipeline.set(keys.ordered_key(self.key), 1, px=keys.DRAIN_ORDERED_TTL_MS)
            pipeline.execute_command("TIME", **server_options(self.client, self.key))
            for command in commands:
                pipeline.execute_command(*command)
            pipeline.xrange(self.key, "-", "+", FIRST_PAGE)
            marked, now, *replies, page = pipeline.execute(raise_on_error=False)
            for reply in (marked, now, page):  # without the mark another drain finds the lease taken
                if isinstance(reply, Exception) and not isinstance(reply, OutOfMemoryError):
                    raise reply
        return Beginning(int(now[0]) * 1000 + int(now[1]) // 1000, replies, _entries(page))

    def read(
        self, first_page: list[RawEntry], max_bytes: int, max_entries: int | None = None
    ) -> tuple[list[RawEntry], bool]:
        """Return the oldest entries, and whether these are certainly all entries of the stream.

        Returns about `max_bytes` in total, and at most `max_entries` entries. `first_page` are those that `begin`
        has read.

        Reads from the start of the stream, not from the cursor: committed entries were trimmed, and a resend is
        recognized by its message number. This also reads a stream that was deleted and created again, with ids
        below the cursor.
        """
        entries: list[RawEntry] = []
        self._read_ids = []
        size, largest = 0, 1
        page, count = first_page, FIRST_PAGE
        while True:
            entries.extend(page)
            self._read_ids += [entry.entry_id for entry in page]
            if len(page) < count or page[-1].entry_id == _LAST_ID:
                return entries, True
            sizes = [entry.held_bytes for entry in page]
            size += sum(sizes)
            largest = max(largest, *sizes)
            if size >= max_bytes or len(entries) == max_entries:
                return entries, False
            fitting = (max_bytes - size) * len(entries) // max(size, 1) + 1
            count = min(max(fitting, 1), next_page(count, largest, max_bytes))
            count = count if max_entries is None else min(count, max_entries - len(entries))
            page = self.page(f"({page[-1].entry_id}", count)

    def page(self, start: str, count: int) -> list[RawEntry]:
        """Return up to `count` entries from the id `start` on. `start` may be `(ID`, which excludes that entry."""
        with redis_errors():
            return _entries(cast("list[Any]", self.client.xrange(self.key, start, "+", count)))

    def newest_id(self) -> str:
        """Return the id of the last entry; `0-0` if the stream is empty."""
        with redis_errors():
            found = cast("list[Any]", self.client.xrevrange(self.key, count=1))
        return found[0][0].decode() if found else "0-0"

    def finish(self) -> bool:
        """Delete the key of a pending order, then return whether the stream is empty.

        In this order, no entry is overlooked: for each entry that is appended after the deletion, a work order is
        sent.
        """
        with redis_errors():
            pipeline = self.client.pipeline(transaction=False)
            pipeline.delete(keys.ordered_key(self.key))
            pipeline.xlen(self.key)
            return not pipeline.execute()[1]

    def rest(self, seconds: float) -> None:
        """Prevent work orders for the stream for `seconds`: a drain would fail again, or take few messages."""
        with redis_errors():
            self._execute([self.rest_command(seconds)])

    def rest_command(self, seconds: float) -> Command:
        """Return the Redis command of `rest`."""
        return "SET", keys.ordered_key(self.key), 1, "PX", max(1, round(seconds * 1000))

    def jammed(self) -> IngestStream:
        """Return the stream that holds the old entries if `stream_repair` has renamed this one.

        A stream is renamed (jammed) if its last id is in the future, so that Redis would refuse further entries.
        The returned stream has the same kind, shard and lease.
        """
        stream = IngestStream(self.client, self.kind, self.shard, keys.jammed_key(self.kind, self.shard))
        stream.name = self.name
        return stream

    def has_entries(self) -> bool:
        """Return whether the stream contains at least one entry."""
        with redis_errors():
            return bool(self.client.xlen(self.key))

    def delete_if_empty(self) -> bool:
        """Delete the key if the stream is empty; return whether it was deleted."""
        with redis_errors():
            return bool(self.client.eval(_DELETE_IF_EMPTY, 1, self.key))

    def settle(
        self,
        acks: Iterable[Ack],
        through_id: str,
        waited_ms: int = 0,
        traces: Mapping[int, str] = NO_TRACES,
        commands: Sequence[Command] = (),
    ) -> None:
        """Publish acknowledgements after a commit, and delete the entries up to `through_id` from the stream.

        Also publishes that messages waited for `waited_ms` milliseconds, unless that is short. `traces` has the
        `traceparent` of jobs, for their deliveries (`trainwire.workers.job_traces`). Further `commands` are
        executed in the same round trip.

        Also removes the mark of a halted stream. A full Redis refuses the acknowledgements but accepts the
        deletion, which makes room for them. If they cannot be written at all (in a cluster their server may be
        unavailable), the trainer sends its messages again and receives them then.
        """
        acks = list(acks)
        published = [("HDEL", keys.HALTED_KEY, self.key), *ack_commands(acks, traces)]
        if waited_ms >= 1000 * keys.BEHIND_FROM_S and self.kind in keys.FREQUENT_KINDS:
            published.append(("SET", keys.behind_key(self.kind, self.shard), waited_ms, "PX", keys.BEHIND_TTL_MS))
        is_jammed = is_ahead(through_id)
        trims = [] if is_jammed else [_trim_command(self.key, through_id)]
        with redis_errors():
            try:
                self._execute([*published, *commands, *trims])
            except OutOfMemoryError:  # the deletion, which was executed nevertheless, has made room
                with suppress(OutOfMemoryError):  # a resend gets the ack later
                    self._execute([*published, *commands])
            except STREAM_ERRORS:
                self._execute(trims)
                raise
            finally:
                if is_jammed:
                    self._delete_read(through_id)

    def _execute(self, commands: Sequence[Command]) -> None:
        execute_all(self.client, commands)

    def halt(self, reason: str) -> None:
        """Mark the stream as halted: its drain stops before invalid or crashing entries.

        `reason` is for operators. The next `settle` removes the mark.
        """
        with redis_errors():
            self.client.hset(keys.HALTED_KEY, self.key, reason[:_MAX_REASON_CHARS])

    def acknowledge(self, acks: Iterable[Ack]) -> None:
        """Publish acknowledgements without deleting entries. If the stream is halted, it stays halted."""
        with redis_errors():
            self._execute([*ack_commands(acks)])

    def _delete_read(self, through_id: str) -> None:
        """Delete the entries up to `through_id` from a stream whose last id is in the future.

        If the stream is then empty, delete it. XTRIM is not used: if another worker has renamed the stream
        meanwhile, XTRIM would delete all entries of the new stream under this key.
        """
        ids = self._read_ids[: self._read_ids.index(through_id) + 1]
        for first in range(0, len(ids), _DELETED_AT_ONCE):
            self.client.xdel(self.key, *ids[first : first + _DELETED_AT_ONCE])
        restart_if_jammed(self.client, self.key)


def _entries(page: list[Any]) -> list[RawEntry]:
    return [RawEntry(entry_id.decode(), fields or {}) for entry_id, fields in page]


def _trim_command(key: str, through_id: str) -> Command:
    """Return the command that deletes the entries of a stream up to `through_id`."""
    millis, _, number = through_id.partition("-")
    return "XTRIM", key, "MINID", "=", f"{millis}-{int(number) + 1}"
