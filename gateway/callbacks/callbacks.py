"""What trainers say over HTTP, put on the streams: numbered, appended and remembered in one step.

The source has a random part that is born with its counters: a Redis that has lost them, or went on from older
ones, begins a new source, so no number is ever used twice.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, cast

import msgspec
import redis
from redis.commands.core import Script

from trainwire.gateway.callbacks.redis_script import SCRIPT
from trainwire.gateway.http.problems import ProblemError, deleted_job, problem
from trainwire.schemas.keys import (
    CALLBACK_SOURCE,
    HOLD_KEY,
    JOB_DELETED_FIELD,
    SHARDS_KEY,
    Kind,
    ack_field,
    acks_key,
    callback_answer_key,
    callback_counters_key,
    read_shards,
    shard_of,
    stream_key,
)
from trainwire.schemas.limits import MAX_FREE_BYTES
from trainwire.schemas.messages import KIND_OF_BODY, Body, Logs
from trainwire.schemas.non_finite import shown_float
from trainwire.schemas.validation import InvalidMessage, check_body

COUNTERS_TTL_S: Final = 30 * 24 * 3600
REMEMBERED_S: Final = 24 * 3600
"""How long an idempotency key is known."""
RETRIED_S: Final = 120
"""Longer than the Redis client tries one request, which it sends again when only the answer was lost."""
SOURCE_BYTES: Final = 12
"""Random bytes of a source's name, as trainers have them."""


@dataclass(frozen=True, slots=True)
class Said:
    """One message; with `once`, a name and a value, it is said only where that value is new."""

    body: Body
    once: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The key that the client chose for a request, and what identifies the request itself."""

    key: str
    fingerprint: str
    remembered_s: int = REMEMBERED_S


@dataclass(frozen=True, slots=True)
class Taken:
    """Whether a request was a repetition, and its numbers."""

    job_id: int
    is_repeated: bool
    source: str
    numbers: Mapping[Kind, int]
    """The last `seq` of each kind; empty for a repetition of what an older version took."""


class CallbackQueue:
    """Puts messages on the streams; safe to use from several threads."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def put(
        self, job_id: int, attempt: int, said: Iterable[Said], idempotency: Idempotency | None = None
    ) -> Taken:
        """Append messages to their streams, all of them or none.

        Raises `InvalidMessage`, a `ProblemError` (Redis is nearly full; the key belongs to another request; the
        job was deleted), and what redis-py raises.
        """
        shard = self._shard(job_id)
        bodies = list(said)
        once = idempotency or Idempotency(secrets.token_hex(), "once", RETRIED_S)
        keys = [
            callback_counters_key(shard, job_id, attempt),
            callback_answer_key(shard, job_id, _digest(once.key)),
            stream_key("completions", shard),
        ]
        source = f"{CALLBACK_SOURCE}{secrets.token_hex(SOURCE_BYTES)}"
        values: list[Any] = [job_id, attempt, source, COUNTERS_TTL_S]
        values += [once.fingerprint, once.remembered_s]
        values += [time.time_ns(), _first_time(bodies[0].body)]
        for message in bodies:
            kind = KIND_OF_BODY[type(message.body)]
            keys.append(stream_key(kind, shard))
            values += [kind, encode(message.body), *message.once]
        outcome, receipt = [word.decode() for word in self._script(keys=keys, args=values)]
        if outcome == "other":
            raise ProblemError(_KEY_TAKEN)
        source, *numbered = receipt.split(" ")
        numbers = {kind: int(seq) for kind, _, seq in (word.partition("=") for word in numbered)}
        is_repeated = outcome == "again" and idempotency is not None
        return Taken(job_id, is_repeated, source, cast("dict[Kind, int]", numbers))

    def is_stored(self, taken: Taken) -> bool:
        """Tell whether workers have acked all of a request: it is in Postgres. Raises what redis-py raises.

        A `ProblemError` where the job was deleted meanwhile.
        """
        if not taken.numbers:
            return False
        fields = [JOB_DELETED_FIELD, *(ack_field(taken.source, kind) for kind in taken.numbers)]
        is_deleted, *acked = cast("list[bytes | None]", self._client.hmget(acks_key(taken.job_id), fields))
        if is_deleted:
            raise deleted_job(taken.job_id)
        return all(int(last or 0) >= seq for last, seq in zip(acked, taken.numbers.values(), strict=True))

    @cached_property
    def _script(self) -> Script:
        # Not at the start: a client of a cluster looks for its servers with this, and they may be away.
        return self._client.register_script(SCRIPT)

    def _shard(self, job_id: int) -> int:
        with self._client.pipeline(transaction=False) as pipe:
            pipe.exists(HOLD_KEY)
            pipe.get(SHARDS_KEY)
            pipe.hexists(acks_key(job_id), JOB_DELETED_FIELD)
            must_hold, shards, is_deleted = pipe.execute()
        if is_deleted:
            raise deleted_job(job_id)
        if must_hold:
            raise ProblemError(_HOLD)
        return shard_of(job_id, read_shards(shards))


def encode(body: Body) -> bytes:
    """Return a body as JSON, what that cannot say by name; raise `InvalidMessage` where it breaks a rule."""
    check_body(body)
    try:
        for free in (getattr(body, "params", None), getattr(body, "tags", None)):
            if free and len(msgspec.json.encode(free)) > MAX_FREE_BYTES:
                raise InvalidMessage("too-large", f"params and tags may have {MAX_FREE_BYTES} bytes each")
        return msgspec.json.encode(_named(msgspec.to_builtins(body)))
    except (UnicodeEncodeError, OverflowError, TypeError, ValueError) as exc:
        if isinstance(exc, InvalidMessage):
            raise
        raise InvalidMessage("unencodable", f"a value has no form in JSON: {exc}") from exc


def _first_time(body: Body) -> int:
    """Return the earliest time that a body names, in nanoseconds: when its source began, where it is the first."""
    return min(body.ts, default=time.time_ns()) if isinstance(body, Logs) else body.ts or time.time_ns()


def _named(value: Any) -> Any:
    if isinstance(value, float):
        return shown_float(value)
    if isinstance(value, Mapping):
        return {name: _named(inner) for name, inner in value.items()}
    return [_named(inner) for inner in value] if isinstance(value, list) else value


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


_HOLD: Final = problem(
    503, "hold", "Redis is nearly full", "trainers are asked to hold back: keep it and try again in a moment"
)
_KEY_TAKEN: Final = problem(
    422, "key-taken", "This Idempotency-Key belongs to another request", "choose a new key for a new request"
)
