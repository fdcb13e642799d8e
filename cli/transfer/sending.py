"""Sends imported messages to the streams, and limits the number that Postgres has not committed yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import redis
from sqlalchemy import Connection, select

from trainwire.schemas.keys import HOLD_KEY, SHARDS_KEY, Kind, read_shards, shard_of, stream_key
from trainwire.schemas.streams.clients import STREAM_ERRORS
from trainwire.schemas.tables import source_positions
from trainwire.schemas.wire.entries import Entry, encode_entry
from trainwire.schemas.wire.messages import Message
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.deletion import deleted_among

WINDOW_BYTES: Final = 16 * 1024 * 1024
"""Largest total size of messages that are sent but not committed in Postgres."""
WINDOW_MESSAGES: Final = 5000
BATCH_BYTES: Final = 128 * 1024
"""Size of the messages that are appended in one round trip; it is small, so that workers can begin early."""
BATCH_MESSAGES: Final = 10
STALLED_S: Final = 60.0
"""Seconds without a newly stored message after which the import ends with an error."""
_LEAST_PAUSE_S: Final = 0.01
_LONGEST_PAUSE_S: Final = 0.05
AGAIN: Final = "run the same command again: it continues where it ended"

Positions = dict[tuple[int, str, Kind], int]


@dataclass(frozen=True, slots=True)
class _Unacked:
    job_id: int
    source: str
    kind: Kind
    seq: int
    size: int


class Sender:
    """Appends imported messages to their Redis streams.

    It waits while Redis is nearly full, or while more than WINDOW_MESSAGES or WINDOW_BYTES of sent messages are
    not in Postgres yet. `connection` is in autocommit mode and is used to read what Postgres has stored. The
    constructor, `send` and `finish` raise `Problem` if Redis does not respond.
    """

    def __init__(self, client: redis.Redis, connection: Connection) -> None:
        self._client = cast("Any", client)  # redis-py's types are those of both its clients
        self._connection = connection
        with _redis_errors():
            self._shards = read_shards(self._client.get(SHARDS_KEY))
        self._batch: list[tuple[str, Entry]] = []
        self._batch_bytes = 0
        self._unacked: list[_Unacked] = []
        self._unacked_bytes = 0

    def positions(self, job_id: int, source: str) -> dict[Kind, int]:
        """Return kind -> message number up to which Postgres has all messages of the source."""
        found = read_positions(self._connection, [job_id])
        return {kind: seq for (_, of, kind), seq in found.items() if of == source}

    def send(self, message: Message) -> None:
        """Queue a message; append the queued messages to their Redis streams if they fill a batch.

        Raises `Problem` if Redis does not respond or stays full, or if workers store nothing for STALLED_S.
        """
        entry = encode_entry(message)
        body = entry["body"]
        size = len(body) if isinstance(body, bytes) else 0
        self._batch.append((stream_key(message.kind, shard_of(message.job_id, self._shards)), entry))
        self._batch_bytes += size
        self._unacked.append(_Unacked(message.job_id, message.source, message.kind, message.seq, size))
        self._unacked_bytes += size
        if self._batch_bytes >= BATCH_BYTES or len(self._batch) >= BATCH_MESSAGES:
            self._flush()

    def finish(self) -> None:
        """Append the queued messages to their streams, and wait until Postgres has committed all sent messages.

        Raises `Problem` in the cases of `send`.
        """
        self._flush()
        self._wait(lambda: not self._unacked)

    def _flush(self) -> None:
        if not self._batch:
            return
        # Of the unacked messages those of this batch are not sent yet: they do not count for the window.
        sent, sent_bytes = len(self._batch), self._batch_bytes
        self._wait(
            lambda: (
                len(self._unacked) - sent <= WINDOW_MESSAGES
                and self._unacked_bytes - sent_bytes <= WINDOW_BYTES
                and not self._must_hold()
            )
        )
        deadline = time.monotonic() + STALLED_S
        while self._batch:
            taken = self._append()
            self._batch = self._batch[taken:]
            if self._batch and time.monotonic() > deadline:
                raise Problem(f"Redis is full: `trainwire doctor` shows why; then {AGAIN}")
        self._batch_bytes = 0

    def _append(self) -> int:
        """Append the queued messages to their Redis streams in one round trip.

        Returns how many of them, from the first one on, Redis accepted before it was full.
        """
        with _redis_errors():
            pipe = self._client.pipeline(transaction=False)
            for key, entry in self._batch:
                pipe.xadd(key, entry)
            replies = pipe.execute(raise_on_error=False)
            for taken, reply in enumerate(replies):
                if isinstance(reply, redis.exceptions.OutOfMemoryError):
                    time.sleep(_LONGEST_PAUSE_S)
                    return taken
                if isinstance(reply, Exception):
                    raise reply
        return len(replies)

    def _must_hold(self) -> bool:
        with _redis_errors():
            return bool(self._client.exists(HOLD_KEY))

    def _wait(self, is_ready: Callable[[], bool]) -> None:
        """Poll `is_ready()` until it is true; raise `Problem` if workers store nothing for STALLED_S seconds."""
        if is_ready():
            return
        deadline, pause_s = time.monotonic() + STALLED_S, _LEAST_PAUSE_S
        while True:
            if self._drop_acked():
                deadline, pause_s = time.monotonic() + STALLED_S, _LEAST_PAUSE_S
            if is_ready():
                return
            if time.monotonic() > deadline:
                raise Problem(
                    f"no message was stored for {STALLED_S:g} s ({len(self._unacked):,} are waiting): start "
                    f"workers, for instance with `trainwire up`, and see `trainwire doctor`; then {AGAIN}"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _drop_acked(self) -> bool:
        """Forget the sent messages that are committed or whose job was deleted; return whether there were any."""
        job_ids = {each.job_id for each in self._unacked}
        stored, deleted = read_positions(self._connection, job_ids), deleted_among(self._connection, job_ids)
        left = [
            each
            for each in self._unacked
            if each.job_id not in deleted and each.seq > stored.get((each.job_id, each.source, each.kind), 0)
        ]
        is_progress = len(left) < len(self._unacked)
        self._unacked = left
        self._unacked_bytes = sum(each.size for each in left)
        return is_progress


def read_positions(connection: Connection, job_ids: Iterable[int]) -> Positions:
    """Return (job, source, kind) -> highest message number up to which no message is missing."""
    table = source_positions.c
    wanted = select(table.job_id, table.source, table.kind, table.last_seq, table.missing)
    found = connection.execute(wanted.where(table.job_id.in_(list(job_ids))))
    return {
        (job_id, source, kind): missing[0][0] - 1 if missing else last_seq
        for job_id, source, kind, last_seq, missing in found
    }


@contextmanager
def _redis_errors() -> Iterator[None]:
    try:
        yield
    except (*STREAM_ERRORS, OSError) as exc:
        raise Problem(f"cannot send to Redis: {exc}; {AGAIN}") from exc
