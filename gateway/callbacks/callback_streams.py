"""Appends the messages of callbacks to the Redis streams, with a Lua script that also numbers them.

The gateway makes up one source for the callbacks of an attempt, and counts its messages in Redis. A source is
valid for one replication history of the server: `master_replid`, which Redis changes at each start and each
promotion, and copies from its primary. A server that continues with older data has older counters, and the numbers
after them may be stored already. `run_id` does not reveal that, because a primary that was a replica meanwhile
keeps it. So the first request in a new history sends a completion of the old source with the numbers known, and
starts a new source with number 1.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, cast

import msgspec
import redis
from redis.commands.core import Script

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
from trainwire.schemas.non_finite import shown_float
from trainwire.schemas.wire.entries import WIRE_VERSION
from trainwire.schemas.wire.limits import MAX_FREE_BYTES
from trainwire.schemas.wire.messages import KIND_OF_BODY, Body, Logs
from trainwire.schemas.wire.validation import InvalidMessage, check_body

COUNTERS_TTL_S: Final = 30 * 24 * 3600
IDEMPOTENCY_TTL_S: Final = 24 * 3600
RETRY_TTL_S: Final = 120
"""Seconds for which requests without a key are kept; redis-py retries a lost reply for a shorter time."""
SOURCE_BYTES: Final = 12
"""Number of random bytes in the name of a source; the SDK uses the same number."""


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to append to its Redis stream.

    `once` is a key and a value, such as the kind and the URI of a checkpoint. The message is skipped if the job's
    last message with this key had the same value.
    """

    body: Body
    once: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The Idempotency-Key of a request and a hash of its content, kept for `ttl_s` seconds."""

    key: str
    fingerprint: str
    ttl_s: int = IDEMPOTENCY_TTL_S


@dataclass(frozen=True, slots=True)
class AppendResult:
    """The source and numbers of a request's messages, and whether the request repeats an earlier one."""

    job_id: int
    is_repeated: bool
    source: str
    numbers: Mapping[Kind, int]
    """The last `seq` of each kind.

    Empty if all messages were skipped, or if the request repeats one that an older version served.
    """


class CallbackStreams:
    """Appends the messages of callbacks to the Redis streams; thread-safe."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def put(
        self, job_id: int, attempt: int, messages: Sequence[NewMessage], idempotency: Idempotency | None = None
    ) -> AppendResult:
        """Append the messages of a request to their streams: all of them, except those that `once` skips, or none.

        The source is that of the callbacks of this `attempt` of the job. A request with the same `idempotency` as
        an earlier one appends nothing and returns the earlier result. Raises `InvalidMessage` for an invalid body,
        redis-py's errors, and a `ProblemError` if Redis is nearly full, the Idempotency-Key belongs to another
        request, or the job was deleted.
        """
        shard = self._shard(job_id)
        request = idempotency or Idempotency(secrets.token_hex(), "once", RETRY_TTL_S)
        keys = [
            callback_counters_key(shard, job_id, attempt),
            callback_answer_key(shard, job_id, _digest(request.key)),
            stream_key("completions", shard),
        ]
        source = f"{CALLBACK_SOURCE}{secrets.token_hex(SOURCE_BYTES)}"
        values: list[Any] = [job_id, attempt, source, COUNTERS_TTL_S]
        values += [request.fingerprint, request.ttl_s]
        values += [time.time_ns(), _first_time(messages[0].body)]
        for message in messages:
            kind = KIND_OF_BODY[type(message.body)]
            keys.append(stream_key(kind, shard))
            values += [kind, encode(message.body), *message.once]
        outcome, numbers_text = [word.decode() for word in self._script(keys=keys, args=values)]
        if outcome == "other":
            raise ProblemError(_KEY_TAKEN)
        source, *numbered = numbers_text.split(" ")
        numbers = {kind: int(seq) for kind, _, seq in (word.partition("=") for word in numbered)}
        is_repeated = outcome == "again" and idempotency is not None
        return AppendResult(job_id, is_repeated, source, cast("dict[Kind, int]", numbers))

    def is_stored(self, result: AppendResult) -> bool:
        """Return whether all messages of a request are acknowledged, which means committed in Postgres.

        False if the result has no numbers. Raises redis-py's errors, and a `ProblemError` if the job was deleted
        meanwhile.
        """
        if not result.numbers:
            return False
        fields = [JOB_DELETED_FIELD, *(ack_field(result.source, kind) for kind in result.numbers)]
        is_deleted, *acks = cast("list[bytes | None]", self._client.hmget(acks_key(result.job_id), fields))
        if is_deleted:
            raise deleted_job(result.job_id)
        return all(int(ack or 0) >= seq for ack, seq in zip(acks, result.numbers.values(), strict=True))

    @cached_property
    def _script(self) -> Script:
        # Not in the constructor: a cluster client connects here, and its servers may be unavailable at the start.
        return self._client.register_script(_SCRIPT)

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
    """Encode a body as JSON, with NaN and infinities as strings; raise `InvalidMessage` if it is invalid."""
    check_body(body)
    try:
        for name in ("params", "tags"):
            value = getattr(body, name, None)
            if value and len(msgspec.json.encode(value)) > MAX_FREE_BYTES:
                raise InvalidMessage(
                    "too-large", f"{name} has more than {MAX_FREE_BYTES} bytes of JSON: shorten it"
                )
        return msgspec.json.encode(_with_shown_floats(msgspec.to_builtins(body)))
    except (UnicodeEncodeError, OverflowError, TypeError, ValueError) as exc:
        if isinstance(exc, InvalidMessage):
            raise
        raise InvalidMessage("unencodable", f"a value cannot be encoded as JSON: {exc}") from exc


def _first_time(body: Body) -> int:
    """Return the earliest time in a message body, in nanoseconds since 1970.

    A new source uses it as its start time.
    """
    return min(body.ts, default=time.time_ns()) if isinstance(body, Logs) else body.ts or time.time_ns()


def _with_shown_floats(value: Any) -> Any:
    if isinstance(value, float):
        return shown_float(value)
    if isinstance(value, Mapping):
        return {name: _with_shown_floats(inner) for name, inner in value.items()}
    return [_with_shown_floats(inner) for inner in value] if isinstance(value, list) else value


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


_HOLD: Final = problem(
    503, "hold", "Redis is nearly full", "Redis is nearly full: keep the message and send it again later"
)
_KEY_TAKEN: Final = problem(
    422, "key-taken", "The Idempotency-Key belongs to another request", "choose a new key for a new request"
)
_SCRIPT: Final = """
local counters, answer, ends = unpack(KEYS, 1, 3)
local job, attempt, source, ttl, fingerprint, kept_s, now, began = unpack(ARGV, 1, 8)
local seen = redis.call('GET', answer)
if seen then
  local stored, result = string.match(seen, '^(%%S+) ?(.*)$')
  return {stored == fingerprint and 'again' or 'other', result}
