"""Checks in each worker that its own work orders are executed, and that streams are drained.

Celery workers are known to stay alive but consume nothing after a broker failure (celery #8030, #8091): such a
worker exits. A full Redis refuses work orders, so that no drain would ever make room: streams that are not drained
are then drained without orders.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import redis
import structlog
from celery import bootsteps

from trainwire.schemas.keys import (
    ECHO_TASK,
    HALTED_KEY,
    INGEST_QUEUE,
    echo_key,
    echo_queue,
    jammed_key,
    stream_key,
)
from trainwire.schemas.streams.clients import STREAM_ERRORS
from trainwire.schemas.streams.servers import Commands, ask_each
from trainwire.stores.postgres.connections import open_redis, open_stream_client
from trainwire.workers.drain.stream_repair import repair
from trainwire.workers.errors import Unavailable
from trainwire.workers.liveness.heartbeat_reader import record_writable
from trainwire.workers.liveness.job_status import LostRule
from trainwire.workers.orders.order_sender import order_anew, order_drain, send_order
from trainwire.workers.resources import process_resources
from trainwire.workers.settings import Settings
from trainwire.workers.streams.sweep import all_streams, publish_hold, publish_shards
from trainwire.workers.streams.watch import StreamWatch

log = structlog.get_logger("trainwire.workers.watchdog")

CHECK_EVERY_S: Final = 2.0
ECHO_EVERY_S: Final = 10.0
STUCK_AFTER_S: Final = 10.0
SWEEP_TIMEOUT_S: Final = 300
EXIT_DEAF: Final = 70


class StuckStreams:
    """Finds streams that no worker drains: their first entry has not changed for some seconds."""

    def __init__(self, client: redis.Redis, shards: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._keys = [key(*stream) for stream in all_streams(shards) for key in (jammed_key, stream_key)]
        self._questions: dict[str, Commands] = {key: [("XRANGE", key, "-", "+", "COUNT", 1)] for key in self._keys}
        self._questions[HALTED_KEY] = [("HKEYS", HALTED_KEY)]
        self._halted: set[str] = set()
        self._clock = clock
        self._first: dict[str, tuple[bytes, float]] = {}

    def find(self) -> list[str]:
        """Return the keys of streams whose first entry has not changed for `STUCK_AFTER_S` seconds.

        Halted streams are omitted.
        """
        now = self._clock()
        found = ask_each(self._client, self._questions).replies
        if HALTED_KEY in found:  # if its server does not answer, the last known list applies
            self._halted = {key.decode() for key in found[HALTED_KEY][0]}
        firsts = {key: found[key][0][0][0] for key in self._keys if key in found and found[key][0]}
        self._first = {
            key: known if (known := self._first.get(key)) and known[0] == first else (first, now)
            for key, first in firsts.items()
        }
        return [
            key
            for key, (_, since) in self._first.items()
            if now - since >= STUCK_AFTER_S and key not in self._halted
        ]


class Watchdog:
    """Runs the checks every two seconds in a thread of the worker's main process, which itself runs no tasks.

    Also repairs streams, and writes the Redis keys that trainers and the liveness check read (hold, shards).
    """

    def __init__(self, settings: Settings, worker: str, send_echo: Callable[[], None]) -> None:
        self._settings = settings
        self._worker = worker
        self._send_echo = send_echo
        self._redis = open_redis(settings)
        self._streams = open_stream_client(settings) or self._redis
        self._stuck = StuckStreams(self._streams, settings.ingest_shards)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._next_echo = 0.0
        self._unanswered_since: float | None = None

    def start(self) -> None:
        """Start the thread that runs the checks."""
        self._thread.start()

    def stop(self) -> None:
        """Request the thread to stop; does not wait for it."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(CHECK_EVERY_S):
            try:
                publish_hold(self._streams, self._settings.redis_high_water)
                with suppress(redis.OutOfMemoryError):  # a full Redis: the drain below makes room
                    repair(self._streams, self._settings.ingest_shards)
                if stuck := self._stuck.find():
                    self._drain_without_orders(stuck)
                    self._unanswered_since = None  # no echo could arrive meanwhile
                self._check_echo(time.monotonic())
                # These write, which a full Redis may refuse: they come after the drain.
                publish_shards(self._streams, self._settings.ingest_shards)
                gap_s = LostRule(self._settings.lost_after_s).longest_gap_s
                record_writable(self._streams, self._settings.ingest_shards, gap_s)
            except (*STREAM_ERRORS, Unavailable) as exc:
                # Without Redis no echo can arrive: the time without one is counted from zero.
                self._unanswered_since = None
                log.warning("watchdog.unavailable", reason=str(exc))

    def _drain_without_orders(self, stuck: list[str]) -> None:
        """Drain all streams in a new process, and wait for it, at most `SWEEP_TIMEOUT_S` seconds.

        This process forks pool processes, which must not inherit connections to Postgres.
        """
        log.warning("watchdog.draining_without_orders", streams=stuck)
        try:
            subprocess.run(
                [sys.executable, "-m", "trainwire.workers", "sweep"], check=False, timeout=SWEEP_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            log.warning("watchdog.sweep_too_slow", timeout_s=SWEEP_TIMEOUT_S)
        except OSError as exc:  # no memory for a process: the next check tries again
            log.warning("watchdog.sweep_not_started", reason=str(exc))

    def _check_echo(self, now: float) -> None:
        """Send an order to this worker every few seconds; exit if none of them was executed for too long.

        After each one that was executed, touch the file for health checks.
        """
        if self._redis.delete(echo_key(self._worker)):
            self._unanswered_since = None
            touch_alive_file(self._settings.alive_file)
        if now >= self._next_echo:
            self._next_echo = now + min(ECHO_EVERY_S, self._settings.worker_deaf_after_s / 2)
            self._send_echo()
            self._unanswered_since = self._unanswered_since or now
        deaf_after_s = self._settings.worker_deaf_after_s
        if self._unanswered_since is not None and now - self._unanswered_since > deaf_after_s:
            log.critical("worker.deaf", worker=self._worker, silent_s=deaf_after_s, exit_code=EXIT_DEAF)
            os._exit(EXIT_DEAF)


def touch_alive_file(path: Path | None) -> None:
    """Touch the file for health checks, if there is one.

    Errors of the disk are only logged: they must not end a process that works. The file grows old, so that the
    health check fails.
    """
    if path is None:
        return
    try:
        path.touch()
    except OSError as exc:
        log.warning("alive_file.not_touched", path=str(path), reason=str(exc))


class WatchdogStep(bootsteps.StartStopStep):
    """Celery bootstep that starts the watchdog and, if the worker drains streams, the stream watch."""

    requires = ("celery.worker.components:Pool",)
    """The pool must fork before these threads start: a lock that a thread holds stays locked in a child."""

    worker: str
    settings: Settings
    queues: Sequence[str]

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._watches: list[Watchdog | StreamWatch] = []

    def start(self, parent: Any) -> None:
        """Start the threads of the watchdog and the stream watch."""
        del parent
        resources = process_resources()

        def send_echo() -> None:
            send_order(resources.redis, ECHO_TASK, [self.worker], echo_queue(self.worker))

        try:
            order_anew(resources, self.queues)
        except (*STREAM_ERRORS, Unavailable) as exc:
            log.warning("worker.orders_not_sent", reason=str(exc))  # beat sends them within seconds
        self._watches = [Watchdog(self.settings, self.worker, send_echo)]
        if INGEST_QUEUE in self.queues:
            self._watches.append(StreamWatch(resources, order_drain))
        for watch in self._watches:
            watch.start()

    def stop(self, parent: Any) -> None:
        """Request the threads to stop."""
        del parent
        for watch in self._watches:
            watch.stop()
