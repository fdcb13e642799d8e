"""Repairs keys of Redis that workers cannot go on with: jammed streams, keys of the wrong type.

A stream whose last id lies in the future is jammed: at the highest id Redis refuses every XADD, and trainers can
neither see nor mend that. It is deleted if it is empty. Otherwise it is renamed (`jammed_key`), so that trainers
can append again at once, and is drained beside the new stream (`trainwire.workers.streams.strays`): where its
entries cannot be stored, it would never become empty by itself. Trainers send again what is not acknowledged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Final, cast

import redis
import structlog

from trainwire.schemas.keys import (
    KINDS,
    REPAIRS_KEY,
    Kind,
    ahead_key,
    alive_key,
    jammed_key,
    listening_key,
    stream_key,
)
from trainwire.schemas.streams.clients import STREAM_ERRORS
from trainwire.schemas.streams.servers import Commands, ask_each

log = structlog.get_logger("trainwire.workers.drain.repairs")

AHEAD_MS: Final = 24 * 3600 * 1000
"""An id this far ahead of the clock was chosen by a client, or by a clock that was wrong by a day."""
KEPT_S: Final = 7 * 24 * 3600
MAX_NOTES: Final = 1000
"""Then the notes begin anew: whoever makes stray streams chooses their names."""
RESTARTED: Final = "restarted"
RENAMED: Final = "renamed"
_REPAIR: Final = """
local found = redis.call('TYPE', KEYS[1]).ok
if found == 'none' then return false end
if found ~= ARGV[1] then
  redis.call('RENAME', KEYS[1], KEYS[2])
  redis.call('EXPIRE', KEYS[2], ARGV[3])
  return {'set aside', 'a ' .. found}
end
if found ~= 'stream' then return false end
local info = redis.call('XINFO', 'STREAM', KEYS[1])
local last
for at = 1, #info, 2 do
  if info[at] == 'last-generated-id' then last = info[at + 1] end
end
if tonumber(string.match(last, '^%d+')) <= tonumber(ARGV[2]) then return false end
if redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[1])
  return {'restarted', last}
end
if not KEYS[3] or redis.call('EXISTS', KEYS[3]) == 1 then return false end
redis.call('RENAME', KEYS[1], KEYS[3])
redis.call('DEL', KEYS[4])
return {'renamed', last}
"""
"""Keys: the one to repair and its name when set aside; of a shard's stream also its name when it is jammed and the
state of its look ahead. Arguments: its type, the latest time of a last id, a TTL in seconds.
"""


def is_ahead(entry_id: str) -> bool:
    """Tell whether an entry's id lies so far in the future that its stream is to be started anew."""
    return int(entry_id.partition("-")[0]) > _latest_ms()


def repair(client: redis.Redis, shards: int) -> Mapping[str, str]:
    """Repair the keys of all shards; return those that were repaired, and how. Raises what redis-py raises."""
    commands = {stream_key(kind, shard): _stream_command(kind, shard) for kind in KINDS for shard in range(shards)}
    hashes = [key for shard in range(shards) for key in (alive_key(shard), listening_key(shard))]
    commands |= {key: _command("hash", key) for key in hashes}
    # TYPE is there for its key, by which the server is found.
    questions: dict[str, Commands] = {key: [("TYPE", key), command] for key, command in commands.items()}
    found = ask_each(client, questions).replies
    repaired = {key: _text(done) for key, (_, done) in found.items() if done}
    for key, how in repaired.items():
        note_repair(client, key, how)
    return repaired


def restart_if_jammed(client: redis.Redis, key: str) -> None:
    """Delete a stream that is jammed and empty."""
    done: Any = client.eval(*_command("stream", key)[1:])
    if done:
        note_repair(client, key, _text(done))


def recent_repairs(client: redis.Redis, within_s: float) -> dict[str, str]:
    """Return the keys that were repaired not long ago, and how."""
    found = cast("dict[bytes, bytes]", client.hgetall(REPAIRS_KEY))
    notes = {key.decode(errors="replace"): json.loads(note) for key, note in found.items()}
    return {key: note["how"] for key, note in notes.items() if time.time() - note["at"] < within_s}


def note_repair(client: redis.Redis, key: str, how: str) -> None:
    """Log a repair, and note it where operators look."""
    log.warning("stream.repaired", key=key, how=how)
    pipeline = client.pipeline(transaction=False)
    pipeline.hset(REPAIRS_KEY, key, json.dumps({"at": time.time(), "how": how}))
    pipeline.expire(REPAIRS_KEY, KEPT_S)
    try:
        if client.hlen(REPAIRS_KEY) >= MAX_NOTES:
            client.delete(REPAIRS_KEY)
        pipeline.execute()
    except STREAM_ERRORS as exc:  # a full Redis, a server that is away: the log has it
        log.warning("stream.repair_not_noted", key=key, reason=str(exc))


def _stream_command(kind: Kind, shard: int) -> tuple[Any, ...]:
    key = stream_key(kind, shard)
    return _command("stream", key, jammed_key(kind, shard), ahead_key(key))


def _command(data_type: str, key: str, *more_keys: str) -> tuple[Any, ...]:
    keys = (key, f"{key}:set-aside", *more_keys)
    return ("EVAL", _REPAIR, len(keys), *keys, data_type, _latest_ms(), KEPT_S)


def _latest_ms() -> int:
    return int(time.time() * 1000) + AHEAD_MS


def _text(done: list[bytes]) -> str:
    how, what = (part.decode() for part in done)
    if how == RESTARTED:
        return f"jammed at id {what}: started anew"
    if how == RENAMED:
        return f"jammed at id {what}: started anew, its entries are drained beside it"
    return f"{what}, not what belongs there: renamed, and kept for {KEPT_S // 86400} days"
