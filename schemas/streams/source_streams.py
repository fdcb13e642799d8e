"""The Redis commands of one source of messages: run by its trainer, or by the gateway for a trainer over HTTPS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NamedTuple

import redis
from msgspec.structs import replace

from trainwire.schemas.heartbeats import Heartbeat, RankClaim, encode_heartbeat, read_claim
from trainwire.schemas.keys import (
    HOLD_KEY,
    JOB_DELETED_FIELD,
    SHARDS_KEY,
    AckFields,
    Kind,
    ack_field,
    acks_key,
    alive_field,
    alive_key,
    claim_key,
    lost_field,
    missing_field,
    read_shards,
    shard_of,
    stop_field,
    stream_key,
)
from trainwire.schemas.streams.clients import beside
from trainwire.schemas.wire import Entry

MAX_CLAIM_BYTES: Final = 4096


@dataclass(frozen=True)
class StreamReports:
    """The workers' reports on a job: `must_hold` is True while Redis is nearly full."""

    must_hold: bool = False
    is_job_deleted: bool = False
    acks: dict[Kind, AckFields] = field(default_factory=dict)
    stop: bytes | None = None
    """The request to stop the source."""


class HeartbeatReply(NamedTuple):
    """Whether Redis has taken a heartbeat, the reply to the read of the claim, and the request to stop the source.

    The reply is an error or None if there is no claim.
    """

    is_taken: bool
    claim: object
    stop: bytes | None


@dataclass
class Appended:
    """How many entries of each kind Redis has taken, the first ones, and its first refusal."""

    counts: dict[Kind, int] = field(default_factory=dict)
    refusal: str | None = None


