"""Drains stray streams, whose shards do not exist, and streams that were renamed because of their last id.

A stream is renamed if its last id is in the future, so that Redis would refuse further entries (`stream_repair`).
After INGEST_SHARDS was changed, or a FLUSHALL, clients with an outdated number of shards append to stray streams.
Their messages are valid and must be stored.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeVar, cast

import redis
import structlog
from sqlalchemy import text

from trainwire.schemas.keys import KINDS, Kind, alive_field, alive_key, shard_of
from trainwire.schemas.streams.clients import STREAM_ERRORS, servers_of
from trainwire.schemas.streams.source_streams import MAX_CLAIM_BYTES
from trainwire.schemas.wire.heartbeats import decode_heartbeat
from trainwire.schemas.wire.validation import InvalidMessage
from trainwire.workers.drain import store
from trainwire.workers.drain.changes import Change
from trainwire.workers.drain.drain import Drain
from trainwire.workers.drain.stream import IngestStream, redis_errors
from trainwire.workers.drain.stream_repair import note_repair
from trainwire.workers.errors import MostlyInvalid, Unavailable
from trainwire.workers.resources import Resources

log = structlog.get_logger("trainwire.workers.streams.stray_streams")

Item = TypeVar("Item")
OnCommit = Callable[[list[Change]], None] | None
"""Function that is called with the changes of each transaction, or None."""

SLICE_S: Final = 2.0
"""Time slice in seconds for the drain of one stream."""
TIME_S: Final = 5.0
"""Seconds after which no drain of a further stray stream begins; the next call drains the rest."""
MAX_CLAIM_MS: Final = 3600 * 1000
"""Longest TTL of a claim in milliseconds; its trainer renews it every few seconds."""
_CHUNK_SIZE: Final = 500
_KEY: Final = re.compile(rf"ingest:\{{(.*)\}}:({'|'.join(KINDS)}|alive)", re.DOTALL)
_MAX_KEY_CHARS: Final = 200


@dataclass
class Strays:
    """The keys of stray streams and heartbeats, whose shards do not exist, and the keys of all claims."""

    streams: list[tuple[Kind, str]] = dataclasses.field(default_factory=list)
    heartbeats: list[str] = dataclasses.field(default_factory=list)
    unreadable: list[bytes] = dataclasses.field(default_factory=list)
    """Keys whose names are too long or not printable; they are deleted."""
    claims: list[bytes] = dataclasses.field(default_factory=list)


def find_strays(client: redis.Redis, shards: int) -> Strays:
    """Search the keys of all Redis servers that answer for stray streams, stray heartbeats, and claims.

    Raises an error of redis-py if a single Redis does not answer, or if no server of a cluster is found.
    """
    found = Strays()
    for key in _keys(client):
        if key.startswith(b"ingest:claims:"):
            found.claims.append(key)
            continue
        name = key.decode("utf-8", "surrogateescape")
        match = _KEY.fullmatch(name)
        if match is None or _is_shard(match[1], shards):
            continue
        if len(name) > _MAX_KEY_CHARS or not name.isprintable():
            found.unreadable.append(key)
        elif match[2] == "alive":
            found.heartbeats.append(name)
        else:
            found.streams.append((cast("Kind", match[2]), name))
    return found


def drain_stray_streams(resources: Resources, on_commit: OnCommit = None) -> None:
    """Drain stray streams, move stray heartbeats to existing shards, and limit the size and TTL of claims.

    Stops after about `TIME_S` seconds; the next call continues. Errors of drains are only logged. Raises
    `Unavailable` if Redis does not answer.
    """
    client, shards = resources.streams, resources.settings.ingest_shards
    deadline = time.monotonic() + TIME_S
    with redis_errors():
        found = find_strays(client, shards)
        _limit_claims(client, found.claims)
        for key in found.unreadable:
            client.unlink(key)
            note_repair(client, repr(key)[:_MAX_KEY_CHARS], "no name of a shard: deleted")
        for name in found.heartbeats:
            _move_heartbeats(client, name, shards)
    for kind, name in found.streams:
        if time.monotonic() >= deadline:
            return
        _drain_stray(resources, IngestStream(client, kind, -1, key=name), on_commit)


def drain_jammed(resources: Resources, stream: IngestStream, on_commit: OnCommit = None) -> None:
    """Drain the entries of `stream` that lie under another key since it was renamed, if there are any.

    Ends after about `SLICE_S` seconds. Errors are only logged. A stream is renamed if its last id is in the
    future.
    """
    jammed = stream.jammed()
    with errors_logged(jammed):
        if jammed.has_entries() and (entries := _drain(resources, jammed, on_commit)) is not None:
            note_repair(resources.streams, jammed.key, f"renamed when it was jammed: drained, {entries} entries")


def _keys(client: redis.Redis) -> set[bytes]:
    servers = servers_of(client)
    found: set[bytes] = set()  # SCAN may return a key twice
    for server in servers.values():
        try:
            found.update(cast("Iterable[bytes]", server.scan_iter(match="ingest:[{c]*", count=1000)))
        except STREAM_ERRORS:
            if len(servers) == 1:
                raise
    return found


def _is_shard(name: str, shards: int) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name[:20])) == name and int(name) < shards


def _limit_claims(client: redis.Redis, keys: Sequence[bytes]) -> None:
    for chunk in _chunks(keys):
        pipeline = client.pipeline(transaction=False)
        for key in chunk:
            pipeline.pttl(key)
            pipeline.strlen(key)
        replies = pipeline.execute(raise_on_error=False)
        for key, left_ms, size in zip(chunk, replies[::2], replies[1::2], strict=True):
            if isinstance(size, Exception) or size > MAX_CLAIM_BYTES:
                client.unlink(key)
            elif left_ms == -1 or left_ms > MAX_CLAIM_MS:
                client.pexpire(key, MAX_CLAIM_MS)


def _move_heartbeats(client: redis.Redis, name: str, shards: int) -> None:
    """Move heartbeats from the key of a shard that does not exist to the keys of the shards of their jobs."""
    for chunk in _chunks(cast("Iterable[tuple[bytes, bytes]]", client.hscan_iter(name, count=_CHUNK_SIZE))):
        pipeline = client.pipeline(transaction=False)
        for _, data in chunk:
            with suppress(InvalidMessage):
                beat = decode_heartbeat(data)
                name_of_beat = alive_field(beat.job, beat.source)
                pipeline.hset(alive_key(shard_of(beat.job, shards)), name_of_beat, cast("Any", data))
        pipeline.execute()
    client.unlink(name)


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, _CHUNK_SIZE)):
        yield chunk


def _drain_stray(resources: Resources, stream: IngestStream, on_commit: OnCommit) -> None:
    """Drain a stray stream until it is empty or `SLICE_S` seconds have passed.

    Once the stream is empty, delete its cursor and record the repair. Errors are only logged, so that the next
    stream is drained.
    """
    with errors_logged(stream):
        entries = _drain(resources, stream, on_commit)
        if entries is None:
            return
        with store.postgres_errors(), resources.engine.begin() as connection:
            connection.execute(text("DELETE FROM ingest_cursors WHERE stream = :stream"), {"stream": stream.name})
        with redis_errors():
            note_repair(resources.streams, stream.key, f"no shard has it: drained, {entries} entries")


def _drain(resources: Resources, stream: IngestStream, on_commit: OnCommit) -> int | None:
    """Drain a stream until it is empty or `SLICE_S` seconds have passed.

    If the stream is then empty, delete its key and return the number of drained entries; else return None.
    """
    # Nothing is too invalid here: in such a stream invalid entries do not suggest a bad deploy.
    settings = resources.settings.model_copy(update={"drain_max_invalid_ratio": 1.0, "drain_slice_s": SLICE_S})
    drained = Drain(resources.engine, stream, settings, on_commit=on_commit).run()
    if drained.leased_elsewhere or drained.more or not stream.delete_if_empty():
        return None
    return drained.entries


@contextmanager
def errors_logged(stream: IngestStream) -> Iterator[None]:
    """Log errors of a drain in the block instead of raising them, so that other streams are drained."""
    try:
        yield
    except (MostlyInvalid, Unavailable) as exc:
        log.warning("stream.not_drained", stream=stream.key, reason=str(exc))
    except Exception:
        log.exception("stream.not_drained", stream=stream.key)
