"""The Redis commands for one source, run by its trainer, or by the gateway for a trainer that uses HTTPS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NamedTuple

import redis
from msgspec.structs import replace

from trainwire.schemas.keys import (
    FREQUENT_KINDS,
    HOLD_KEY,
    JOB_DELETED_FIELD,
    SHARDS_KEY,
    AckFields,
    Kind,
    ack_field,
    acks_key,
    alive_field,
    alive_key,
    behind_key,
    claim_key,
    lost_field,
    missing_field,
    read_behind_s,
    read_shards,
    shard_of,
    stop_field,
    stream_key,
    unknown_resume_field,
)
from trainwire.schemas.streams.clients import server_options
from trainwire.schemas.wire.entries import Entry
from trainwire.schemas.wire.heartbeats import Heartbeat, RankClaim, encode_heartbeat, read_claim

MAX_CLAIM_BYTES: Final = 4096


@dataclass(frozen=True)
class StreamReports:
    """The state that workers publish for a job's trainers: acknowledgements, deletion, stop request, and the hold.

    `must_hold` is True while Redis is nearly full. `behind_s` is for how many seconds messages of the shard wait,
    0 while that is short.
    """

    must_hold: bool = False
    behind_s: float = 0.0
    is_job_deleted: bool = False
    acks: dict[Kind, AckFields] = field(default_factory=dict)
    stop: bytes | None = None
    """The request to stop the source, if there is one."""
    is_unknown_resume: bool = False
    """Whether the source resumes a job of which no earlier attempt is stored."""


class HeartbeatReply(NamedTuple):
    """The result of a heartbeat: whether Redis accepted it, the rank's claim before it, and the request to stop.

    `claim` is Redis' reply to the read of the claim: bytes (empty if there is no claim) or an error; None if no
    claim was given. `stop` is None without a request.
    """

    is_taken: bool
    claim: object
    stop: bytes | None


@dataclass
class Appended:
    """The result of appending entries to streams.

    `counts` is the number of entries of each kind that Redis accepted, from the first one on. `refusal` is Redis'
    first error, or None.
    """

    counts: dict[Kind, int] = field(default_factory=dict)
    refusal: str | None = None


class SourceStreams:
    """Reads and writes the Redis keys of one source; does not translate redis-py's errors."""

    def __init__(self, client: redis.Redis, job_id: int, source: str) -> None:
        self._client = client
        self._job_id = job_id
        self._source = source
        self._shards: int | None = None
        self._may_read_behind = True

    @property
    def shard(self) -> int:
        """The job's shard. The number of shards is read from Redis once."""
        if self._shards is None:
            pipe = self._pipeline()
            pipe.get(SHARDS_KEY)
            (answer,) = pipe.execute()
            self._shards = read_shards(answer)
        return shard_of(self._job_id, self._shards)

    def read_reports(self, kinds: Sequence[Kind]) -> StreamReports:
        """Return the hold, how far the workers are behind, and the acknowledgements, deletion and stop request.

        If `kinds` is empty, only the first two are read; the other fields have their defaults.
        """
        pipe = self._pipeline()
        self._ask_reports(pipe, kinds)
        return self._reports(kinds, pipe.execute(raise_on_error=False))

    def append(self, batches: Mapping[Kind, Sequence[Entry]]) -> Appended:
        """Append the entries to the streams of their kinds, in order.

        After the first refusal of a kind, later entries of that kind do not count as accepted: the caller sends
        them again.
        """
        pipe = self._pipeline()
        self._append(pipe, batches)
        return _appended(batches, pipe.execute(raise_on_error=False))

    def read_and_append(
        self, kinds: Sequence[Kind], batches: Mapping[Kind, Sequence[Entry]]
    ) -> tuple[StreamReports, Appended]:
        """Do the work of `read_reports` and `append` in one round trip; entries are appended even during a hold.

        Raises Redis' error if it refuses the read; entries may then be appended.
        """
        pipe = self._pipeline()
        self._ask_reports(pipe, kinds)
        asked = len(pipe)
        self._append(pipe, batches)
        replies = pipe.execute(raise_on_error=False)
        return self._reports(kinds, replies[:asked]), _appended(batches, replies[asked:])

    def _ask_reports(self, pipe: Any, kinds: Sequence[Kind]) -> None:
        pipe.exists(HOLD_KEY)
        if self._may_read_behind:
            for kind in FREQUENT_KINDS:
                pipe.get(behind_key(kind, self.shard))
        fields = (ack_field, missing_field, lost_field)
        names = [name(self._source, kind) for kind in kinds for name in fields]
        if names:
            pipe.hmget(
                acks_key(self._job_id),
                [JOB_DELETED_FIELD, stop_field(self._source), unknown_resume_field(self._source), *names],
            )

    def _reports(self, kinds: Sequence[Kind], replies: Sequence[Any]) -> StreamReports:
        """Return the reports in the replies to `_ask_reports`; raise Redis' error if it refuses the read.

        If it refuses only how far the workers are behind (older rights of a Redis user), this is not read again.
        """
        hold, *found = replies
        behind: list[Any] = []
        if self._may_read_behind:
            behind, found = found[: len(FREQUENT_KINDS)], found[len(FREQUENT_KINDS) :]
            self._may_read_behind = not any(isinstance(reply, Exception) for reply in behind)
        for reply in (hold, *found):
            if isinstance(reply, Exception):
                raise reply
        values = iter(found[0] if found else [None, None, None])
        is_deleted, stop, is_unknown_resume = next(values) is not None, next(values), next(values) is not None
        acks: dict[Kind, AckFields] = {kind: (next(values), next(values), next(values)) for kind in kinds}
        return StreamReports(bool(hold), read_behind_s(behind), is_deleted, acks, stop, is_unknown_resume)

    def _append(self, pipe: Any, batches: Mapping[Kind, Sequence[Entry]]) -> None:
        shard = self.shard
        for kind, batch in batches.items():
            stream = stream_key(kind, shard)
            for entry in batch:
                fields: dict[Any, Any] = dict(entry)
                pipe.xadd(stream, fields)

    def write_heartbeat(self, heartbeat: Heartbeat, claim: RankClaim | None) -> HeartbeatReply:
        """Write a heartbeat, and renew or take `claim` unless another process holds it.

        The time in both is set to the server's time. If Redis refuses to report its time, nothing is written.
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
        """Write `claim` if no process holds the rank or the key has an invalid value, or always with `by_force`.

        Returns the claim that is in Redis afterwards (None if its value is not valid), and the server's time in
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

    def withdraw(self, claim: RankClaim) -> object:
        """Delete the source's heartbeat, and the claim of the rank if this process holds it.

        A claim that informs another process of this one (`rival`) stays until it expires. Returns Redis' reply to
        the read of the claim.
        """
        pipe = self._pipeline()
        pipe.hdel(alive_key(self.shard), alive_field(self._job_id, self._source))
        _get_claim(pipe, claim)
        reply = pipe.execute(raise_on_error=False)[1]
        holder = read_claim(reply)
        if holder is not None and holder.source == claim.holder.source and holder.rival is None:
            pipe.set(_claim_key(claim), b"", px=1)
            pipe.execute()
        return reply

    def _read_time(self, pipe: Any) -> None:
        """Queue a TIME command in `pipe` for the server that has the heartbeats.

        Workers compare the times in heartbeats with the clock of this server.
        """
        pipe.execute_command("TIME", **server_options(self._client, alive_key(self.shard)))

    def _pipeline(self) -> Any:
        return self._client.pipeline(transaction=False)