class SourceStreams:
    """Reads and writes the keys of one source; raises the errors of the client."""

    def __init__(self, client: redis.Redis, job_id: int, source: str) -> None:
        self._client = client
        self._job_id = job_id
        self._source = source
        self._shards: int | None = None

    @property
    def shard(self) -> int:
        """Return the job's shard; the number of shards is read once."""
        if self._shards is None:
            pipe = self._pipeline()
            pipe.get(SHARDS_KEY)
            (answer,) = pipe.execute()
            self._shards = read_shards(answer)
        return shard_of(self._job_id, self._shards)

    def read_reports(self, kinds: Sequence[Kind]) -> StreamReports:
        """Return the workers' reports on `kinds`; whether the job was deleted only with at least one kind."""
        pipe = self._pipeline()
        pipe.exists(HOLD_KEY)
        fields = (ack_field, missing_field, lost_field)
        names = [name(self._source, kind) for kind in kinds for name in fields]
        if names:
            pipe.hmget(acks_key(self._job_id), [JOB_DELETED_FIELD, stop_field(self._source), *names])
        hold, *found = pipe.execute()
        values = iter(found[0] if found else [None, None])
        is_deleted, stop = next(values) is not None, next(values)
        acks: dict[Kind, AckFields] = {kind: (next(values), next(values), next(values)) for kind in kinds}
        return StreamReports(bool(hold), is_deleted, acks, stop)

    def append(self, batches: Mapping[Kind, Sequence[Entry]]) -> Appended:
        """Append entries to the streams of their kinds, in order; of each kind up to the first refusal."""
        shard = self.shard
        pipe = self._pipeline()
        for kind, batch in batches.items():
            stream = stream_key(kind, shard)
            for entry in batch:
                fields: dict[Any, Any] = dict(entry)
                pipe.xadd(stream, fields)
        replies = iter(pipe.execute(raise_on_error=False))
        result = Appended()
        for kind, batch in batches.items():
            result.counts[kind] = 0
            for reply in list(islice(replies, len(batch))):
                if isinstance(reply, Exception):  # in order: later entries are sent again too
                    result.refusal = result.refusal or str(reply)
                    break
                result.counts[kind] += 1
        return result

    def write_heartbeat(self, heartbeat: Heartbeat, claim: RankClaim | None) -> HeartbeatReply:
        """Write a heartbeat, and renew or take the claim of the rank if no other process has one.

        The time in both is set to that of the server.
        """
        pipe = self._pipeline()
        self._read_time(pipe)
        pipe.hmget(acks_key(self._job_id), [stop_field(self._source)])
        if claim is not None:
            _get_claim(pipe, claim)
        now, stops, *found = pipe.execute(raise_on_error=False)
        reply = found[0] if found else None
        stop = stops[0] if isinstance(stops, list) else None
        if isinstance(now, Exception):
            return HeartbeatReply(False, reply, stop)
        now_ms = _milliseconds(now)
        pipe = self._pipeline()
        written = encode_heartbeat(replace(heartbeat, at=now_ms))
        pipe.hset(alive_key(self.shard), alive_field(self._job_id, self._source), written)
        if claim is not None and _may_replace(reply, claim):
            pipe.set(_claim_key(claim), encode_heartbeat(replace(claim.holder, at=now_ms)), px=claim.ttl_ms)
        replies = pipe.execute(raise_on_error=False)
        return HeartbeatReply(not isinstance(replies[0], Exception), reply, stop)

    def take_claim(self, claim: RankClaim, *, by_force: bool = False) -> tuple[bytes | None, int]:
        """Claim the rank if it is free, or `by_force`.

        Returns the claim that is in Redis after that, None for a value that is no claim, and the server's time in
        milliseconds.
        """
        pipe = self._pipeline()
        self._read_time(pipe)
        (now,) = pipe.execute()
        now_ms = _milliseconds(now)
        pipe = self._pipeline()
        value = encode_heartbeat(replace(claim.holder, at=now_ms))
        pipe.set(_claim_key(claim), value, nx=not by_force, px=claim.ttl_ms)
        _get_claim(pipe, claim)
        is_set, reply = pipe.execute(raise_on_error=False)
        for each in (is_set, reply):
            if isinstance(each, Exception) and not _is_wrong_type(each):
                raise each
        if read_claim(reply) is not None:
            return reply, now_ms
        return (None, now_ms) if is_set or by_force else self.take_claim(claim, by_force=True)

    def withdraw(self, claim: RankClaim) -> None:
        """Delete the heartbeat, and the claim of the rank where this process has it."""
        pipe = self._pipeline()
        pipe.hdel(alive_key(self.shard), alive_field(self._job_id, self._source))
        _get_claim(pipe, claim)
        holder = read_claim(pipe.execute(raise_on_error=False)[1])
        if holder is not None and holder.source == claim.holder.source:
            pipe.set(_claim_key(claim), b"", px=1)
            pipe.execute()

    def _read_time(self, pipe: Any) -> None:
        """Read the clock of the server that has the heartbeats: the workers compare them by it."""
        pipe.execute_command("TIME", **beside(self._client, alive_key(self.shard)))

    def _pipeline(self) -> Any:
        return self._client.pipeline(transaction=False)


def _claim_key(claim: RankClaim) -> str:
    holder = claim.holder
    return claim_key(holder.job, holder.attempt, holder.rank or 0, claim.launcher)


def _get_claim(pipe: Any, claim: RankClaim) -> None:
    """Read a claim, up to the largest size that one has: any trainer can write the key."""
    pipe.getrange(_claim_key(claim), 0, MAX_CLAIM_BYTES - 1)


def _may_replace(reply: object, claim: RankClaim) -> bool:
    """Return whether the key may be written: it has no claim, an invalid value, or a claim of this process."""
    if isinstance(reply, Exception) and not _is_wrong_type(reply):
        return False
    holder = read_claim(reply)
    return holder is None or holder.source == claim.holder.source


def _milliseconds(time: tuple[int, int]) -> int:
    """Return a reply to TIME (seconds and microseconds) in milliseconds."""
    return time[0] * 1000 + time[1] // 1000


def _is_wrong_type(reply: object) -> bool:
    return isinstance(reply, Exception) and "WRONGTYPE" in str(reply)