end

local function append(owner, stream, seq, body)
  redis.call('XADD', stream, '*', 'v', '%(version)s', 'job', job, 'attempt', attempt, 'source', owner,
    'seq', seq, 'enc', 'json', 'body', string.sub(body, 1, -2) .. ',"started_at":' .. began .. '}')
end

local function counted(kinds)
  local counts = {}
  for _, kind in ipairs(kinds) do
    local count = redis.call('HGET', counters, kind)
    if count then counts[#counts + 1] = '"' .. kind .. '":' .. count end
  end
  return counts
end

local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%%x+)') or ''
local known = redis.call('HMGET', counters, 'source', 'history', 'began')
began = known[3] or began
if known[1] and known[2] == history then
  source = known[1]
else
  local produced = counted({'logs', 'metrics', 'checkpoints'})
  if #produced > 0 and redis.call('HEXISTS', counters, 'completions') == 0 then
    produced[#produced + 1] = '"completions":0'
    append(known[1], ends, 1,
      '{"ts":' .. now .. ',"status":"ended","produced":{' .. table.concat(produced, ',') .. '}}')
  end
  redis.call('HDEL', counters, 'logs', 'metrics', 'checkpoints', 'completions')
  redis.call('HSET', counters, 'source', source, 'history', history, 'began', began)
end

local result = source
for number = 0, (#ARGV - 8) / 4 - 1 do
  local kind, body, field, value = unpack(ARGV, 9 + 4 * number, 12 + 4 * number)
  local stream = KEYS[4 + number]
  if field == '' or redis.call('HGET', counters, field) ~= value then
    if field ~= '' then redis.call('HSET', counters, field, value) end
    local seq = redis.call('HINCRBY', counters, kind, 1)
    if kind == 'completions' then
      local all = counted({'logs', 'metrics', 'checkpoints', 'completions'})
      body = string.sub(body, 1, -2) .. ',"produced":{' .. table.concat(all, ',') .. '}}'
    end
    append(source, stream, seq, body)
    result = result .. ' ' .. kind .. '=' .. seq
  end
end
redis.call('EXPIRE', counters, ttl)
redis.call('SET', answer, fingerprint .. ' ' .. result, 'EX', kept_s)
return {'new', result}
""" % {"version": WIRE_VERSION}  # noqa: UP031 - Lua is full of braces
