"""The connection to Redis: asks how things stand and appends messages to the streams."""

from __future__ import annotations

import email.parser  # noqa: F401 - as the next one: redis-py reads its own version when it connects
import encodings.idna  # noqa: F401 - Python imports it with the first host name: see trainwire.ingest.process.forks
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from redis.backoff import NoBackoff
from redis.retry import Retry

from trainwire.ingest.outage import Unavailable
from trainwire.ingest.sending.acks import Report, parse_report
from trainwire.ingest.sending.heartbeat import Heart, read_claim
from trainwire.ingest.sending.unacked import Held
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
"""As an acknowledged seq: nothing of a deleted job needs to be sent."""

_REDIS_ERRORS: Final = (*STREAM_ERRORS, OSError, UnicodeError)  # UnicodeError: a host name too long for DNS


@dataclass(frozen=True)
class Standing:
    """What Redis says before anything is sent."""

    must_hold: bool
    reports: dict[Kind, Report]
    is_job_deleted: bool = False
    """Then everything counts as acknowledged, for nothing of the job is stored."""


@dataclass(frozen=True)
class Claim:
    """Who has a rank, and how long ago it said so."""

    holder: Heartbeat
    age_s: float


@dataclass
class Sent:
    """Which messages Redis took in one round trip, and the first refusal."""

    seqs: dict[Kind, list[int]] = field(default_factory=dict)
    refusal: Unavailable | None = None


