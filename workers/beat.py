"""Beat, of which exactly one is active however many run: it ticks while it holds the lease."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final

import structlog
from celery.beat import Scheduler
from celery.exceptions import OperationalError
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from trainwire.workers.errors import Unavailable
from trainwire.workers.lease import BeatLease

log = structlog.get_logger("trainwire.workers.beat")

LOOK_EVERY_S: Final = 1.0
"""How often the lease is renewed, or looked at by who waits for it."""
LEAST_GAP_SHARE: Final = 0.5
"""Of a tick's interval: a tick that comes sooner after the last one is a double, and not sent."""


class LeasedScheduler(Scheduler):
    """Celery's scheduler in memory, which sends a tick only as the holder of the lease, and each only once.

    When each tick was last sent is in Redis, so that whoever takes over goes on where the other stopped.
    """

    lease: ClassVar[BeatLease]
    """Set before the scheduler is made: Celery makes it from its class's name."""
    alive_file: ClassVar[Path | None] = None
    """Touched at each look at the lease; set as that is."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._was_active: bool | None = None
        self._trouble: str | None = None
        super().__init__(*arguments, **options)

    def tick(self, *arguments: Any, **options: Any) -> float:
        """Send one tick that is due, if the lease is ours; return how long to sleep, in seconds."""
        try:
            if not self._is_active():
                return LOOK_EVERY_S
        except Unavailable as exc:
            self._say_trouble(str(exc))
            return LOOK_EVERY_S
        return min(float(super().tick(*arguments, **options)), LOOK_EVERY_S)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send one tick under a name of its own; where Redis does not take it, say so once and go on."""
        try:
            every_s = entry.schedule.run_every.total_seconds()
            claimed_ms = self.lease.claim(entry.name, LEAST_GAP_SHARE * every_s)
            if claimed_ms is not None:
                task_id = f"{entry.name}-{claimed_ms}"
                self.send_task(entry.task, producer=producer, task_id=task_id, **entry.options)
        except (Unavailable, OperationalError, KombuError, RedisError, OSError) as exc:
            self._say_trouble(str(exc))
        else:
            self._say_trouble(None)

    def close(self) -> None:
        """Give the lease back at the end."""
        with suppress(Unavailable):
            self.lease.release()
        super().close()

    def _is_active(self) -> bool:
        is_active = self.lease.hold()
        if self.alive_file is not None:
            self.alive_file.touch()
        if is_active and not self._was_active:
            self._go_on_from(self.lease.last_ticks())
            log.info("beat.active", name=self.lease.name)
        if not is_active and self._was_active is not False:
            log.info("beat.standby", name=self.lease.name, active=self.lease.holder)
        self._was_active = is_active
        return is_active

    def _go_on_from(self, last_ticks: dict[str, datetime]) -> None:
        """Let each tick come when it would have come from whoever sent the last one."""
        now = datetime.now(UTC)
        for name, at in last_ticks.items():
            if name in self.schedule:
                self.schedule[name].last_run_at = min(at, now)
        self._heap = None

    def _say_trouble(self, reason: str | None) -> None:
        """Log the first of a row of failures, and their end."""
        if reason is not None and self._trouble is None:
            log.warning("beat.unavailable", reason=reason)
        if reason is None and self._trouble is not None:
            log.info("beat.sends_again", after=self._trouble)
        self._trouble = reason
