"""Celery beat with a lease: if several beats run, one is active, and each periodic order is sent once."""

from __future__ import annotations

import os
import secrets
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import redis
import structlog
from celery.beat import Scheduler

from trainwire.schemas.keys import BEAT_LEASE_KEY, BEAT_TICKS_KEY
from trainwire.workers.drain.stream import redis_errors
from trainwire.workers.errors import Unavailable
from trainwire.workers.orders.order_format import encode_order
from trainwire.workers.watchdog import touch_alive_file

log = structlog.get_logger("trainwire.workers.beat")

HOLD_EVERY_S: Final = 1.0
"""Interval in which the active beat renews the lease, and the other ones try to take it."""
MIN_GAP_SHARE: Final = 0.5
"""A tick that comes within this share of its interval after the previous one is a duplicate, and is not sent."""
LEASE_MS: Final = 5000
"""A lease that was not renewed for this time in milliseconds has expired."""

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
-- A last tick in the future does not count: the clock was set back.
if last_ms <= now_ms and now_ms - last_ms < tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[2], ARGV[2], now_ms)
return now_ms
"""
_RELEASE: Final = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"


class BeatLease:
    """A lease in Redis that only one beat can have at a time; it expires by the clock of Redis.

    Every method raises `Unavailable` if Redis does not answer or is full.
    """

    def __init__(self, client: redis.Redis) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self.holder: str | None = None
        self._client = client
        self._hold = client.register_script(_HOLD)
        self._claim = client.register_script(_CLAIM)
        self._release = client.register_script(_RELEASE)

    def hold(self) -> bool:
        """Renew the lease, or take it if it is free; return whether this beat has it."""
        with redis_errors():
            reply = cast("bytes", self._hold(keys=[BEAT_LEASE_KEY], args=[self.name, LEASE_MS])).decode()
        is_held = reply in {"kept", "taken"}
        self.holder = self.name if is_held else reply
        return is_held

    def claim(self, tick: str, not_within_s: float) -> int | None:
        """Reserve the next tick of the schedule entry `tick`; return its time in milliseconds since 1970.

        Returns None if another beat has the lease, or if a tick of this entry was reserved less than
        `not_within_s` seconds ago.
        """
        with redis_errors():
            arguments: list[str | int] = [self.name, tick, round(not_within_s * 1000)]
            claimed = cast("int", self._claim(keys=[BEAT_LEASE_KEY, BEAT_TICKS_KEY], args=arguments))
        return claimed or None

    def send(self, queue: str, order: bytes) -> None:
        """Append an order to a queue of workers."""
        with redis_errors():
            self._client.lpush(queue, order)

    def last_ticks(self) -> dict[str, datetime]:
        """Return the time of the last tick of each schedule entry, also if another beat sent it."""
        with redis_errors():
            found = cast("dict[bytes, bytes]", self._client.hgetall(BEAT_TICKS_KEY))
        return {name.decode(): datetime.fromtimestamp(int(at_ms) / 1000, UTC) for name, at_ms in found.items()}

    def release(self) -> None:
        """Release the lease, so that another beat can take it immediately."""
        with redis_errors():
            self._release(keys=[BEAT_LEASE_KEY], args=[self.name])


class LeasedScheduler(Scheduler):
    """Celery's in-memory scheduler, which sends due tasks (ticks) only while it has the lease.

    The time of the last tick of each schedule entry is stored in Redis, so that the next active beat keeps the
    intervals.
    """

    lease: ClassVar[BeatLease]
    """The lease; a class attribute because Celery makes the scheduler from the name of its class."""
    alive_file: ClassVar[Path | None] = None
    """File for health checks, touched whenever Redis has answered about the lease."""
    producer: Any = None
    """No producer of kombu, which may raise `AttributeError` for ever after a command that timed out."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._was_active: bool | None = None
        self._trouble: str | None = None
        super().__init__(*arguments, **options)

    def tick(self, *arguments: Any, **options: Any) -> float:
        """Send one due task if this beat has the lease; return the seconds to sleep, at most `HOLD_EVERY_S`."""
        try:
            if not self._is_active():
                return HOLD_EVERY_S
        except Unavailable as exc:
            self._log_trouble(str(exc))
            return HOLD_EVERY_S
        return min(float(super().tick(*arguments, **options)), HOLD_EVERY_S)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:  # noqa: ARG002 - Celery's
        """Send the task of a schedule entry with an id of its own, unless its tick was sent just before.

        Errors of Redis are ignored; only the first of several in a row is logged.
        """
        try:
            every_s = entry.schedule.run_every.total_seconds()
            claimed_ms = self.lease.claim(entry.name, MIN_GAP_SHARE * every_s)
            if claimed_ms is not None:
                queue, expires_at = entry.options["queue"], time.time() + entry.options["expires"]
                task_id = f"{entry.name}-{claimed_ms}"
                self.lease.send(queue, encode_order(entry.task, [], queue, expires_at, task_id))
        except Unavailable as exc:
            self._log_trouble(str(exc))
        else:
            self._log_trouble(None)

    def close(self) -> None:
        """Release the lease when the scheduler ends."""
        with suppress(Unavailable):
            self.lease.release()
        super().close()

    def _is_active(self) -> bool:
        is_active = self.lease.hold()
        touch_alive_file(self.alive_file)
        if is_active and not self._was_active:
            self._resume_from(self.lease.last_ticks())
            log.info("beat.active", name=self.lease.name)
        if not is_active and self._was_active is not False:
            log.info("beat.standby", name=self.lease.name, active=self.lease.holder)
        self._was_active = is_active
        return is_active

    def _resume_from(self, last_ticks: dict[str, datetime]) -> None:
        """Schedule the next ticks by the times of the last ones, so that intervals are kept.

        Another beat may have sent the last ticks.
        """
        now = datetime.now(UTC)
        for name, at in last_ticks.items():
            if name in self.schedule:
                self.schedule[name].last_run_at = min(at, now)
        self._heap = None

    def _log_trouble(self, reason: str | None) -> None:
        """Log the first of several Redis failures in a row, and the first success after them (`reason` None)."""
        if reason is not None and self._trouble is None:
            log.warning("beat.unavailable", reason=reason)
        if reason is None and self._trouble is not None:
            log.info("beat.sends_again", after=self._trouble)
        self._trouble = reason
