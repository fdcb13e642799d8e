"""The lease that one beat holds, and the ticks that it claims; both live in Redis and go by Redis' clock."""

from __future__ import annotations

import os
import secrets
import socket
from datetime import UTC, datetime
from typing import Final, cast

import redis

from trainwire.schemas.keys import BEAT_LEASE_KEY, BEAT_TICKS_KEY
from trainwire.workers.drain.stream import redis_errors

LEASE_S: Final = 5.0
"""A beat that does not renew its lease for so long is taken for dead."""

_HOLD: Final = """
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    return 'kept'
end
if holder then return holder end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'taken'
"""
_CLAIM: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local last_ms = tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or '0')
-- A last tick in the future: the clock was set back, and nothing must wait for it to come round.
if last_ms <= now_ms and now_ms - last_ms < tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[2], ARGV[2], now_ms)
return now_ms
"""
_RELEASE: Final = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"


class BeatLease:
    """One beat's share in the lease; every method raises `Unavailable` where Redis is away, or full."""

    def __init__(self, client: redis.Redis, lease_s: float = LEASE_S) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self.is_held = False
        self.holder: str | None = None
        self._client = client
        self._lease_ms = round(lease_s * 1000)
        self._hold = client.register_script(_HOLD)
        self._claim = client.register_script(_CLAIM)
        self._release = client.register_script(_RELEASE)

    def hold(self) -> bool:
        """Renew the lease, or take it where nobody has it; return whether it is ours."""
        with redis_errors():
            said = cast("bytes", self._hold(keys=[BEAT_LEASE_KEY], args=[self.name, self._lease_ms])).decode()
        self.is_held = said in {"kept", "taken"}
        self.holder = self.name if self.is_held else said
        return self.is_held

    def claim(self, tick: str, not_within_s: float) -> int | None:
        """Claim the next tick of this name; return its time in milliseconds since 1970.

        None where the lease is another's by now, or where the last such tick was claimed within `not_within_s`.
        """
        with redis_errors():
            arguments: list[str | int] = [self.name, tick, round(not_within_s * 1000)]
            claimed = cast("int", self._claim(keys=[BEAT_LEASE_KEY, BEAT_TICKS_KEY], args=arguments))
        return claimed or None

    def last_ticks(self) -> dict[str, datetime]:
        """Return when each tick was last claimed, by whichever beat."""
        with redis_errors():
            found = cast("dict[bytes, bytes]", self._client.hgetall(BEAT_TICKS_KEY))
        return {name.decode(): datetime.fromtimestamp(int(at_ms) / 1000, UTC) for name, at_ms in found.items()}

    def release(self) -> None:
        """Give the lease back, so that another takes it at once."""
        with redis_errors():
            self._release(keys=[BEAT_LEASE_KEY], args=[self.name])
        self.is_held = False
