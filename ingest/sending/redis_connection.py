"""The connection of a trainer to Redis: reads acknowledgements, appends messages, sends heartbeats and claims."""

from __future__ import annotations

import email.parser  # noqa: F401 - redis-py imports it when it connects; as the next line
import encodings.idna  # noqa: F401 - Python imports it with the first host name: see trainwire.ingest.process.forks
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from redis.backoff import NoBackoff
from redis.retry import Retry

from trainwire.ingest.outage import Unavailable
from trainwire.ingest.sending.acks import AckReport, parse_report
from trainwire.ingest.sending.heartbeat import SourceHeartbeat, read_claim
from trainwire.ingest.sending.unacked import EncodedMessage
from trainwire.schemas.heartbeats import Heartbeat, encode_heartbeat
from trainwire.schemas.keys import (
    HOLD_KEY,
    JOB_DELETED_FIELD,
    SHARDS_KEY,
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
    stream_key,
)
from trainwire.schemas.streams.clients import STREAM_ERRORS, beside, drop_connections, open_streams
from trainwire.schemas.streams.tls import redis_trouble

CONNECT_TIMEOUT_S: Final = 2
SOCKET_TIMEOUT_S: Final = 5
MAX_CLAIM_BYTES: Final = 4096
EVERYTHING: Final = 2**63 - 1
"""The acknowledged number of a deleted job: none of its messages needs to be sent."""

_REDIS_ERRORS: Final = (*STREAM_ERRORS, OSError, UnicodeError)  # UnicodeError: a host name too long for DNS


@dataclass(frozen=True)
class WorkerReports:
    """The workers' reports, read before messages are sent; `must_hold` is True while Redis is nearly full."""

    must_hold: bool
    acks: dict[Kind, AckReport]
    is_job_deleted: bool = False
    """Then every message counts as acknowledged, and none is stored."""


@dataclass(frozen=True)
class Claim:
    """The claim of a rank by another process, and the time since its last renewal."""

    holder: Heartbeat
    age_s: float


@dataclass
class SendResult:
    """The numbers of the messages that Redis has taken in one round trip, and the first refusal."""

    seqs: dict[Kind, list[int]] = field(default_factory=dict)
    refusal: Unavailable | None = None