def _appended(batches: Mapping[Kind, Sequence[Entry]], replies: Sequence[Any]) -> Appended:
    left = iter(replies)
    result = Appended()
    for kind, batch in batches.items():
        result.counts[kind] = 0
        for reply in list(islice(left, len(batch))):
            if isinstance(reply, Exception):  # in order: later entries are sent again too
                result.refusal = result.refusal or str(reply)
                break
            result.counts[kind] += 1
    return result


def _claim_key(claim: RankClaim) -> str:
    holder = claim.holder
    return claim_key(holder.job, holder.attempt, holder.rank or 0, claim.launcher)


def _get_claim(pipe: Any, claim: RankClaim) -> None:
    """Queue a read of the claim in `pipe`, up to MAX_CLAIM_BYTES: any trainer can write a larger value."""
    pipe.getrange(_claim_key(claim), 0, MAX_CLAIM_BYTES - 1)


def _may_replace(reply: object, claim: RankClaim) -> bool:
    """Return whether this process may write the claim.

    This is so if the key is empty, invalid, or held by this process. To inform each other, two live processes of
    one rank replace each other's claims once. Returns False if Redis refused the read, except for a wrong type.
    """
    if isinstance(reply, Exception) and not _is_wrong_type(reply):
        return False
    holder, own = read_claim(reply), claim.holder
    return holder is None or own.source in (holder.source, holder.rival) or holder.source == own.rival


def _milliseconds(time: tuple[int, int]) -> int:
    """Convert a reply to TIME (seconds, microseconds) to milliseconds."""
    return time[0] * 1000 + time[1] // 1000


def _is_wrong_type(reply: object) -> bool:
    return isinstance(reply, Exception) and "WRONGTYPE" in str(reply)
