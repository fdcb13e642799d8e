"""Repairs Redis keys that workers cannot use: streams whose last id is in the future, and keys of the wrong type.

Such a stream is called jammed: at the highest id Redis refuses every XADD, and trainers cannot detect or repair
that. An empty jammed stream is deleted. Any other is renamed (`jammed_key`), so that trainers can append to a new
stream at once. The renamed stream is drained separately (`trainwire.workers.streams.stray_streams`), because
entries that cannot be stored would keep it from ever becoming empty. Trainers resend messages that are not
acknowledged. A key of the wrong type is renamed, and expires a week later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Final, cast

import redis
import structlog

from trainwire.schemas import keys
from trainwire.schemas.keys import Kind
from trainwire.schemas.streams.clients import STREAM_ERRORS
from trainwire.schemas.streams.servers import Commands, ask_each

log = structlog.get_logger("trainwire.workers.drain.stream_repair")

AHEAD_MS: Final = 24 * 3600 * 1000
"""An id further in the future was set by a client, or by a server whose clock was wrong by a day."""
KEPT_S: Final = 7 * 24 * 3600
MAX_NOTES: Final = 1000
"""Maximum number of recorded repairs; then all are deleted.

Clients choose the names of stray streams, and could otherwise fill Redis with records.
"""
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
"""KEYS and ARGV of the script.

Keys: the key to repair, and its new name if it has the wrong type; for the stream of a shard also its new name if
it is jammed, and the key of its look-ahead. Arguments: expected type, highest valid time of a last id in
milliseconds, TTL in seconds.
"""


def is_ahead(entry_id: str) -> bool:
    """Return whether an entry id is so far in the future that its stream has to be renamed."""
    return int(entry_id.partition("-")[0]) > _latest_ms()


def repair(client: redis.Redis, shards: int) -> Mapping[str, str]:
    """Repair the streams and heartbeat hashes of all shards; return a description of each repair by key.

    Keys that need no repair, or whose server in a cluster does not answer, are omitted. Raises redis-py's errors.
    """
    commands = {
        keys.stream_key(kind, shard): _stream_command(kind, shard)
        for kind in keys.KINDS
        for shard in range(shards)
    }
    hashes = [key for shard in range(shards) for key in (keys.alive_key(shard), keys.listening_key(shard))]
    commands |= {key: _command("hash", key) for key in hashes}
    # TYPE is here because `ask_each` finds the server of a key by the first command.
    questions: dict[str, Commands] = {key: [("TYPE", key), command] for key, command in commands.items()}
    found = ask_each(client, questions).replies
    repaired = {key: _description(done) for key, (_, done) in found.items() if done}
    for key, how in repaired.items():
        note_repair(client, key, how)
    return repaired


def restart_if_jammed(client: redis.Redis, key: str) -> None:
    """Delete a stream if it is empty and its last id is in the future, so that Redis accepts entries again."""
    done: Any = client.eval(*_command("stream", key)[1:])
    if done:
        note_repair(client, key, _description(done))


def recent_repairs(client: redis.Redis, within_s: float) -> dict[str, str]:
    """Return a description of each repair in the last `within_s` seconds, by key."""
    found = cast("dict[bytes, bytes]", client.hgetall(keys.REPAIRS_KEY))
    notes = {key.decode(errors="replace"): json.loads(note) for key, note in found.items()}
    return {key: note["how"] for key, note in notes.items() if time.time() - note["at"] < within_s}


def note_repair(client: redis.Redis, key: str, how: str) -> None:
    """Log a repair, and record it in Redis for `trainwire doctor`."""
    log.warning("stream.repaired", key=key, how=how)
    pipeline = client.pipeline(transaction=False)
    pipeline.hset(keys.REPAIRS_KEY, key, json.dumps({"at": time.time(), "how": how}))
    pipeline.expire(keys.REPAIRS_KEY, KEPT_S)
    try:
        if client.hlen(keys.REPAIRS_KEY) >= MAX_NOTES:
            client.delete(keys.REPAIRS_KEY)
        pipeline.execute()
    except STREAM_ERRORS as exc:  # Redis is full or unavailable: the log has the repair
        log.warning("stream.repair_not_noted", key=key, reason=str(exc))


def _stream_command(kind: Kind, shard: int) -> tuple[Any, ...]:
    key = keys.stream_key(kind, shard)
    return _command("stream", key, keys.jammed_key(kind, shard), keys.ahead_key(key))


def _command(data_type: str, key: str, *more_keys: str) -> tuple[Any, ...]:
    all_keys = (key, f"{key}:set-aside", *more_keys)
    return ("EVAL", _REPAIR, len(all_keys), *all_keys, data_type, _latest_ms(), KEPT_S)


def _latest_ms() -> int:
    return int(time.time() * 1000) + AHEAD_MS


def _description(done: list[bytes]) -> str:
    how, found = (part.decode() for part in done)
    if how == RESTARTED:
        return f"jammed at id {found}: started anew"
    if how == RENAMED:
        return f"jammed at id {found}: started anew, its entries are drained beside it"
    return f"wrong type ({found}): renamed, and kept for {KEPT_S // 86400} days"