class RedisConnection:
    """Connects one source to the streams; every failure raises `Unavailable`."""

    def __init__(self, redis_url: str, job_id: int, source: str) -> None:
        self._job_id = job_id
        self._source = source
        self._redis_url = redis_url
        self._has_answered = False
        self._shards: int | None = None
        self._client = open_streams(
            redis_url,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=SOCKET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),  # the sender retries, and logs it
        )

    @property
    def shard(self) -> int:
        """Return the job's shard; the number of shards is read once, and stays the same for the whole run."""
        if self._shards is None:
            pipe = self._pipeline()
            pipe.get(SHARDS_KEY)
            (answer,) = self._execute(pipe)
            self._shards = read_shards(answer)
        return shard_of(self._job_id, self._shards)

    def read_reports(self, kinds: Sequence[Kind]) -> WorkerReports:
        """Return the workers' reports on `kinds`, and whether to hold messages back."""
        pipe = self._pipeline()
        pipe.exists(HOLD_KEY)
        fields = (ack_field, missing_field, lost_field)
        names = [name(self._source, kind) for kind in kinds for name in fields]
        if names:
            pipe.hmget(acks_key(self._job_id), [JOB_DELETED_FIELD, *names])
        hold, *found = self._execute(pipe)
        values = iter(found[0] if found else [None])
        is_deleted = next(values) is not None
        if is_deleted:
            return WorkerReports(bool(hold), dict.fromkeys(kinds, AckReport(EVERYTHING)), is_deleted)
        return WorkerReports(bool(hold), {kind: parse_report(*islice(values, len(fields))) for kind in kinds})

    def send(self, batches: Mapping[Kind, Sequence[EncodedMessage]]) -> SendResult:
        """Append messages to the streams of their kinds."""
        shard = self.shard
        pipe = self._pipeline()
        for kind, batch in batches.items():
            stream = stream_key(kind, shard)
            for message in batch:
                fields: dict[Any, Any] = dict(message.entry)
                pipe.xadd(stream, fields)
        replies = iter(self._execute(pipe, raise_on_error=False))
        result = SendResult()
        for kind, batch in batches.items():
            result.seqs[kind] = []
            for message, reply in zip(batch, list(islice(replies, len(batch))), strict=True):
                if isinstance(reply, Exception):  # in order: later messages are sent again too
                    result.refusal = result.refusal or Unavailable(str(reply))
                    break
                result.seqs[kind].append(message.seq)
        return result

    def send_heartbeat(self, source: SourceHeartbeat) -> None:
        """Send a heartbeat and renew the claim. A Redis that refuses the heartbeat may still take messages."""
        origin, key = source.origin, _claim_key(source)
        pipe = self._pipeline()
        self._read_time(pipe)
        _get_claim(pipe, key)
        now, claim = self._execute(pipe, raise_on_error=False)
        if isinstance(now, Exception):
            source.note_outcome(is_taken=False)
            return
        now_ms = _milliseconds(now)
        heartbeat = encode_heartbeat(source.heartbeat(now_ms))
        pipe.hset(alive_key(self.shard), alive_field(origin.job_id, origin.source), heartbeat)
        if source.may_claim and _is_claim(claim) and source.may_take(claim):
            pipe.set(key, encode_heartbeat(source.claim(now_ms)), px=source.claim_ttl_ms)
        replies = self._execute(pipe, raise_on_error=False)
        source.note_outcome(is_taken=not isinstance(replies[0], Exception))

    def claim(self, source: SourceHeartbeat, *, by_force: bool = False) -> Claim | None:
        """Claim the rank if it is free, or `by_force`; return the claim of another process, None for our own."""
        key = _claim_key(source)
        pipe = self._pipeline()
        self._read_time(pipe)
        (now,) = self._execute(pipe)
        now_ms = _milliseconds(now)
        pipe = self._pipeline()
        pipe.set(key, encode_heartbeat(source.claim(now_ms)), nx=not by_force, px=source.claim_ttl_ms)
        _get_claim(pipe, key)
        is_set, claim = self._execute(pipe, raise_on_error=False)
        for reply in (is_set, claim):
            if isinstance(reply, Exception) and not _is_wrong_type(reply):
                raise self._unavailable(reply)
        holder = read_claim(claim)
        if holder is None and not is_set:  # the value there is no claim
            return self.claim(source, by_force=True)
        if holder is None or holder.source == source.claimant:
            return None
        return Claim(holder, (now_ms - holder.at) / 1000)

    def withdraw_heartbeat(self, source: SourceHeartbeat) -> None:
        """Delete the heartbeat and the claim: this process ends normally."""
        key = _claim_key(source)
        pipe = self._pipeline()
        pipe.hdel(alive_key(self.shard), alive_field(source.origin.job_id, source.origin.source))
        _get_claim(pipe, key)
        holder = read_claim(self._execute(pipe, raise_on_error=False)[1])
        if holder is not None and holder.source == source.claimant:
            pipe.set(key, b"", px=1)
            self._execute(pipe)

    def close(self) -> None:
        """Close the connection; the next call makes a new one and resolves the host name again."""
        drop_connections(self._client)

    def _read_time(self, pipe: Any) -> None:
        """Read the clock of the server that has the heartbeats: the workers compare them by it."""
        try:
            where = beside(self._client, alive_key(self.shard))
        except _REDIS_ERRORS as exc:
            raise self._unavailable(exc) from exc
        pipe.execute_command("TIME", **where)

    def _pipeline(self) -> Any:
        try:
            return self._client.pipeline(transaction=False)  # of a cluster: reads which node has which slots
        except _REDIS_ERRORS as exc:
            raise self._unavailable(exc) from exc

    def _execute(self, pipe: Any, raise_on_error: bool = True) -> list[Any]:
        try:
            replies: list[Any] = pipe.execute(raise_on_error=raise_on_error)
        except _REDIS_ERRORS as exc:
            raise self._unavailable(exc) from exc
        self._has_answered = True
        return replies

    def _unavailable(self, exc: Exception) -> Unavailable:
        return Unavailable(redis_trouble(exc, "" if self._has_answered else self._redis_url))


def _claim_key(source: SourceHeartbeat) -> str:
    origin = source.origin
    return claim_key(origin.job_id, origin.attempt, origin.rank or 0, source.launcher)


def _milliseconds(time: tuple[int, int]) -> int:
    """Return a reply to TIME (seconds and microseconds) in milliseconds."""
    return time[0] * 1000 + time[1] // 1000


def _get_claim(pipe: Any, key: str) -> None:
    """Read a claim, at most the size of a valid one: any trainer can write the key, with any size."""
    pipe.getrange(key, 0, MAX_CLAIM_BYTES - 1)


def _is_wrong_type(reply: object) -> bool:
    return isinstance(reply, Exception) and "WRONGTYPE" in str(reply)


def _is_claim(reply: object) -> bool:
    """Return whether the reply is a claim, not an error: a key of another type may be replaced."""
    return not isinstance(reply, Exception) or _is_wrong_type(reply)