class StreamLink:
    """One job's way into the streams; every failure is `Unavailable`."""

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
            retry=Retry(NoBackoff(), 0),  # the publisher retries, and says so
        )

    @property
    def shard(self) -> int:
        """Return the job's shard; the number of shards is read once and kept for the life of the run."""
        if self._shards is None:
            pipe = self._pipeline()
            pipe.get(SHARDS_KEY)
            (answer,) = self._execute(pipe)
            self._shards = read_shards(answer)
        return shard_of(self._job_id, self._shards)

    def ask(self, kinds: Sequence[Kind]) -> Standing:
        """Return whether to hold back, and what the workers report of `kinds`."""
        pipe = self._pipeline()
        pipe.exists(HOLD_KEY)
        fields = (ack_field, missing_field, lost_field)
        names = [name(self._source, kind) for kind in kinds for name in fields]
        if names:
            pipe.hmget(acks_key(self._job_id), [JOB_DELETED_FIELD, *names])
        held, *found = self._execute(pipe)
        values = iter(found[0] if found else [None])
        is_deleted = next(values) is not None
        if is_deleted:
            return Standing(bool(held), dict.fromkeys(kinds, Report(EVERYTHING)), is_deleted)
        return Standing(bool(held), {kind: parse_report(*islice(values, len(fields))) for kind in kinds})

    def send(self, batches: Mapping[Kind, Sequence[Held]]) -> Sent:
        """Append the batches to their streams."""
        shard = self.shard
        pipe = self._pipeline()
        for kind, batch in batches.items():
            stream = stream_key(kind, shard)
            for held in batch:
                fields: dict[Any, Any] = dict(held.entry)
                pipe.xadd(stream, fields)
        replies = iter(self._execute(pipe, raise_on_error=False))
        sent = Sent()
        for kind, batch in batches.items():
            sent.seqs[kind] = _taken(batch, list(islice(replies, len(batch))), sent)
        return sent

    def beat(self, heart: Heart) -> None:
        """Say that this process lives. A Redis that refuses the heartbeat may take messages all the same."""
        origin, key = heart.origin, self._claim(heart)
        pipe = self._pipeline()
        self._ask_time(pipe)
        _get_claim(pipe, key)
        now, claim = self._execute(pipe, raise_on_error=False)
        if isinstance(now, Exception):
            heart.note_outcome(is_taken=False)
            return
        seconds, micros = now
        now_ms = seconds * 1000 + micros // 1000
        heartbeat = encode_heartbeat(heart.heartbeat(now_ms))
        pipe.hset(alive_key(self.shard), alive_field(origin.job_id, origin.source), heartbeat)
        if heart.may_claim and _is_claim(claim) and heart.may_take(_content(claim)):
            pipe.set(key, encode_heartbeat(heart.claim(now_ms)), px=heart.claim_ttl_ms)
        replies = self._execute(pipe, raise_on_error=False)
        heart.note_outcome(is_taken=not isinstance(replies[0], Exception))

    def claim(self, heart: Heart, *, by_force: bool = False) -> Claim | None:
        """Take the rank where nobody has it, or `by_force`; return the claim of who has it, None for us."""
        key = self._claim(heart)
        pipe = self._pipeline()
        self._ask_time(pipe)
        ((seconds, micros),) = self._execute(pipe)
        now_ms = seconds * 1000 + micros // 1000
        pipe = self._pipeline()
        pipe.set(key, encode_heartbeat(heart.claim(now_ms)), nx=not by_force, px=heart.claim_ttl_ms)
        _get_claim(pipe, key)
        is_set, claim = self._execute(pipe, raise_on_error=False)
        for reply in (is_set, claim):
            if isinstance(reply, Exception) and not _is_wrong_type(reply):
                raise self._unavailable(reply)
        holder = read_claim(_content(claim))
        if holder is None and not is_set:  # what is there is no claim
            return self.claim(heart, by_force=True)
        if holder is None or holder.source == heart.claimant:
            return None
        return Claim(holder, (now_ms - holder.at) / 1000)

    def say_goodbye(self, heart: Heart) -> None:
        """Take the heartbeat and the claim back: this process ends as it should."""
        key = self._claim(heart)
        pipe = self._pipeline()
        pipe.hdel(alive_key(self.shard), alive_field(heart.origin.job_id, heart.origin.source))
        _get_claim(pipe, key)
        holder = read_claim(_content(self._execute(pipe, raise_on_error=False)[1]))
        if holder is not None and holder.source == heart.claimant:
            pipe.set(key, b"", px=1)
            self._execute(pipe)

    def close(self) -> None:
        """Drop the connection; the next call makes a new one and looks the host up again."""
        drop_connections(self._client)

    def _claim(self, heart: Heart) -> str:
        origin = heart.origin
        return claim_key(origin.job_id, origin.attempt, origin.rank or 0, heart.launcher)

    def _ask_time(self, pipe: Any) -> None:
        """Ask for the clock by which heartbeats are judged: that of the server that has them."""
        try:
            where = beside(self._client, alive_key(self.shard))
        except _REDIS_ERRORS as exc:
            raise self._unavailable(exc) from exc
        pipe.execute_command("TIME", **where)

    def _pipeline(self) -> Any:
        try:
            return self._client.pipeline(transaction=False)  # of a cluster: asks who has which slots
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


def _get_claim(pipe: Any, key: str) -> None:
    """Read a claim: no more of the value than a claim has, for anyone can write one."""
    pipe.getrange(key, 0, MAX_CLAIM_BYTES - 1)


def _is_wrong_type(reply: object) -> bool:
    return isinstance(reply, Exception) and "WRONGTYPE" in str(reply)


def _is_claim(reply: object) -> bool:
    """Tell whether Redis allowed to read the claim; a key of another type may be replaced as an unreadable one."""
    return not isinstance(reply, Exception) or _is_wrong_type(reply)


def _content(reply: object) -> bytes | None:
    return reply if isinstance(reply, bytes) else None


def _taken(batch: Sequence[Held], replies: Sequence[object], sent: Sent) -> list[int]:
    """Return the seqs up to the first refusal: what came after it is sent again too, to keep the order."""
    seqs = []
    for held, reply in zip(batch, replies, strict=True):
        if isinstance(reply, Exception):
            sent.refusal = sent.refusal or Unavailable(str(reply))
            break
        seqs.append(held.seq)
    return seqs
